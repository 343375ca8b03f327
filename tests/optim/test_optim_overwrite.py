"""`overwrite_with_gradient`: hidden from the optimizer, overwritten by the gradient."""

import flax.linen.fp8_ops
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from normjax import optim
from normjax.backward_state import OVERWRITE_WITH_GRADIENT as KEY

EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(autouse=True)
def _promotion():
    # Optax promotes dtypes itself.
    with jax.numpy_dtype_promotion("standard"):
        yield


def make_params():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jax.device_put(np.asarray(rng.standard_normal(shape), jnp.float32))
    written = {"ema_gz": draw(3), "buffer_gz": draw(4, 3)}
    return {
        "dense": {"kernel": draw(5, 3)},
        "norm": {"0": {"scale": draw(3), KEY: written}, "1": {}},
        "head": {"kernel": draw(3, 2)},
    }


def without(params):
    return {**params, "norm": {"0": {"scale": params["norm"]["0"]["scale"]}, "1": {}}}


def gradients(params, t):
    return jax.tree.map(lambda p: jnp.cos(5 * p + t), params)


def run(tx, params, steps=5, start=0):
    """Parameters and state after the steps, and the parameters before the last one."""

    def step(carry, t):
        params, state = carry
        updates, state = tx.update(gradients(params, t), state, params)
        return (optax.apply_updates(params, updates), state), params

    times = jnp.arange(start, start + steps, dtype=jnp.float32)
    carry, before = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), times))(params)
    return *carry, jax.tree.map(lambda x: np.asarray(x)[-1], before)


INNER = {
    "adam": lambda: optax.adam(0.1),
    "clip, decay": lambda: optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.1, weight_decay=0.5)),
    "nap": lambda: optim.nap(optax.adam(0.1), mask=optim.hidden_weights(readout=("head",)), learning_rate=0.1),
    "default mask": lambda: optax.chain(optax.sgd(0.1), optim.project_weights(), optim.decay_towards_init(0.5)),
    "micro-batches": lambda: optax.MultiSteps(optax.adam(0.1), 2),
    "micro-batches, lifted": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
}


@pytest.mark.parametrize("make", INNER.values(), ids=INNER)
def test_the_optimizer_sees_only_the_rest(make):
    params = make_params()
    new, state, before = run(optim.overwrite_with_gradient(make()), params)
    expected, expected_state, _ = run(make(), without(params))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=8 * EPS, atol=8 * EPS)
    jax.tree.map(close, without(new), expected)
    assert [a.shape for a in jax.tree.leaves(state)] == [a.shape for a in jax.tree.leaves(expected_state)]
    # The last gradient, whatever the optimizer accumulates.
    last = jax.tree.map(lambda p: np.cos(5 * p + np.float32(4)), before)
    jax.tree.map(close, new["norm"]["0"][KEY], last["norm"]["0"][KEY])


def test_overwriting_is_exact_where_it_says_so_and_bounded_elsewhere():
    rng = np.random.default_rng(0)
    old = rng.standard_normal(100_000).astype(np.float32)
    tx = optim.overwrite_with_gradient(optax.sgd(0.1))

    def overwritten(old, new):
        params = {KEY: {"s": jnp.asarray(old)}}
        updates, _ = tx.update({KEY: {"s": jnp.asarray(new)}}, tx.init(params), params)
        return np.asarray(optax.apply_updates(params, updates)[KEY]["s"])

    for new in (old, old * rng.uniform(0.5, 2, old.shape).astype(np.float32)):
        within = np.abs(new) <= 2 * np.abs(old)  # the product of a factor just below 2 may round up
        np.testing.assert_array_equal(overwritten(old, new)[within], new[within])
    np.testing.assert_array_equal(overwritten(np.zeros_like(old), old), old)
    for size in (1e-8, 1e-3, 1.0, 1e3, 1e8):
        new = (size * rng.standard_normal(old.shape)).astype(np.float32)
        error = np.abs(overwritten(old, new).astype(float) - new)
        assert np.all(error <= 2 * EPS * np.maximum(np.abs(old), np.abs(new)))


def test_the_key_is_that_of_flax():
    assert flax.linen.fp8_ops.OVERWRITE_WITH_GRADIENT == KEY


def test_default_masks_never_take_this_state_for_weights():
    params = make_params()
    mask = optim.hidden_weights(readout=("head",))(params)
    assert not any(jax.tree.leaves(mask["norm"]))
    # Even outside the wrapper, where no default mask selects it.
    tx = optim.overwrite_with_gradient(optax.sgd(0.1))
    new, _, _ = run(optax.chain(tx, optim.decay_towards_init(1.0)), params)
    expected, _, _ = run(tx, params)
    np.testing.assert_allclose(new["norm"]["0"][KEY]["ema_gz"], expected["norm"]["0"][KEY]["ema_gz"], rtol=8 * EPS)
    np.testing.assert_allclose(new["head"]["kernel"], params["head"]["kernel"], rtol=8 * EPS)


def test_micro_batches_outside_the_wrapper_average_new_values():
    """What the documentation warns of: the state moves once in two steps, to the mean of two new values."""
    params = {KEY: {"s": jnp.zeros(1)}, "w": jnp.zeros(1)}
    tx = optax.MultiSteps(optim.overwrite_with_gradient(optax.sgd(0.1)), 2)
    state = tx.init(params)
    for value in (2.0, 4.0):
        gradient = jax.tree.map(lambda p, value=value: jnp.full_like(p, value), params)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params[KEY]["s"], 3.0)


def test_extra_arguments_reach_the_optimizer_and_state_survives_orbax(tmp_path):
    params = make_params()
    inner = optim.nap(optax.sgd(0.1), mask=optim.hidden_weights(readout=("head",)))
    tx = optim.overwrite_with_gradient(inner)

    @jax.jit
    def first(params):
        updates, state = tx.update(gradients(params, 0.0), tx.init(params), params, learning_rate=0.25)
        return optax.apply_updates(params, updates), state

    new, state = first(params)
    assert float(optim.effective_learning_rates(state, like="sgd")["dense/kernel"]) == pytest.approx(0.25)
    saved = {"params": new, "state": state}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", saved)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "checkpoint", jax.eval_shape(lambda: saved))
    jax.tree.map(np.testing.assert_array_equal, saved, restored)
