"""What the projection does to numbers: norms, slices, radii, intervals, rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import optim

EPS = 2.0**-23  # spacing of float32 at one


def norm64(x, axis=None):
    return np.sqrt(np.sum(np.square(np.asarray(x, np.float64)), axis=axis))


def step(tx, params, updates, state=None):
    new, state = tx.update(updates, tx.init(params) if state is None else state, params)
    with jax.numpy_dtype_promotion("standard"):
        return optax.apply_updates(params, new), state


def tree(seed=0, shape=(5, 6)):
    rng = np.random.default_rng(seed)
    return {"w": jax.device_put(np.asarray(rng.normal(size=shape), jnp.float32))}


def test_against_the_equation_in_float64():
    p, u = tree(0), tree(1)
    new, state = step(optim.project_weights(mask=True), p, u)
    p64, u64 = np.asarray(p["w"], np.float64), np.asarray(u["w"], np.float64)
    expected = (p64 + u64) * norm64(p64) / norm64(p64 + u64)
    # u' = s - p and p + u' round once each relative to entries of size max|p|.
    np.testing.assert_allclose(new["w"], expected, rtol=0, atol=8 * EPS * np.abs(p64).max())
    np.testing.assert_allclose(state.radii["w"], norm64(p64), rtol=8 * EPS)


@pytest.mark.parametrize(
    ("shape", "axes", "kept"),
    [
        ((4, 5, 6), (1, 2), (4,)),
        ((6, 3, 5), (0, 2), (3,)),
        ((6, 5), 0, (5,)),
        ((6, 5), -1, (6,)),
        ((6, 5), None, ()),
    ],
    ids=["scanned", "per_head", "fan_in", "negative", "whole"],
)
def test_axes_give_one_norm_per_slice(shape, axes, kept):
    p, u = tree(0, shape), tree(1, shape)

    @jax.jit
    def run(p, u):
        given = (axes, {"w": axes}, lambda path, leaf: axes)
        return [step(optim.project_weights(mask=True, axes=a), p, u) for a in given]

    (new, state), (by_path, _), (by_call, _) = run(p, u)
    assert state.radii["w"].shape == kept
    np.testing.assert_allclose(norm64(new["w"], axes), norm64(p["w"], axes), rtol=8 * EPS)
    np.testing.assert_array_equal(new["w"], by_path["w"])
    np.testing.assert_array_equal(new["w"], by_call["w"])


def test_a_scanned_stack_equals_its_layers_projected_one_by_one():
    p, u = tree(0, (4, 5, 6)), tree(1, (4, 5, 6))
    together, _ = step(optim.project_weights(mask=True, axes=(1, 2)), p, u)
    for layer in range(4):
        alone, _ = step(optim.project_weights(mask=True), {"w": p["w"][layer]}, {"w": u["w"][layer]})
        np.testing.assert_allclose(together["w"][layer], alone["w"], rtol=0, atol=8 * EPS)


@pytest.mark.parametrize(
    "radius",
    [3.0, {"w": 3.0}, {"w": np.float32(3.0)}, lambda path, leaf: 3.0 if path == "w" else None],
    ids=["number", "tree", "array", "callable"],
)
def test_explicit_radius(radius):
    new, state = step(optim.project_weights(radius, mask=True), tree(0), tree(1))
    assert state.radii["w"].dtype == jnp.float32
    np.testing.assert_allclose(norm64(new["w"]), 3.0, rtol=8 * EPS)


def test_radius_per_slice_and_init_inside_a_path_dict():
    params = {"a": tree(0)["w"], "b": tree(1)["w"]}
    radii = {"a": jnp.arange(1.0, 7.0), "b": "init"}
    tx = optim.project_weights(radii, mask=True, axes=0)
    new, _ = jax.jit(lambda p: step(tx, p, jax.tree.map(jnp.cos, p)))(params)
    np.testing.assert_allclose(norm64(new["a"], 0), np.arange(1.0, 7.0), rtol=8 * EPS)
    np.testing.assert_allclose(norm64(new["b"], 0), norm64(params["b"], 0), rtol=8 * EPS)


def test_radius_is_the_stored_one_not_the_previous_norm():
    p = tree(0)
    tx = optim.project_weights(mask=True)
    state = tx.init(p)
    elsewhere, _ = step(tx, jax.tree.map(lambda x: 3 * x, p), tree(1), state)
    np.testing.assert_allclose(norm64(elsewhere["w"]), norm64(p["w"]), rtol=8 * EPS)


def test_zero_weights_and_zero_slices_are_left_alone():
    w = np.array(tree(0, (3, 4))["w"])
    w[1] = 0
    p = {"zero": jnp.zeros((3, 4)), "w": jnp.asarray(w)}
    u = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), p)
    tx = optim.project_weights(mask=True, axes={"w": 1})
    new, _ = jax.tree.map(np.asarray, jax.jit(lambda p, u: step(tx, p, u))(p, u))
    np.testing.assert_array_equal(new["zero"], u["zero"])
    np.testing.assert_array_equal(new["w"][1], u["w"][1])
    np.testing.assert_allclose(norm64(new["w"][0]), norm64(p["w"][0]), rtol=8 * EPS)
    # A step onto the origin has no direction to keep; it must not become NaN.
    onto_zero, _ = step(optim.project_weights(mask=True), tree(0), jax.tree.map(lambda x: -np.asarray(x), tree(0)))
    np.testing.assert_array_equal(onto_zero["w"], np.zeros((5, 6)))


def test_a_nan_update_is_not_hidden():
    w = np.array(tree(1)["w"])
    w[0, 0] = np.nan
    new, _ = step(optim.project_weights(mask=True), tree(0), {"w": jnp.asarray(w)})
    assert np.isnan(np.asarray(new["w"])[0, 0])


def test_every_k_projects_every_kth_step_and_leaves_the_others_exact():
    tx = optim.project_weights(mask=True, every_k=3)
    params, state, radius = tree(0), tx.init(tree(0)), norm64(tree(0)["w"])
    for index in range(1, 7):
        u = jax.tree.map(lambda x: 0.3 * x, tree(index))
        updates, state = tx.update(u, state, params)
        params = optax.apply_updates(params, updates)
        assert int(state.count) == index
        if index % 3:
            np.testing.assert_array_equal(updates["w"], u["w"])
        else:
            np.testing.assert_allclose(norm64(params["w"]), radius, rtol=8 * EPS)


def test_unselected_leaves_pass_unchanged():
    params = {"w": tree(0)["w"], "head": tree(1)["w"], "steps": jnp.int32(3)}
    updates = {"w": tree(2)["w"], "head": tree(3)["w"], "steps": jnp.int32(1)}
    new, state = optim.project_weights().update(updates, optim.project_weights().init(params), params)
    assert set(state.radii) == {"w"}
    assert new["head"] is updates["head"]
    assert new["steps"] is updates["steps"]


def test_weight_decay_is_an_effective_learning_rate():
    p, u, a = tree(0), tree(1), 0.1
    project = optim.project_weights(mask=True)
    after = jax.jit(lambda u: step(project, p, u)[0])
    decayed = after(jax.tree.map(lambda x, y: y - a * x, p, u))
    rescaled = after(jax.tree.map(lambda y: y / (1 - a), u))
    plain = after(u)
    scale = np.abs(np.asarray(p["w"])).max()
    np.testing.assert_allclose(decayed["w"], rescaled["w"], rtol=0, atol=16 * EPS * scale)
    assert np.abs(np.asarray(decayed["w"]) - np.asarray(plain["w"])).max() > 1e3 * EPS


def test_stored_radius_does_not_drift_in_bfloat16():
    rng = np.random.default_rng(0)
    params = {"w": jax.device_put(np.asarray(rng.normal(size=(64, 64)), jnp.bfloat16))}
    noise = jax.device_put(np.asarray(rng.normal(size=(16, 64, 64)), jnp.float32))
    tx = optim.project_weights(mask=True)
    radius = norm64(params["w"])

    def body(carry, index):
        params, state = carry
        w, n = params["w"].astype(jnp.float32), noise[index % 16]
        tangent = n - w * jnp.sum(n * w) / jnp.sum(w * w)
        update = {"w": 0.01 * jnp.sqrt(jnp.sum(w * w) / jnp.sum(tangent**2)) * tangent}
        updates, state = tx.update(update, state, params)
        with jax.numpy_dtype_promotion("standard"):
            return (optax.apply_updates(params, updates), state), None

    (final, _), _ = jax.jit(lambda c: jax.lax.scan(body, c, jnp.arange(5000)))((params, tx.init(params)))
    assert final["w"].dtype == jnp.bfloat16
    assert np.any(np.asarray(final["w"]) != np.asarray(params["w"]))
    assert abs(norm64(final["w"]) / radius - 1) < 1e-4


def test_bfloat16_norms_are_summed_in_float32():
    params = {"w": jax.device_put(np.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.bfloat16))}
    state = optim.project_weights(mask=True).init(params)
    # A bfloat16 sum would be off by up to 2^-9; float32 pairwise sums of n terms by about log2(n) roundings.
    np.testing.assert_allclose(state.radii["w"], norm64(params["w"]), rtol=12 * EPS)


def test_decay_reaches_its_target_geometrically():
    start, away = tree(0), tree(1)
    tx = optim.decay_towards_init(0.25)
    state, params = tx.init(start), away
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)
    towards = jax.jit(lambda params, state: step(tx, params, zeros, state))
    for _ in range(8):
        params, state = towards(params, state)
    expected = np.asarray(start["w"], np.float64)
    expected = expected + 0.75**8 * (np.asarray(away["w"], np.float64) - expected)
    np.testing.assert_allclose(params["w"], expected, rtol=0, atol=16 * EPS * np.abs(np.asarray(away["w"])).max())


def test_decay_targets_by_name_schedules_and_arrays():
    params = {"norm": {"scale": jnp.full(3, 3.0), "bias": jnp.full(3, 4.0)}, "w": jnp.full((2, 2), 5.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    named = optim.decay_towards_init(
        lambda count: 0.5 / (1.0 + count.astype(jnp.float32)), target={"scale": 1.0, "bias": 0.0}
    )
    towards = jax.jit(lambda params, state: step(named, params, zeros, state))
    once, state = towards(params, named.init(params))
    assert set(state.targets) == {"norm/scale", "norm/bias"}
    twice, _ = towards(once, state)
    np.testing.assert_allclose(twice["norm"]["scale"], 2.0 - 0.25, rtol=4 * EPS)
    np.testing.assert_allclose(twice["norm"]["bias"], 2.0 * 0.75, rtol=4 * EPS)
    np.testing.assert_array_equal(twice["w"], params["w"])
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), params)
    whole, _ = jax.jit(lambda params: step(optim.decay_towards_init(1.0, target=ones), params, zeros))(params)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, np.ones_like(x)), whole)


def test_decay_keeps_its_own_copy_of_the_initial_values():
    params = tree(0)
    state = optim.decay_towards_init(0.1).init(params)
    assert state.targets["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()
