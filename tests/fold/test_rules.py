"""Every rule against the two layers that it makes one of, in float64, for gains and layouts that are hard."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from normjax import fold

# Sums of some dozens of products of numbers of size 1 to 100, in float64.
EXACT = {"rtol": 1e-10, "atol": 1e-10}
SIZES = st.integers(1, 4)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def gains(size, seed):
    """Gains with zeros, negative and large ones among them."""
    values = normal(size, seed=seed) * 10.0 ** (np.arange(size) % 3 - 1)
    values[:: 3 + seed % 3] = 0
    return values


def convolve(x, kernel, bias, *, stride=1, padding=0, groups=1, pad_value=0.0):
    """NHWC by HWIO, in NumPy."""
    padded = np.ones((x.shape[0], x.shape[1] + 2 * padding, x.shape[2] + 2 * padding, x.shape[3])) * pad_value
    padded[:, padding : padding + x.shape[1], padding : padding + x.shape[2]] = x
    h, w, inputs, outputs = kernel.shape
    windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), (1, 2))[:, ::stride, ::stride]
    each = outputs // groups
    parts = [
        np.einsum(
            "byxihw,hwio->byxo", windows[..., g * inputs : (g + 1) * inputs, :, :], kernel[..., g * each :][..., :each]
        )
        for g in range(groups)
    ]
    y = np.concatenate(parts, -1)
    return y if bias is None else y + bias


@hypothesis.given(SIZES, SIZES, st.booleans(), st.booleans(), st.integers(0, 99))
def test_affine_before_and_after_dense(inputs, outputs, use_bias, use_shift, seed):
    x, kernel = normal(5, inputs, seed=seed), normal(inputs, outputs, seed=seed + 1)
    bias = normal(outputs, seed=seed + 2) if use_bias else None
    plain = 0 if bias is None else bias
    scale, shift = gains(inputs, seed), normal(inputs, seed=seed + 3)
    given = shift if use_shift else None
    new, made = fold.affine_before(kernel, bias, scale, given)
    expected = (x * scale + (shift if use_shift else 0)) @ kernel + plain
    np.testing.assert_allclose(x @ new + (0 if made is None else made), expected, **EXACT)
    assert (made is None) == (bias is None and not use_shift)
    scale, shift = gains(outputs, seed), normal(outputs, seed=seed + 3)
    new, made = fold.affine_after(kernel, bias, scale, shift if use_shift else None)
    expected = (x @ kernel + plain) * scale + (shift if use_shift else 0)
    np.testing.assert_allclose(x @ new + (0 if made is None else made), expected, **EXACT)


@hypothesis.given(
    st.integers(1, 3), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.integers(0, 1), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_convolutions(window, inputs, multiplier, stride, padding, depthwise, seed):
    """Strided, padded, grouped and depthwise; the norm before a padded one needs the pad value."""
    groups = 2 * inputs if depthwise else 2
    features = groups if depthwise else 2 * inputs
    x = normal(2, 5, 5, features, seed=seed)
    kernel = normal(window, window, features // groups, groups * multiplier, seed=seed + 1)
    bias, options = normal(groups * multiplier, seed=seed + 2), {"stride": stride, "padding": padding, "groups": groups}
    scale, shift = gains(groups * multiplier, seed), normal(groups * multiplier, seed=seed + 3)
    folded = fold.affine_after(kernel, bias, scale, shift)
    np.testing.assert_allclose(
        convolve(x, *folded, **options), convolve(x, kernel, bias, **options) * scale + shift, **EXACT
    )
    scale, shift = normal(features, seed=seed + 4), normal(features, seed=seed + 5)
    folded = fold.affine_before(kernel, bias, scale, shift, groups=groups)
    value = fold.conv_pad_value(scale, shift)
    expected = convolve(x * scale + shift, kernel, bias, **options)
    # -s/a may be large: the sum over the border cancels numbers of its size.
    size = 1 + np.max(np.abs(value))
    np.testing.assert_allclose(
        convolve(x, *folded, pad_value=value, **options), expected, rtol=1e-10, atol=1e-10 * size
    )
    if padding and window == 3:
        assert np.max(np.abs(convolve(x, *folded, **options) - expected)) > 1e-3, "zeros on the border should be wrong"


def test_dense_general_layouts():
    """Attention's (d, heads, head) and (heads, head, d)."""
    x, qkv, scale, shift = normal(3, 6), normal(6, 2, 4, seed=1), gains(6, 1), normal(6, seed=2)
    kernel, bias = fold.affine_before(qkv, None, scale, shift, in_axes=0, out_axes=(1, 2))
    expected = np.einsum("bd,dhk->bhk", x * scale + shift, qkv)
    np.testing.assert_allclose(np.einsum("bd,dhk->bhk", x, kernel) + bias, expected, **EXACT)
    x, out, scale, shift = normal(3, 2, 4), normal(2, 4, 5, seed=1), normal(2, 4, seed=2), normal(2, 4, seed=3)
    kernel, bias = fold.affine_before(out, normal(5), scale, shift, in_axes=(0, 1), out_axes=-1)
    expected = np.einsum("bhk,hkd->bd", x * scale + shift, out) + normal(5)
    np.testing.assert_allclose(np.einsum("bhk,hkd->bd", x, kernel) + bias, expected, **EXACT)
    # Experts: each has its own bias.
    x, experts, scale, shift = normal(3, 6), normal(2, 6, 4, seed=1), gains(6, 1), normal(6, seed=2)
    kernel, bias = fold.affine_before(experts, None, scale, shift, in_axes=1, out_axes=(0, 2))
    expected = np.einsum("bd,edf->bef", x * scale + shift, experts)
    np.testing.assert_allclose(np.einsum("bd,edf->bef", x, kernel) + bias, expected, **EXACT)
    # Axes in another order: the vector follows the order of its axes.
    scale = normal(2, 4, seed=2)
    straight, other = (
        fold.affine_before(out, None, s, None, in_axes=axes, out_axes=-1)[0]
        for s, axes in ((scale, (0, 1)), (scale.T, (1, 0)))
    )
    np.testing.assert_array_equal(other, straight)


@pytest.mark.parametrize("variance", [0.0, 1e-12, 1e6])
def test_running_statistics(variance):
    """Batch norm, Unified Normalization and RepBN, with a variance near 0 and gains of 0."""
    x, kernel, bias = normal(7, 3), normal(3, 4, seed=1), normal(4, seed=2)
    scale, offset, mean, var = gains(4, 1), normal(4, seed=3), normal(4, seed=4), np.full(4, variance)
    y = x @ kernel + bias
    batch = scale * (y - mean) / np.sqrt(var + 1e-5) + offset
    root = np.sqrt(var + 1e-5)
    whole = fold.running_affine(scale, offset, mean, var, 1e-5, alpha=0.7)
    uncentred = fold.running_affine(scale, offset, None, var, 1e-5)
    for expected, folded in (
        (batch, fold.bn_after(kernel, bias, scale, offset, mean, var, 1e-5)),
        (batch + 0.7 * y, fold.affine_after(kernel, bias, *whole)),
        (scale * y / root + offset, fold.affine_after(kernel, bias, *uncentred)),
    ):
        # Division by the root of epsilon makes numbers of size 1e3.
        np.testing.assert_allclose(x @ folded[0] + folded[1], expected, rtol=1e-10, atol=1e-8)
    scale, shift = fold.running_affine(None, None, None, var, 1e-5)
    np.testing.assert_array_equal(shift, 0)
    np.testing.assert_allclose(scale, 1 / np.sqrt(var + 1e-5))


@hypothesis.given(st.integers(2, 6), st.integers(0, 99))
def test_centring_makes_layer_norm_rms_norm(features, seed):
    x, kernel, bias = normal(4, 3, seed=seed), normal(3, features, seed=seed + 1), normal(features, seed=seed + 2)
    rows = normal(4, features, seed=seed + 3)
    centred, offset = fold.center_out(kernel, bias)
    stream, plain = x @ centred + offset + fold.center_rows(rows), x @ kernel + bias + rows
    np.testing.assert_allclose(stream.mean(-1), 0, atol=1e-13)
    deviation = plain - plain.mean(-1, keepdims=True)
    np.testing.assert_allclose(stream, deviation, **EXACT)
    # The stream without its last entry, and a reader of it.
    reader = normal(features, 2, seed=seed + 4)
    small = x @ fold.compress_out(centred) + fold.compress_out(offset) + fold.compress_out(fold.center_rows(rows))
    np.testing.assert_allclose(small @ fold.compress_in(reader), stream @ reader, **EXACT)
    square = (np.sum(small**2, -1) + np.sum(small, -1) ** 2) / features
    np.testing.assert_allclose(square, np.mean(stream**2, -1), **EXACT)


@hypothesis.given(st.integers(1, 6), st.integers(0, 99))
def test_rms_norm_without_a_gain_commutes_with_a_rotation(features, seed):
    x, kernel, bias = normal(4, 3, seed=seed), normal(3, features, seed=seed + 1), normal(features, seed=seed + 2)
    rotation, _ = np.linalg.qr(normal(features, features, seed=seed + 3))
    reader = normal(2, features, 5, seed=seed + 4)
    normalized = lambda y: y / np.sqrt(np.mean(y**2, -1, keepdims=True) + 1e-6)
    expected = np.einsum("bd,edo->ebo", normalized(x @ kernel + bias), reader)
    turned = normalized(x @ fold.rotate_out(kernel, rotation) + fold.rotate_out(bias, rotation))
    actual = np.einsum("bd,edo->ebo", turned, fold.rotate_in(reader, rotation))
    np.testing.assert_allclose(actual, expected, **EXACT)


@hypothesis.given(st.integers(1, 3), st.integers(1, 2), st.booleans(), st.integers(0, 99))
def test_gains_of_queries_and_keys(pairs, kv_heads, interleaved, seed):
    """One gain behind a rotation if the keys' is equal in each pair; grouped heads over a whole projection."""
    head, heads, rotated = 2 * pairs + 1, 2 * kv_heads, 2 * pairs
    twice = normal(kv_heads, pairs, seed=seed)
    order = np.repeat(twice, 2, -1) if interleaved else np.concatenate([twice, twice], -1)
    key = np.concatenate([order, normal(kv_heads, 1, seed=seed + 1)], -1).reshape(-1)
    query = normal(heads * head, seed=seed + 2)
    options = {"rotated": rotated, "interleaved": interleaved, "kv_heads": kv_heads}
    merged, ones = fold.qk_gains(query, key, **options)
    np.testing.assert_array_equal(ones, 1)

    def rotate(v, angle):
        a, b = (v[..., 0:rotated:2], v[..., 1:rotated:2]) if interleaved else np.split(v[..., :rotated], 2, -1)
        turned = np.cos(angle) * a - np.sin(angle) * b, np.cos(angle) * b + np.sin(angle) * a
        whole = np.stack(turned, -1).reshape((*a.shape[:-1], -1)) if interleaved else np.concatenate(turned, -1)
        return np.concatenate([whole, v[..., rotated:]], -1)

    def scores(query, key):
        q = (normal(heads, head, seed=seed + 3) * query.reshape(heads, head)).reshape(kv_heads, -1, head)
        k = normal(kv_heads, 1, head, seed=seed + 4) * key.reshape(kv_heads, 1, head)
        angles = normal(pairs, seed=seed + 5)
        return np.sum(rotate(q, angles) * rotate(k, 2 * angles), -1)

    np.testing.assert_allclose(scores(merged, ones), scores(query, key), **EXACT)
    if pairs > 1 or not interleaved:
        with pytest.raises(ValueError, match="do not commute with the rotation"):
            fold.qk_gains(query, np.arange(key.size, dtype=float), **options)


@hypothesis.given(st.integers(0, 99))
def test_a_scaled_stream(seed):
    first, last, reader = (normal(3, 4, seed=seed + i) for i in range(3))
    signs = np.sign(normal(4, seed=seed + 4))
    scale, shift = signs * np.array([0.5, 2.0, 3.0, 1e-2]), normal(4, seed=seed + 5)
    x = normal(6, 3, seed=seed + 6)
    middle = x @ first + normal(4)
    end = (middle + np.tanh(middle @ reader.T) @ last) * scale + shift
    writers, readers = fold.scale_stream([(first, normal(4)), (last, None)], [(reader.T, None)], scale, shift)
    middle = x @ writers[0][0] + writers[0][1]
    folded = middle + np.tanh(middle @ readers[0][0]) @ writers[1][0] + writers[1][1]
    np.testing.assert_allclose(folded, end, **EXACT)


@hypothesis.given(st.integers(1, 5), st.booleans(), st.integers(0, 99))
def test_equalization_keeps_the_function(features, use_bias, seed):
    scale, bias = gains(features, seed), normal(features, seed=seed + 1)
    linears = [(normal(features, 3, seed=seed + i), normal(3, seed=seed + i) if use_bias else None) for i in (2, 3)]
    delta, zero = np.abs(normal(features, seed=seed + 4)) + 0.01, np.round(3 * normal(features, seed=seed + 5))
    x = normal(4, features, seed=seed + 6)
    apply = lambda scale, bias, linears: [(x * scale + bias) @ k + (0 if b is None else b) for k, b in linears]
    for clip in (None, 2.0):
        found = fold.equalization(delta, zero, clip=clip)
        assert found.zero == np.round(found.zero)
        assert clip is None or np.all((found.factor <= clip) & (found.factor >= 1 / clip))
        moved = fold.equalize_ln_linear(scale, bias, linears, found.factor, found.shift)
        # Factors of up to some hundreds are divided by and multiplied with.
        for a, b in zip(apply(*moved), apply(scale, bias, linears), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-8)


def test_moments_are_restored():
    kernel, bias, x = normal(3, 4), normal(4, seed=1), normal(50, 3, seed=2)
    scale, offset = gains(4, 1), normal(4, seed=3)
    y = x @ kernel + bias
    new, made = fold.retune_bn_stats(kernel, bias, scale, offset, y.mean(0), y.var(0), 0.0)
    y = x @ new + made
    np.testing.assert_allclose(y.mean(0), offset, **EXACT)
    np.testing.assert_allclose(y.std(0), np.abs(scale), **EXACT)


def test_integer_layer_norm_converges_where_the_published_one_does_not():
    rng = np.random.default_rng(0)
    for width, largest in ((16, 3), (16, 127), (64, 32767)):
        x = rng.integers(-largest, largest + 1, (20, width))
        scale, bias = np.where(np.arange(width) % 2, -1.5, 0.5), rng.standard_normal(width)
        mean = np.round(x.mean(-1, keepdims=True))
        centred = (x - mean).astype(np.float64)
        norm = np.sqrt(np.sum(centred**2, -1, keepdims=True))
        expected = np.sqrt(width) * centred / norm * scale + bias
        codes, unit = fold.integer_layer_normalize(x, scale, bias)
        # Both floor(sqrt(V)) and floor(2^31 / that) are up to 1 too small; then roundings of one code.
        bound = np.abs(expected - bias) * (1 / (norm - 1) + norm / 2**30) + 3 * np.abs(unit)
        assert np.all(np.abs(codes * unit - expected) <= bound)
        theirs = fold.integer_layer_normalize(x, scale, bias, compatible=True)[0] * unit
        right = np.all(np.abs(theirs - expected) <= bound)
        assert right == (largest != 3), "ten steps from 2^16 reach the root from 256 on"
    square = np.concatenate([np.arange(2000), np.int64(2) ** np.arange(62), [2**62 - 1]])
    root = fold.integer_root(square)
    assert np.all((root * root <= np.maximum(square, 1)) & ((root + 1) * (root + 1) > square))


def test_a_permutation_commutes_with_the_norm_and_a_soft_map_does_not():
    permutation = np.eye(4)[:, [2, 0, 3, 1]]
    scale, bias, x = normal(4), normal(4, seed=1), normal(5, 4, seed=2)
    normalized = lambda x, scale, bias: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * scale + bias
    other = (np.ones(4), np.zeros(4))
    for channel_map, exact in ((permutation, True), (0.7 * permutation + 0.075, False)):
        mapped = fold.apply_map_norm(scale, bias, channel_map, other, 0.0)
        error = np.max(np.abs(normalized(x @ channel_map, *mapped) - normalized(x, scale, bias) @ channel_map))
        assert (error < 1e-12) == exact


def test_bfloat16_and_jax_arrays_stay_what_they_are():
    kernel, scale, shift = normal(4, 3), normal(4, seed=1), normal(4, seed=2)
    expected = fold.affine_before(kernel, None, scale, shift)
    low = [jnp.asarray(a, jnp.bfloat16) for a in (kernel, scale, shift)]
    narrow = fold.affine_before(low[0], None, *low[1:])
    for a, b in zip(narrow, expected, strict=True):
        assert isinstance(a, jax.Array)
        assert a.dtype == jnp.bfloat16
        # Each of the four products and the sum are rounded to 8 bits.
        np.testing.assert_allclose(
            np.asarray(a, np.float64), b, rtol=0, atol=8 * float(ml_dtypes.finfo("bfloat16").eps)
        )


def test_sharded_equals_replicated():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    kernel, scale, shift = (jnp.asarray(a, jnp.float32) for a in (normal(8, 16), normal(8, seed=1), normal(8, seed=2)))
    expected = fold.affine_before(kernel, None, scale, shift)
    for spec in (PartitionSpec("data", "model"), PartitionSpec("model", None)):
        sharding = NamedSharding(mesh, spec)
        placed = jax.device_put(kernel, sharding)
        new, bias = jax.jit(fold.affine_before, out_shardings=(sharding, None))(placed, None, scale, shift)
        assert new.sharding.is_equivalent_to(sharding, 2)
        np.testing.assert_allclose(new, expected[0], rtol=1e-6)
        np.testing.assert_allclose(bias, expected[1], rtol=1e-5, atol=1e-6)


ONE, SQUARE = np.ones(1), np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fold.affine_before(SQUARE, None, np.ones(3)), r"scale has shape \(3,\), expected \(2,\)"),
        (lambda: fold.affine_before(SQUARE, np.ones(2), np.ones(2)), r"bias has shape \(2,\), expected \(3,\)"),
        (lambda: fold.affine_before(SQUARE, None, np.ones(2), in_axes=1), "share an axis"),
        (lambda: fold.affine_before(SQUARE, None, np.ones(4), groups=2), "groups=2 needs one input axis"),
        (lambda: fold.affine_before(np.ones((2, 4)), None, np.ones(2), groups=2), r"expected \(4,\): 2 groups"),
        (lambda: fold.affine_after(SQUARE, None, np.ones(2)), r"scale has shape \(2,\), expected \(3,\)"),
        (lambda: fold.running_affine(None, None, None, np.zeros(2), 0.0), "not positive in 2 of 2"),
        (lambda: fold.running_affine(None, None, None, ONE, -1.0), "epsilon"),
        (lambda: fold.conv_pad_value(np.array([1.0, 0.0]), np.ones(2)), "1 of 2 scales are 0"),
        (lambda: fold.qk_gains(np.ones(3), np.ones(2)), "do not fit"),
        (lambda: fold.scale_stream([(SQUARE, None)], [], np.array([1.0, 0.0, 1.0])), "scales other than 0"),
        (lambda: fold.scale_stream([], [], ONE), "expected a writer"),
        (lambda: fold.compress_out(ONE), "compressing needs two"),
        (lambda: fold.rotate_out(SQUARE, np.eye(2)), r"expected \(3, 3\)"),
        (lambda: fold.rotate_in(SQUARE, np.eye(3)), r"expected \(2, 2\)"),
        (lambda: fold.equalize_ln_linear(ONE, ONE, [], np.zeros(1)), "factor 0 is lost"),
        (lambda: fold.equalization(np.zeros(1), ONE), "positive delta"),
        (lambda: fold.equalization(ONE, ONE, clip=0.5), "clip >= 1"),
        (lambda: fold.range_quantizer(ONE, -ONE, 4), "low <= high"),
        (lambda: fold.percentile_quantizer(SQUARE, 4, percentiles=()), "gives no range"),
        (lambda: fold.quantize_uniform(ONE, ONE, ONE, 0), "bits"),
        (lambda: fold.moment_match(SQUARE, None, ONE, ONE, ONE, ONE, -1.0), "epsilon"),
        (lambda: fold.integer_layer_normalize(SQUARE.astype(int), np.zeros(3), np.ones(3)), "3 of 3 gains are 0"),
        (lambda: fold.apply_map_norm(ONE, None, SQUARE, (ONE, None)), "a map of shape"),
        (lambda: fold.apply_map_norm(ONE, ONE, np.ones((1, 1)), (ONE, None)), "biases in"),
        (lambda: fold.residual_map("sum", SQUARE, SQUARE), "is unknown"),
        (lambda: fold.residual_map("mean", SQUARE, ONE), "expected equal ones"),
        (lambda: fold.residual_map("weighted scalar", SQUARE, SQUARE), "needs residual_activations"),
    ],
)  # fmt: skip
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_floats_are_no_codes():
    with pytest.raises(TypeError, match="expected integers"):
        fold.integer_layer_normalize(SQUARE, np.ones(3), np.ones(3))
