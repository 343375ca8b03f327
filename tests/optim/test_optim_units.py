"""Replaced units: which, by what, and what stays the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import optim

EPS32 = float(np.finfo(np.float32).eps)
MODULES = {"first": "second", "second": "head"}


def network(rng, dtype=jnp.float32):
    draw = lambda *shape: jax.device_put(np.asarray(rng.standard_normal(shape), dtype))
    return {
        "first": {"kernel": draw(5, 6), "bias": draw(6)},
        "second": {"kernel": draw(6, 4), "bias": draw(4)},
        "head": {"kernel": draw(4, 2)},
    }


@jax.jit
def hidden(params, x):
    first = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    second = jax.nn.relu(first @ params["second"]["kernel"] + params["second"]["bias"][None])
    return {"first": first, "second": second}, second @ params["head"]["kernel"]


def silenced(params, units):
    """The first layer with units that no input wakes."""
    bias = np.array(params["first"]["bias"])
    bias[units] = -100.0
    return params | {"first": params["first"] | {"bias": jnp.asarray(bias)}}


def renewed(params, activations, outgoing=MODULES, **options):
    """Outside of jit, each of its operations is compiled alone."""
    redo = lambda params, activations: optim.redo(jax.random.key(0), params, activations, outgoing, **options)
    return jax.jit(redo)(params, activations)


def test_dead_units_are_renewed_and_the_function_stays(rng):
    params = silenced(network(rng), [1, 4])
    x = jax.device_put(np.asarray(rng.standard_normal((32, 5)), jnp.float32))
    activations, y = hidden(params, x)
    new, changed = renewed(params, activations, threshold=0.0)
    dead = np.all(np.asarray(activations["second"]) == 0, 0)
    assert np.flatnonzero(np.asarray(changed["first/kernel"])[0]).tolist() == [1, 4]
    assert not np.any(np.asarray(new["second"]["kernel"])[[1, 4]])
    assert not np.any(np.asarray(new["first"]["bias"])[[1, 4]])
    fresh = np.asarray(new["first"]["kernel"])[:, [1, 4]]
    assert np.all(fresh != np.asarray(params["first"]["kernel"])[:, [1, 4]])
    np.testing.assert_array_equal(
        np.delete(new["first"]["kernel"], [1, 4], 1), np.delete(params["first"]["kernel"], [1, 4], 1)
    )
    if not dead.any():
        np.testing.assert_allclose(hidden(new, x)[1], y, rtol=0, atol=16 * EPS32 * np.max(np.abs(np.asarray(y))))


def test_dormant_is_relative_to_the_layer(rng):
    params = network(rng)
    activations = {"first": jnp.array([[1.0, 1, 1, 1, 1, 0.05]]), "second": jnp.ones((1, 4))}
    _, changed = renewed(params, activations, threshold=0.1)
    assert np.flatnonzero(np.asarray(changed["first/kernel"])[0]).tolist() == [5]
    assert not np.any(changed["second/bias"])


def test_norms_can_be_kept(rng):
    params = silenced(network(rng), [0])
    activations, _ = hidden(params, jax.device_put(np.asarray(rng.standard_normal((8, 5)), jnp.float32)))
    norms = lambda p: [np.linalg.norm(p[m]["kernel"]) for m in ("first", "second", "head")]
    kept, _ = renewed(params, activations, threshold=0.0, preserve_norm=True)
    free, _ = renewed(params, activations, threshold=0.0)
    np.testing.assert_allclose(norms(kept), norms(params), rtol=8 * EPS32)
    assert norms(free)[1] < norms(params)[1]


def test_units_of_a_flattened_image_have_many_rows(rng):
    params = {"conv": {"kernel": jnp.ones((3, 3, 2, 4))}, "dense": {"kernel": jnp.ones((3 * 4, 5))}}
    activations = {"conv": jnp.asarray(np.float32([[[[1, 1, 0, 1]]] * 3] * 2))}
    new, _ = optim.redo(jax.random.key(0), params, activations, {"conv": "dense"}, threshold=0.0)
    assert np.flatnonzero(~np.any(np.asarray(new["dense"]["kernel"]), 1)).tolist() == [2, 6, 10]


def test_moments_of_renewed_entries_are_cleared_and_others_stay(rng):
    params = silenced(network(rng, jnp.bfloat16), [2])
    tx = optax.adam(0.1)
    with jax.numpy_dtype_promotion("standard"):
        ones = jax.tree.map(lambda p: jnp.asarray(np.ones(p.shape), p.dtype), params)
        _, state = jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params))(ones, params)
        activations, _ = hidden(params, jnp.ones((4, 5), jnp.bfloat16))
    new, changed = renewed(params, {"first": activations["first"]}, {"first": "second"}, threshold=0.0)
    assert new["first"]["kernel"].dtype == jnp.bfloat16
    cleared = optim.reset_moments(state, changed)
    mu = np.asarray(cleared[0].mu["first"]["kernel"], np.float32)
    dead = np.asarray(changed["first/kernel"])
    assert dead.any()
    assert not mu[dead].any()
    assert mu[~dead].all()
    with pytest.raises(ValueError, match="found none of"):
        optim.reset_moments(optax.sgd(0.1).init(params), changed)


def test_utilities_and_replacements_are_those_of_the_paper(rng):
    """Twenty steps with frozen weights against float64 NumPy: utilities, ages, and how many units went when."""
    params = {
        "first": {"kernel": jnp.zeros((3, 10))},
        "head": {"kernel": jax.device_put(np.asarray(rng.standard_normal((10, 2)), jnp.float32))},
    }
    rate, decay, maturity = 0.03, 0.9, 4
    tx = optim.continual_backprop(
        optax.sgd(0.0), jax.random.key(0), {"first": "head"}, replacement_rate=rate, decay=decay, maturity=maturity
    )

    @jax.jit
    def step(params, state, h):
        updates, state = tx.update(params, state, params, activations={"first": h})
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    utility, age, due, outgoing = np.zeros(10), np.zeros(10, int), 0.0, np.asarray(params["head"]["kernel"], np.float64)
    for _ in range(20):
        h = jax.device_put(np.asarray(rng.standard_normal((4, 10)), jnp.float32))
        params, state = step(params, state, h)
        utility = decay * utility + (1 - decay) * np.mean(np.abs(np.asarray(h, np.float64)), 0) * np.abs(outgoing).sum(
            1
        )
        age += 1
        mature = age > maturity
        due += rate * mature.sum()
        number = min(int(due + 1e-6), mature.sum())
        order = np.argsort(np.where(mature, utility / (1 - decay**age), np.inf))[:number]
        utility[order], age[order], outgoing[order] = 0, 0, 0
        due -= number
        np.testing.assert_array_equal(state.units["first"].age, age)
        np.testing.assert_allclose(state.units["first"].utility, utility, rtol=0, atol=64 * EPS32 * np.max(utility))
        np.testing.assert_allclose(params["head"]["kernel"], outgoing, rtol=0, atol=EPS32 * np.max(np.abs(outgoing)))
    assert (age < 20).any()


def test_continual_backprop_scans_and_clears_moments(rng):
    params = network(rng)
    tx = optim.continual_backprop(
        optax.trace(0.9), jax.random.key(0), MODULES, replacement_rate=0.5, maturity=0, preserve_norm=True
    )
    x = jax.device_put(np.asarray(rng.standard_normal((8, 5)), jnp.float32))

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(
            jax.tree.map(jnp.zeros_like, params), state, params, activations=hidden(params, x)[0]
        )
        return (optax.apply_updates(params, updates), state), None

    (new, state), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, length=3))((params, tx.init(params)))
    assert int(state.count) == 3
    for module in ("first", "second", "head"):
        before, after = (np.linalg.norm(p[module]["kernel"]) for p in (params, new))
        np.testing.assert_allclose(after, before, rtol=64 * EPS32)


@pytest.mark.parametrize(
    ("activations", "outgoing", "message"),
    [
        ({"first": jnp.ones((2, 6))}, {"second": "head"}, "needs the activations of the modules"),
        ({"first": jnp.ones((2, 5))}, {"first": "second"}, r"activations of 'first'.*got shape \(2, 5\)"),
        ({"first": jnp.ones((2, 6))}, {"first": "head"}, "outgoing names"),
        ({"nowhere": jnp.ones((2, 6))}, {"nowhere": "head"}, "'nowhere' is not a module"),
    ],
)
def test_modules_that_do_not_fit_are_named(rng, activations, outgoing, message):
    with pytest.raises(ValueError, match=message):
        optim.redo(jax.random.key(0), network(rng), activations, outgoing)


def test_activations_are_required(rng):
    params = network(rng)
    tx = optim.continual_backprop(optax.sgd(0.1), jax.random.key(0), MODULES)
    with pytest.raises(ValueError, match="continual_backprop needs the activations"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="replacement_rate"):
        optim.continual_backprop(optax.sgd(0.1), jax.random.key(0), MODULES, replacement_rate=2.0)
