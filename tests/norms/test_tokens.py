"""What the per-token methods promise beyond the battery: identities between them, orders, clamps, zero vectors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj

EPS32 = float(np.finfo(np.float32).eps)
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=32 * EPS32)


def turned(x):
    """A rotation of pairs by an angle that grows with the position, on (batch, tokens, heads, head_dim)."""
    angles = jnp.arange(x.shape[1], dtype=x.dtype)[:, None, None]
    even, odd = x[..., ::2], x[..., 1::2]
    pairs = jnp.cos(angles) * even - jnp.sin(angles) * odd, jnp.sin(angles) * even + jnp.cos(angles) * odd
    return jnp.stack(pairs, axis=-1).reshape(x.shape)


@pytest.fixture(autouse=True)
def rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_crms_is_rms_of_the_decompressed_vector(masked, rng):
    z = jnp.asarray(rng.standard_normal((5, 7)), jnp.float32)
    mask = jnp.asarray(rng.random((5, 7)) < 0.6) if masked else jnp.ones((5, 7), bool)
    last = -jnp.sum(jnp.where(mask, z, 0), axis=-1, keepdims=True)
    whole = nj.rms_normalize(
        jnp.concatenate([z, last], axis=-1),
        epsilon=1e-5,
        mask=jnp.concatenate([mask, mask.any(-1, keepdims=True)], axis=-1),
    )
    close(nj.crms_normalize(z, mask=mask), whole[:, :-1])


@pytest.mark.parametrize("mode", ["clamp", "inside", "outside"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_a_zero_vector_stays_zero_with_a_finite_gradient(mode, epsilon):
    zero = jnp.zeros((1, 4))
    normalize = functools.partial(nj.l2_normalize, epsilon=epsilon, epsilon_mode=mode)
    np.testing.assert_array_equal(normalize(zero), zero)
    slope = {"inside": epsilon**0.5}.get(mode, epsilon)
    jacobian = jax.jacobian(lambda x: normalize(x)[0])(zero)[:, 0]
    close(jacobian, np.eye(4) / slope if slope else np.zeros((4, 4)), atol=32 * EPS32 / (slope or 1))


def test_what_nearly_all_publish_is_nan_there():
    naive = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    assert np.isnan(naive(jnp.zeros((1, 4)))).all()
    h, alpha = jnp.zeros((1, 4)), jnp.full(4, 0.05)
    gradients = jax.grad(lambda *args: jnp.sum(nj.ngpt_interpolate(*args)), argnums=(0, 1, 2))(h, h, alpha)
    assert all(np.isfinite(g).all() for g in gradients)


def test_qk_orders_agree_only_where_the_scale_is_the_same_within_a_pair(rng):
    qk = tuple(jnp.asarray(rng.standard_normal((2, 5, heads, 8)), jnp.float32) for heads in (4, 2))
    before, after = nj.qk_norm(nj.rms_norm()), nj.qk_norm(nj.rms_norm(), order="rotate_then_normalize")
    for repeats, same in ((2, True), (1, False)):
        scales = (1 + jnp.arange(8 // repeats, dtype=jnp.float32)).repeat(repeats)
        params = {"query": {"scale": scales}, "key": {"scale": scales}}
        (one, _), (other, _) = (
            norm.apply(params, {"query": {}, "key": {}}, qk, train=True, rotate=turned) for norm in (before, after)
        )
        gap = max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(one, other, strict=True))
        assert (gap < 1e-5) == same


def test_qk_of_the_full_width_separate_heads_values_and_two_rotations(rng):
    q, k, v = (jnp.asarray(rng.standard_normal((2, 5, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    norm = nj.qk_norm(
        nj.rms_norm(axis=(-2, -1)), nj.layer_norm(feature_axes=(-2, -1)), value=nj.rms_norm(use_scale=False)
    )
    params, state = norm.init(None, (q, k, v))
    assert jax.tree.map(jnp.shape, params) == {
        "query": {"scale": (4, 8)},
        "key": {"scale": (2, 8), "bias": (2, 8)},
        "value": {},
    }
    rotations = (turned, lambda x: x[..., ::-1])
    (q2, k2, v2), after = norm.apply(params, state, (q, k, v), train=True, rotate=rotations)
    assert after == state
    wide = nj.rms_normalize(q.reshape(2, 5, 32)).reshape(q.shape)  # OLMo 2: one statistic for all heads
    close(q2, turned(wide))
    close(k2, nj.layer_normalize(k)[..., ::-1])
    close(v2, nj.rms_normalize(v))
    (_, _, same), _ = nj.qk_norm(nj.rms_norm()).apply(
        nj.qk_norm(nj.rms_norm()).init(None, (q, k))[0], {"query": {}, "key": {}}, (q, k, v), train=True
    )
    np.testing.assert_array_equal(same, v)


def test_each_of_queries_and_keys_has_its_own_mask(rng):
    q, k = (jnp.asarray(rng.standard_normal((2, t, 1, 4)), jnp.float32) for t in (3, 5))
    norm = nj.qk_norm(nj.l2_norm())
    masks = jnp.zeros((2, 3, 1, 1)), jnp.ones((2, 5, 1, 1))
    (q2, k2), _ = norm.apply({"query": {}, "key": {}}, {"query": {}, "key": {}}, (q, k), train=True, mask=masks)
    np.testing.assert_array_equal(q2, q)  # the norm of nothing is 1
    close(k2, nj.l2_normalize(k))


def test_the_two_clamps_have_one_value_and_two_gradients():
    s = jnp.log(jnp.array([10.0, 100.0, 1000.0]))
    values, gradients = {}, {}
    for clamp in ("graph", "parameter"):
        temperature = functools.partial(nj.learned_temperature, clamp=clamp)
        values[clamp], gradients[clamp] = temperature(s), jax.grad(lambda s, f=temperature: jnp.sum(f(s)))(s)
    np.testing.assert_allclose(values["graph"], [10, 100, 100], rtol=8 * EPS32)
    np.testing.assert_allclose(values["parameter"], [10, 100, 100], rtol=8 * EPS32)
    np.testing.assert_allclose(gradients["graph"], [10, 100, 0], rtol=8 * EPS32)
    np.testing.assert_allclose(gradients["parameter"], [10, 100, 100], rtol=8 * EPS32)


def test_scalable_softmax_is_the_power_of_n_and_its_cheap_form(rng):
    q, k = (rng.standard_normal((2, 3, 5, 8)) for _ in range(2))
    s, mask = np.array([0.4, 0.7, 1.0]), np.tril(np.ones((5, 5)))
    mask[2] = 0  # a query that sees nothing
    logits = np.einsum("bhqd,bhkd->bhqk", q, k)
    n = np.maximum(mask.sum(-1), 1)[:, None]
    powers = np.where(mask != 0, n ** (s[:, None, None] * logits), 0)
    expected = powers / np.maximum(powers.sum(-1, keepdims=True), 1e-300)
    with jax.enable_x64(True):
        poisoned = jnp.asarray(np.where(mask != 0, logits, np.nan))
        direct = functools.partial(nj.scalable_softmax, mask=jnp.asarray(mask))
        np.testing.assert_allclose(direct(poisoned, jnp.asarray(s)), expected, rtol=0, atol=1e-12)
        gradients = jax.grad(lambda *args: jnp.sum(direct(*args) ** 2), argnums=(0, 1))(poisoned, jnp.asarray(s))
        assert all(np.isfinite(g).all() for g in gradients)
        scaled = nj.ssmax_scale(jnp.asarray(q), jnp.asarray(s), nj.visible_keys(jnp.asarray(mask)), head_axis=1)
        cheap = jnp.einsum("bhqd,bhkd->bhqk", scaled, jnp.asarray(k))
        cheap = jax.nn.softmax(jnp.where(mask[None, None] != 0, cheap, -1e300))
        np.testing.assert_allclose(cheap[:, :, [0, 1, 3, 4]], expected[:, :, [0, 1, 3, 4]], rtol=0, atol=1e-12)


def test_ngpt_scales_move_by_their_share_and_matrices_lie_on_the_sphere(rng):
    stored = jnp.full(64, 0.125)
    close(nj.ngpt_scale(stored, initial=0.05), 0.05)
    # A step of 1 % of the stored value is a step of 1 % of the value in use, whatever that is.
    close(nj.ngpt_scale(1.01 * stored, initial=0.05), 0.0505)
    w = jnp.asarray(rng.standard_normal((6, 4)), jnp.bfloat16)
    rows = nj.l2_normalize(w, axis=1, epsilon=0.0)
    np.testing.assert_allclose(jnp.linalg.norm(rows.astype(jnp.float32), axis=1), 1, rtol=2.0**-7)


def test_muse_and_nemotron_add_one_in_the_scale_s_own_dtype():
    tiny = jnp.full(4, 2.0**-9, jnp.bfloat16)  # 1 + 2⁻⁹ is 1 in bfloat16
    x = jnp.array([[1.0, 2.0, 3.0, 4.0]], jnp.float32)
    narrow = nj.Precision(narrow_offset=True)
    plain = nj.rms_normalize(x)
    np.testing.assert_array_equal(nj.rms_normalize(x, tiny, scale_offset=1.0, precision=narrow), plain)
    assert np.all(np.abs(nj.rms_normalize(x, tiny, scale_offset=1.0)) > np.abs(plain))


def test_a_gate_that_is_garbage_behind_the_mask_stays_there(rng):
    x, gate = (rng.standard_normal((3, 4)).astype(np.float32) for _ in range(2))
    mask = np.array([True, False, True])[:, None]
    for gate_first in (True, False):

        def loss(x, gate, gate_first=gate_first):
            y = nj.gated_rms_normalize(x, gate, gate_first=gate_first, mask=jnp.asarray(mask))
            return jnp.sum(jnp.where(mask, y, 0) ** 2)

        clean = jax.grad(loss, argnums=(0, 1))(x, gate)
        dirty = jax.grad(loss, argnums=(0, 1))(*(np.where(mask, a, np.float32(np.nan)) for a in (x, gate)))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.where(mask, a, 0), b), clean, dirty)


def test_l2_over_sharded_features(rng):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    x = rng.standard_normal((3, 16)).astype(np.float32)
    mask = rng.random((3, 16)) < 0.6
    mask[:, :4] = False  # two devices see nothing
    spec = jax.sharding.PartitionSpec(None, "model")
    apply = lambda x, mask: nj.l2_norm(axis_name="model").apply({}, {}, x, train=True, mask=mask)[0]
    mapped = jax.jit(jax.shard_map(apply, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    close(mapped(x, mask), nj.l2_normalize(x, mask=jnp.asarray(mask)))
