"""Rules on parameter trees, baking, and messages of bad calls."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj

X = jnp.ones((4, 3))
TREE = {
    "encoder": {"Dense_0": {"kernel": jnp.asarray(1 + np.eye(4, 3), jnp.float32), "bias": jnp.zeros(3)}},
    "head": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)},
}


def test_the_longest_key_wins():
    rules = {"kernel": nj.weight_norm(), "head/kernel": nj.weight_norm(use_scale=False)}
    transform = nj.by_path(rules)
    params, state = transform.init(None, TREE)
    assert jax.tree.map(jnp.shape, params) == {"encoder/Dense_0/kernel": {"scale": (3,)}, "head/kernel": {}}
    effective, _ = transform.apply(params, state, TREE, train=True)
    assert jax.tree.structure(effective) == jax.tree.structure(TREE)
    np.testing.assert_allclose(np.linalg.norm(effective["head"]["kernel"], axis=0), np.ones(2), rtol=1e-6)
    np.testing.assert_array_equal(effective["head"]["bias"], TREE["head"]["bias"])


def test_rules_may_be_functions_and_single_transforms():
    matrices = lambda path, leaf: nj.weight_norm() if leaf.ndim == 2 else None
    params, _ = nj.by_path(matrices).init(None, TREE)
    assert set(params) == {"encoder/Dense_0/kernel", "head/kernel"}
    params, _ = nj.by_path(nj.weight_norm()).init(None, X)
    assert params["."]["scale"].shape == (3,)


def test_each_kernel_draws_its_own_vectors():
    params = {"a": X, "b": X}
    transform = nj.by_path({"a": nj.spectral_norm(init_steps=0), "b": nj.spectral_norm(init_steps=0)})
    _, state = jax.jit(transform.init)(jax.random.key(0), params)
    assert np.any(np.asarray(state["a"]["u"]) != np.asarray(state["b"]["u"]))


def test_baking_of_linen_and_nnx_models(rng):
    x = jax.device_put(np.asarray(rng.standard_normal((2, 4)), jnp.float32))
    wrapped = nj.linen.WeightNorm(nn.Dense(3))
    variables = jax.jit(wrapped.init)(jax.random.key(0), x)
    own = {"kernel": {"scale": jnp.asarray(2 * np.asarray(variables["params"]["layer_instance/kernel/scale"]))}}
    variables["params"]["layer_instance/kernel/scale"] = own["kernel"]["scale"]
    rules = {"kernel": nj.weight_norm(epsilon=1e-12)}
    baked = nj.bake(variables["params"]["layer_instance"], rules, own=own)
    np.testing.assert_array_equal(nn.Dense(3).apply({"params": baked.params}, x), wrapped.apply(variables, x))

    linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    stored = nnx.state(linear, nnx.Param)
    plain = np.array(linear(x))
    baked = nj.bake(stored, rules, own=own)
    assert baked.paths == ("kernel",)
    np.testing.assert_array_equal(linear(x), plain)
    nnx.update(linear, baked.params)
    assert np.any(np.asarray(linear(x)) != plain)


def test_baked_parameters_pass_through_transformations_and_keep_their_tag():
    baked = nj.bake(TREE, {"kernel": nj.weight_standardization()})
    again = jax.jit(lambda baked: jax.tree.map(lambda leaf: 2 * leaf, baked))(baked)
    assert isinstance(again, nj.Baked)
    assert again.paths == baked.paths == ("encoder/Dense_0/kernel", "head/kernel")


def test_baking_is_exact(rng):
    """The effective kernel of a training step and the baked one are the same bits."""
    kernel = jax.device_put(np.asarray(rng.standard_normal((3, 3, 4, 8)), jnp.float32))
    for transform in (nj.weight_standardization(), nj.centred_weight_norm(), nj.scaled_weight_standardization()):
        rules = {"kernel": transform}
        own, _ = nj.by_path(rules).init(None, {"kernel": kernel})
        effective, _ = transform.apply(own["kernel"], {}, kernel, train=True)
        np.testing.assert_array_equal(nj.bake({"kernel": kernel}, rules, own=own).params["kernel"], effective)


SPECTRAL = nj.spectral_norm()
VECTORS = {"u": jnp.ones(3), "v": jnp.ones(4)}
CALLS = {
    "integer kernel": (lambda: nj.weight_normalize(jnp.ones((3, 2), jnp.int32)), TypeError, "int32"),
    "axis out of range": (lambda: nj.weight_standardize(X, feature_axes=2), ValueError, r"feature_axes=2.*rank 2"),
    "axis twice": (lambda: nj.weight_normalize(X, feature_axes=(1, -1)), ValueError, r"\(1, -1\).*twice"),
    "a scalar": (lambda: nj.weight_normalize(jnp.ones(())), ValueError, "rank 0"),
    "no weights": (lambda: nj.weight_normalize(jnp.ones((0, 3))), ValueError, r"\(0, 3\)"),
    "scale of another shape": (lambda: nj.weight_normalize(X, jnp.ones(4)), ValueError, r"scale.*\(4,\).*\(3,\)"),
    "fan-in 1": (lambda: nj.weight_standardize(jnp.ones((1, 1, 1, 8))), ValueError, r"fan-in of 1.*\(1, 1, 1, 8\)"),
    "fan-in 1, scaled": (lambda: nj.scaled_weight_standardize(jnp.ones((1, 8))), ValueError, "fan-in of 1"),
    "fan-in 1, centred": (lambda: nj.centred_weight_normalize(jnp.ones((1, 8))), ValueError, "fan-in of 1"),
    "negative epsilon": (lambda: nj.weight_norm(epsilon=-1.0), ValueError, "-1.0"),
    "infinite epsilon": (lambda: nj.weight_standardization(epsilon=float("inf")), ValueError, "inf"),
    "nan epsilon": (lambda: nj.centred_weight_norm(epsilon=float("nan")), ValueError, "nan"),
    "epsilon mode": (lambda: nj.weight_normalize(X, epsilon_mode="insdie"), ValueError, "'insdie'.*'inside'"),
    "epsilon mode, spectral": (
        lambda: nj.spectral_normalize(X, jnp.ones(3), jnp.ones(4), epsilon_mode="add"),
        ValueError,
        "'add'.*'clamp'",
    ),
    "epsilon of the bound": (lambda: nj.scaled_weight_standardization(epsilon=-1e-4), ValueError, "-0.0001"),
    "epsilon rule": (lambda: nj.scaled_weight_standardization(epsilon_rule="mul"), ValueError, "'mul'.*'add', 'max'"),
    "order": (lambda: nj.spectral_norm(order="jax"), ValueError, "'jax'.*'torch', 'flax'"),
    "negative steps": (lambda: nj.spectral_norm(n_steps=-1), ValueError, "-1"),
    "fractional steps": (lambda: nj.spectral_norm(init_steps=1.5), ValueError, "1.5"),
    "no steps and no v": (lambda: nj.spectral_norm(order="flax", n_steps=0), ValueError, "n_steps=0"),
    "no key": (lambda: nj.spectral_norm().init(None, X), ValueError, "rng=None"),
    "u of another shape": (
        lambda: SPECTRAL.apply({}, {"u": jnp.ones(4), "v": jnp.ones(4)}, X, train=True),
        ValueError,
        r"u has shape \(4,\).*\(3,\)",
    ),
    "spectral of integers": (lambda: SPECTRAL.apply({}, VECTORS, X.astype(int), train=True), TypeError, "int32"),
    "a factory for a transform": (lambda: nj.by_path({"head": nj.weight_norm}).init(None, TREE), TypeError, "called"),
    "a norm for a transform": (lambda: nj.bake(TREE, {"kernel": nj.rms_norm()}), TypeError, "WeightTransform"),
    "a rule for nothing": (lambda: nj.bake(TREE, {"kernle": nj.weight_norm()}), ValueError, "'kernle'"),
    "two rules for one leaf": (
        lambda: nj.bake({"a": {"b": {"kernel": X}}}, {"a/b": nj.weight_norm(), "b/kernel": nj.weight_norm()}),
        ValueError,
        "ambiguous",
    ),
    "state of another tree": (
        lambda: nj.by_path({"kernel": nj.weight_norm()}).apply({}, {}, TREE, train=True),
        ValueError,
        "head/kernel",
    ),
    "baking without scales": (lambda: nj.bake(TREE, {"kernel": nj.weight_norm()}), ValueError, "own="),
    "baking without vectors": (lambda: nj.bake(TREE, {"kernel": nj.spectral_norm()}), ValueError, "state="),
    "baking twice": (
        lambda: nj.bake(nj.bake(TREE, {"kernel": nj.centred_weight_norm()}), {"kernel": nj.centred_weight_norm()}),
        ValueError,
        "baked already.*head/kernel",
    ),
    "no matrix": (
        lambda: nj.linen.SpectralNorm(nn.Conv(2, (3, 3)), error_on_non_matrix=True).init(
            jax.random.key(0), jnp.ones((1, 4, 4, 2)), update_stats=False
        ),
        ValueError,
        r"4D but error_on_non_matrix is True.*\(3, 3, 2, 2\)",
    ),
    "no matrix, nnx": (
        lambda: nj.nnx.SpectralNorm(
            nnx.Conv(2, 2, (3, 3), rngs=nnx.Rngs(0)), error_on_non_matrix=True, rngs=nnx.Rngs(0)
        ),
        ValueError,
        r"4D but error_on_non_matrix is True.*\(3, 3, 2, 2\)",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_message(name):
    call, error, pattern = CALLS[name]
    with pytest.raises(error, match=pattern):
        call()
