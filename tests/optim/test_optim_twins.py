"""Exact equivalences: a projected network is a free one with another learning rate."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import optim

STEPS, RATE = 240, 0.02
MASK = optim.hidden_weights(readout=("head",))


def make_params():
    rng = np.random.default_rng(0)
    sizes = {"w1": (6, 16), "w2": (16, 16), "head": (16, 3)}
    return {name: jnp.asarray(rng.normal(size=size) / np.sqrt(size[0])) for name, size in sizes.items()}


def normalize(h):
    """Layer norm without epsilon: exactly invariant to the scale of the weights before it."""
    h = h - jnp.mean(h, axis=-1, keepdims=True)
    return h / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True))


def loss(params, x, y):
    h = jnp.tanh(normalize(x @ params["w1"]))
    h = jnp.tanh(normalize(h @ params["w2"]))
    return jnp.mean(jnp.square(h @ params["head"] - y))


def scale_by_path():
    """Per-layer learning rates, passed to update as `scales`."""

    def update(updates, state, params=None, *, scales, **extra):
        return jax.tree.map(lambda u, s: -RATE * s * u, updates, scales), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def run_twins(direction, power, **options):
    """A free run and a projected one whose layer rates are (r/||W||)^power; largest relative difference."""
    inner = optax.chain(direction, scale_by_path())
    free_tx, twin_tx = inner, optim.nap(inner, mask=MASK, **options)
    rng = np.random.default_rng(1)
    data, labels = jnp.asarray(rng.normal(size=(STEPS, 8, 6))), jnp.asarray(rng.normal(size=(STEPS, 8, 3)))

    def norms(params):
        return jax.tree.map(lambda w: jnp.sqrt(jnp.sum(w**2)), params)

    def step(carry, batch):
        (free, free_state), (twin, twin_state) = carry
        ones = jax.tree.map(lambda w: jnp.ones(()), free)
        ratio = jax.tree.map(lambda t, f: (t / f) ** power, norms(twin), norms(free)) | {"head": jnp.ones(())}
        u, free_state = free_tx.update(jax.grad(loss)(free, *batch), free_state, free, scales=ones)
        v, twin_state = twin_tx.update(jax.grad(loss)(twin, *batch), twin_state, twin, scales=ratio)
        return ((optax.apply_updates(free, u), free_state), (optax.apply_updates(twin, v), twin_state)), None

    with jax.numpy_dtype_promotion("standard"):
        params = make_params()

        @jax.jit
        def run(params, batches):
            start = ((params, free_tx.init(params)), (params, twin_tx.init(params)))
            return jax.lax.scan(step, start, batches)[0]

        (free, _), (twin, _) = run(params, (data, labels))
    ratio = {n: np.linalg.norm(free[n]) / np.linalg.norm(twin[n]) for n in ("w1", "w2")} | {"head": 1}
    assert min(ratio["w1"], ratio["w2"]) > 1.01  # the free network must have something to lose
    return max(np.abs(free[n] / ratio[n] - twin[n]).max() / np.abs(twin[n]).max() for n in params)


# By day each optimizer in the mode that makes more of it; SGD in both.
LATER = [1, 7] if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else [7]


@pytest.mark.parametrize("every_k", [1, 7])
def test_sgd_twin(every_k):
    with jax.enable_x64(True):
        assert run_twins(optax.scale(10.0), 2, every_k=every_k) < 1e-12


@pytest.mark.parametrize("every_k", LATER)
def test_momentum_twin_with_rescaled_trace(every_k):
    with jax.enable_x64(True):
        assert run_twins(optax.trace(0.9), 2, every_k=every_k, rescale_moments=True) < 1e-12


@pytest.mark.parametrize("every_k", LATER)
def test_adam_twin_with_rescaled_moments(every_k):
    # Adam's epsilon is not scale invariant; 1e-30 keeps a zero gradient finite and is otherwise nothing.
    with jax.enable_x64(True):
        assert run_twins(optax.scale_by_adam(eps=1e-30), 1, every_k=every_k, rescale_moments=True) < 1e-12


def test_adam_twin_needs_the_rescaling():
    with jax.enable_x64(True):
        assert run_twins(optax.scale_by_adam(eps=1e-30), 1, every_k=7) > 1e-6


def test_amsgrad_twin_rescales_its_maximum_too():
    with jax.enable_x64(True):
        direction = optax.scale_by_amsgrad(eps=1e-30)
        assert run_twins(direction, 1, rescale_moments=True) < 1e-12


@pytest.mark.parametrize("relative_step", [0.1, 0.01])
def test_norm_law_and_its_schedule(relative_step):
    """Tangential steps of size a r: ||W_t|| / r = sqrt(1 + a² t), and the rate falls as scheduled."""
    steps = 2000
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        start = jnp.asarray(rng.normal(size=(8, 8)))
        radius = np.linalg.norm(start)
        directions = jnp.asarray(rng.normal(size=(16, 8, 8)))
        tx = optim.track_effective_lr(RATE)

        def step(carry, index):
            params, state = carry
            n, w = directions[index % 16], params["w"]
            tangent = n - w * jnp.sum(n * w) / jnp.sum(w * w)
            update = {"w": relative_step * radius * tangent / jnp.sqrt(jnp.sum(tangent**2))}
            updates, state = tx.update(update, state, params)
            rate = optim.effective_learning_rates(state)["w"]
            return (optax.apply_updates(params, updates), state), (optim.weight_motion(state)["w"], rate)

        @jax.jit
        def run(params):
            measured = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[1]
            return measured, jax.vmap(optim.norm_growth_schedule(RATE, relative_step))(jnp.arange(steps))

        (motion, rates), schedule = run({"w": start})
        t = np.arange(steps)
        law = np.sqrt(1 + relative_step**2 * t)
        # Rounding makes each step orthogonal to 1e-16 only; these errors add up at most linearly.
        rtol = steps * 2.0**-52
        np.testing.assert_allclose(motion.growth, law, rtol=rtol)
        np.testing.assert_allclose(motion.relative_update, relative_step / law, rtol=rtol)
        np.testing.assert_allclose(motion.rotation, np.arctan(relative_step / law), rtol=rtol)
        np.testing.assert_allclose(rates, schedule, rtol=rtol)


def test_effective_rate_is_constant_under_projection():
    rng = np.random.default_rng(0)
    params = {"w": jax.device_put(np.asarray(rng.normal(size=(128, 128)), jnp.float32))}
    grads = jax.device_put(np.asarray(rng.normal(size=(16, 128, 128)), jnp.float32))
    tx = optim.nap(optax.sgd(RATE), mask=True, learning_rate=RATE)

    def step(carry, index):
        params, state = carry
        updates, state = tx.update({"w": grads[index % 16]}, state, params)
        return (optax.apply_updates(params, updates), state), optim.effective_learning_rates(state)["w"]

    carry = (params, tx.init(params))
    (final, _), rates = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(500)))(carry)
    np.testing.assert_allclose(rates, RATE, rtol=1e-6)
    np.testing.assert_allclose(
        RATE / np.linalg.norm(np.float64(final["w"])),
        RATE / np.linalg.norm(np.float64(params["w"])),
        rtol=1e-6,
    )
