"""Plasticity metrics against NumPy in float64 and closed forms; probes of both Flax APIs; NormGrad's outer products."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import diagnostics as d

EPS32 = float(np.finfo(np.float32).eps)


def wide(a):
    return np.asarray(a, np.float64)


def test_units_of_images_count_every_position(rng):
    a = np.maximum(rng.normal(size=(6, 5, 5, 8)), 0).astype(np.float32)
    a[..., 2] = 0
    a[..., 3] = 1e-20
    a[0, 0, 0, 4] = 0
    a[..., 4] += np.float32(0)
    a[..., 5] *= np.float32(1e-3)
    mean = wide(a).mean((0, 1, 2))
    scores = mean / mean.mean()
    assert float(d.dead_units(a)) == 1 / 8
    assert float(d.linearised_units(a)) == 2 / 8
    assert float(d.active_fraction(a)) == pytest.approx((a > 0).mean(), rel=4 * EPS32)
    # A mean of 150 positive numbers errs by at most 150 roundings.
    np.testing.assert_allclose(d.dormant_scores(a), scores, rtol=150 * EPS32)
    assert float(d.dormant_units(a)) == (scores <= 0.025).mean() == 3 / 8
    assert float(d.dormant_units(a, threshold=0.0)) == 1 / 8


def test_active_fraction_of_a_bounded_nonlinearity():
    a = jnp.asarray(np.tanh([[-4.0, 0.5], [0.0, 4.0]]), jnp.float32)
    assert float(d.active_fraction(a, low=-0.99, high=0.99)) == 0.5


def test_silent_layers_have_finite_metrics():
    zeros = jnp.zeros((4, 3))
    units = (d.dead_units, d.linearised_units, d.dormant_units, d.active_fraction)
    ranks = (d.feature_rank, d.srank, d.stable_rank, d.effective_rank)
    found, measured = jax.jit(lambda x: ([f(x) for f in units], [f(x) for f in ranks]))(zeros)
    assert [float(x) for x in found] == [1, 1, 1, 0]
    assert [float(x) for x in measured] == [0, 0, 0, 0]


def test_ranks_are_functions_of_the_singular_values(rng):
    left, right = (np.linalg.qr(rng.normal(size=(n, 8)))[0] for n in (40, 12))
    s = np.array([4.0, 2.0, 1.0, 0.5, 0.1, 0.05, 0.02, 1e-4])
    f = jnp.asarray((left * s) @ right.T, jnp.float32)
    p = s / s.sum()
    # The singular values of a rounded matrix are off by some roundings of the largest.
    noise = 40 * EPS32
    assert int(d.feature_rank(f)) == 6
    assert int(d.feature_rank(f, tolerance=0.3)) == 2
    assert int(d.srank(f)) == 1 + int((np.cumsum(s) < 0.99 * s.sum()).sum()) == 5
    assert int(d.srank(f, delta=0.4)) == 2
    assert float(d.stable_rank(f)) == pytest.approx((s**2).sum() / s[0] ** 2, rel=noise)
    entropy = -(p * np.log(p)).sum()
    assert float(d.effective_rank(f)) == pytest.approx(np.exp(entropy), rel=12 * noise * -np.log(noise))
    # Positions of an image are inputs like any other.
    assert int(d.feature_rank(f.reshape(4, 10, 12))) == 6


def test_trees_are_measured_by_path_in_float32(rng):
    then = {"a": {"w": rng.normal(size=(3, 4))}, "b": rng.normal(size=5), "count": np.int32(3)}
    now = {"a": {"w": then["a"]["w"] + 1e-6}, "b": -2 * then["b"], "count": np.int32(4)}
    tree = [jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.ndim else jnp.int32), t) for t in (now, then)]
    lengths = {"a/w": np.linalg.norm(now["a"]["w"]), "b": np.linalg.norm(now["b"])}
    found = d.weight_norms(tree[0])
    assert set(found) == set(lengths)
    for path, n in lengths.items():
        assert float(found[path]) == pytest.approx(n, rel=8 * EPS32)
    assert float(d.global_norm(tree[0])) == pytest.approx(np.hypot(*lengths.values()), rel=8 * EPS32)
    distances, angles = d.weight_distances(*tree), d.weight_rotations(*tree)
    assert float(distances["b"]) == pytest.approx(3 * np.linalg.norm(then["b"]), rel=8 * EPS32)
    assert float(angles["b"]) == pytest.approx(np.pi, rel=8 * EPS32)
    coarse = {"w": jnp.full(4096, 0.3, jnp.bfloat16)}
    assert float(d.global_norm(coarse)) == pytest.approx(64 * float(jnp.bfloat16(0.3)), rel=8 * EPS32)


@pytest.mark.parametrize("angle", [1e-5, 1.0, 3.0])
def test_rotation_keeps_small_angles_and_ignores_length(angle):
    now = {"w": jnp.array([5 * np.cos(angle), 5 * np.sin(angle), 0.0], jnp.float32)}
    turned = d.weight_rotations(now, {"w": jnp.array([1.0, 0.0, 0.0])})
    # Rounded coordinates move the direction by a rounding; the arc cosine of 1 - 5e-11 would be zero in float32.
    assert float(turned["w"]) == pytest.approx(angle, rel=4 * EPS32, abs=EPS32 * angle)


def test_jacobian_and_tangent_kernel_of_a_known_function(rng):
    w, x = (jax.device_put(np.asarray(rng.normal(size=size), jnp.float32)) for size in ((3, 2), (5, 3)))
    jacobians = [np.diag(1 - np.tanh(wide(row) @ wide(w)) ** 2) @ wide(w).T for row in x]
    norm = np.sqrt(np.mean([(j**2).sum() for j in jacobians]))
    assert float(d.jacobian_norm(lambda x: jnp.tanh(x @ w), x)) == pytest.approx(norm, rel=32 * EPS32)
    # d tanh(x W)_k / d W_ik = x_i (1 - tanh²)_k
    slopes = 1 - np.tanh(wide(x) @ wide(w)) ** 2
    kernel = (wide(x) @ wide(x).T) * (slopes @ slopes.T)
    fn = lambda params, x: jnp.tanh(x @ params["w"])
    np.testing.assert_allclose(d.neural_tangent_kernel(fn, {"w": w}, x), kernel, atol=32 * EPS32 * kernel.max())
    assert int(d.ntk_rank(lambda p, x: x @ p["w"], {"w": w}, x)) == np.linalg.matrix_rank(wide(x), tol=1e-1)
    assert int(d.ntk_rank(lambda p, x: 0 * (x @ p["w"]), {"w": w}, x)) == 0


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        dense = nn.Dense(3)
        x = nn.BatchNorm(use_running_average=not train)(dense(x))
        self.sow("intermediates", "relu", nn.relu(x))
        return dense(nn.relu(x))


def test_linen_probe_sees_modules_calls_and_sown_values(rng):
    x = jax.device_put(np.asarray(rng.normal(size=(4, 3)), jnp.float32))
    variables = jax.jit(lambda key: Linen().init(key, x, True))(jax.random.key(0))
    found = jax.jit(lambda v, x: d.linen_activations(Linen(), v, x, True, mutable=("batch_stats",)))(variables, x)
    assert set(found) == {"Dense_0/0", "Dense_0/1", "BatchNorm_0", "relu", "."}
    np.testing.assert_array_equal(found["relu"], np.maximum(found["BatchNorm_0"], 0))
    np.testing.assert_array_equal(found["."], found["Dense_0/1"])
    only = jax.jit(lambda v: d.linen_activations(Linen(), v, x, False, where=lambda path: path == "relu"))(variables)
    assert set(only) == {"relu"}
    with pytest.raises(ValueError, match=r"selects none of the captured activations \['\.', 'BatchNorm_0'"):
        jax.eval_shape(
            lambda v: d.linen_activations(Linen(), v, x, False, where=lambda path: path == "gelu"), variables
        )


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = jax.nn.relu(self.norm(layer(x)))
        self.sow(nnx.Intermediate, "features", x)
        return x


def test_nnx_probe_leaves_the_model_as_it_is(rng):
    x = jax.device_put(np.asarray(rng.normal(size=(4, 3)), jnp.float32))
    model = Nnx(nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    found = d.nnx_activations(model, x)
    assert set(found) == {"layers/0", "layers/1", "norm/0", "norm/1", "features", "."}
    np.testing.assert_array_equal(found["features"], np.maximum(found["norm/1"], 0))
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model)), before)
    assert d.nnx_activations(model, x, where=lambda path: path.startswith("layers")).keys() == {"layers/0", "layers/1"}


def _patches(x):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.stack(shifts, 3)


@pytest.mark.parametrize("layer", ["conv1x1", "conv3x3", "conv3x3_depthwise", "scaling", "bias"])
def test_maps_are_those_of_the_outer_product(rng, layer):
    x, g = rng.normal(size=(2, 2, 4, 5, 3))
    entries = {
        "conv1x1": x[..., :, None] * g[..., None, :],
        "conv3x3": _patches(x)[..., None] * g[..., None, None, :],
        "conv3x3_depthwise": _patches(x) * g[..., None, :],
        "scaling": x * g,
        "bias": g,
    }[layer].reshape(*x.shape[:3], -1)
    oracle = {
        "norm": np.sqrt((entries**2).sum(-1)),
        "filter_norm": np.sqrt((np.maximum(entries, 0) ** 2).sum(-1)),
        "sum": entries.sum(-1),
        "max": entries.max(-1),
    }
    narrow = [jnp.asarray(a, jnp.float32) for a in (x, g)]
    size = np.abs(entries).sum(-1).max()  # of the summands, which cancel
    maps = jax.jit(lambda x, g: {a: d.normgrad_map(x, g, layer=layer, aggregation=a) for a in oracle})(*narrow)
    for aggregation, expected in oracle.items():
        found = maps[aggregation]
        np.testing.assert_allclose(found, expected, atol=8 * EPS32 * size, err_msg=aggregation)


def test_affine_gradients_are_those_of_a_norm_before_their_sum(rng):
    x, g = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(2, 6, 4)))
    found = d.per_position_affine_grads(x, g)
    affine = lambda scale, bias: jnp.sum((x * scale[None] + bias[None]) * g)
    expected = jax.jit(jax.grad(affine, argnums=(0, 1)))(jnp.ones(4), jnp.zeros(4))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.sum(mine, 0), theirs, atol=64 * EPS32)


def test_saliency_is_resized_and_spans_the_unit_interval():
    maps = np.stack([np.arange(6.0).reshape(2, 3), np.full((2, 3), 7.0)]).astype(np.float32)
    found = np.asarray(jax.jit(lambda maps: d.saliency(maps, (4, 6)))(maps))
    assert found.shape == (2, 4, 6)
    assert float(found[0].min()) == 0
    assert float(found[0].max()) == 1
    assert not found[1].any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: d.dead_units(jnp.zeros((2, 3), jnp.int32)), TypeError, "real floating input, got dtype int32"),
        (lambda: d.dead_units(jnp.zeros(3)), ValueError, r"at least one axis of inputs, got \(3,\)"),
        (lambda: d.effective_rank(jnp.zeros((0, 3))), ValueError, "they hold no elements"),
        (lambda: d.dormant_units(jnp.ones((2, 3)), -1.0), ValueError, "never negative, got -1.0"),
        (lambda: d.active_fraction(jnp.ones((2, 3)), low=1.0, high=0.0), ValueError, "low=1.0 and high=0.0"),
        (lambda: d.srank(jnp.ones((2, 3)), delta=1.0), ValueError, "delta between 0 and 1, got delta=1.0"),
        (lambda: d.feature_rank(jnp.ones((2, 3)), tolerance=0.0), ValueError, "tolerance between 0 and 1"),
        (lambda: d.global_norm({"n": jnp.int32(1)}), ValueError, "no floating-point leaf"),
        (lambda: d.weight_distances({"a": jnp.ones(2)}, {"b": jnp.ones(2)}), ValueError, r"missing \['a'\]"),
        (lambda: d.jacobian_norm(lambda x: x, jnp.zeros((2, 3), jnp.int32)), TypeError, "floating inputs, got int32"),
        (lambda: d.normgrad_map(jnp.ones((2, 3)), jnp.ones((2, 3))), ValueError, "expected images"),
        (lambda: d.normgrad_map(*[jnp.ones((1, 2, 2, 1))] * 2, layer="conv"), ValueError, "layer='conv' is unknown"),
        (lambda: d.per_position_affine_grads(jnp.ones(2), jnp.ones(3)), ValueError, r"\(2,\) .* \(3,\) differ"),
        (lambda: d.saliency(jnp.ones((2, 2)), (2, 2)), ValueError, r"got shape \(2, 2\)"),
    ],
)
def test_bad_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()
