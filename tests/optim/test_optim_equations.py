"""Twenty steps of each transform against its equation in float64 NumPy; sharded, and through a checkpoint."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from normjax import optim

STEPS = 20
START = np.random.default_rng(0).standard_normal((8, 4))
GRADIENTS = np.random.default_rng(1).standard_normal((STEPS, 8, 4))
# Half of them nearly orthogonal to the start's columns, so that a test of the cosine goes both ways.
GRADIENTS[::2] -= START * np.sum(START * GRADIENTS[::2], 1, keepdims=True) / np.sum(START**2, 0)


def size(x, axes=None):
    return np.sqrt(np.sum(x**2, axes, keepdims=True))


def tangent(w, u, axes=None):
    return u - w * np.sum(w * u, axes, keepdims=True) / size(w, axes) ** 2


def traced(rule):
    """A rule of (weights, gradient, momentum), with SGD's momentum."""

    def step(w, g, m):
        m = g + (0 if m is None else 0.9 * m)
        return rule(w, g, m), m

    return step


def plain(rule):
    """A rule of (weights, update)."""
    return lambda w, u, memory: (rule(w, u), None)


def adamp(w, g, u):
    for axes in (None, 0):
        cosine = np.max(np.abs(np.sum(w * g, axes, keepdims=True)) / size(w, axes) / size(g, axes))
        count = w.size if axes is None else w.shape[0]
        if cosine < 0.5 / np.sqrt(count):
            projected = tangent(w, u, axes)
            stepped = projected
        elif axes is None:
            stepped = u
    return w - 0.05 * stepped


def hyperball(w, u):
    w = w + 0.1 * size(START) * u / size(u)
    return size(START) * w / size(w)


def clip(w, u):
    return (w + u) * np.minimum(1, 2.0 / size(w + u, 0))


def rotate(w, u, memory):
    mean, t = (0.0, 0) if memory is None else memory
    across, r = tangent(w, u, 0), size(START, 0)
    mean, t = 0.9 * mean + 0.1 * size(across, 0) ** 2, t + 1
    w = w + 0.1 * r * across / np.sqrt(mean / (1 - 0.9**t))
    return r * w / size(w, 0), (mean, t)


def effective(power, w, u):
    return w - 0.05 * (size(w) / size(START)) ** power * u


def implicit(power, w, u, f):
    f = size(START) if f is None else f
    u = u * (size(w) / f) ** power
    return w + u, f * size(w + u) / size(w)


def projected(w, u):
    return np.sqrt(2 * 4) * (w + u) / size(w + u)


def shrunk(w, u):
    return 0.9 * (w + u) + 0.01 * START


def scaled(tx):
    """Updates of a tenth of the gradients' size, so that twenty steps stay near the start."""
    return optax.chain(optax.scale(-0.1), tx)


def tenth(step):
    return lambda w, g, memory: step(w, -0.1 * g, memory)


always = {"mask": True}
TWINS = {
    "project_updates": (
        optax.chain(optim.project_updates(optax.trace(0.9), axes=0, **always), optax.scale(-0.05)),
        traced(lambda w, g, m: w - 0.05 * tangent(w, m, 0)),
    ),
    "project_updates, AdamP's test": (
        optax.chain(optim.project_updates(optax.trace(0.9), threshold=0.5, axes=0, **always), optax.scale(-0.05)),
        traced(adamp),
    ),
    "hyperball": (scaled(optim.hyperball(0.1, **always)), tenth(plain(hyperball))),
    "clip_weights": (scaled(optim.clip_weights(2.0, axes=0, **always)), tenth(plain(clip))),
    "rotate_weights": (scaled(optim.rotate_weights(0.1, decay=0.9, axes=0, **always)), tenth(rotate)),
    "scale_by_effective_lr, adam": (
        optim.scale_by_effective_lr(0.05, **always),
        plain(functools.partial(effective, 1)),
    ),
    "scale_by_effective_lr, sgd": (
        optim.scale_by_effective_lr(0.05, like="sgd", **always),
        plain(functools.partial(effective, 2)),
    ),
    "implicit_schedule, adam": (
        scaled(optim.implicit_schedule(**always)),
        tenth(functools.partial(implicit, 1)),
    ),
    "implicit_schedule, sgd": (
        scaled(optim.implicit_schedule(like="sgd", **always)),
        tenth(functools.partial(implicit, 2)),
    ),
    "project_weights, radius of the fan": (
        scaled(optim.project_weights(optim.fan_radius(2.0), **always)),
        tenth(plain(projected)),
    ),
    "shrink_and_perturb": (
        scaled(optim.shrink_and_perturb(jax.random.key(0), 0.9, lambda key, path, w: 0.01 * jnp.asarray(START))),
        tenth(plain(shrunk)),
    ),
    "scale_by_rewarmed_schedule": (
        optim.scale_by_rewarmed_schedule(lambda t: 0.1 * (1 - jnp.asarray(t, float) / 30)),
        lambda w, g, t: (w - 0.1 * (1 - (0 if t is None else t) / 30) * g, 1 if t is None else t + 1),
    ),
}
every_twin = pytest.mark.parametrize("name", TWINS)


def run(tx, params, gradients):
    """All steps as one compiled loop."""

    @jax.jit
    def loop(params, gradients):
        def step(carry, g):
            params, state = carry
            updates, state = tx.update({"kernel": g}, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), gradients)[0]

    return loop(params, gradients)


@every_twin
def test_20_steps_are_those_of_the_equation(name):
    tx, rule = TWINS[name]
    expected, memory = START, None
    for gradient in GRADIENTS:
        expected, memory = rule(expected, gradient, memory)
    with jax.enable_x64(True):
        ours, _ = run(tx, {"kernel": jnp.asarray(START)}, jnp.asarray(GRADIENTS))
    np.testing.assert_allclose(ours["kernel"], expected, rtol=0, atol=1e-12 * np.max(np.abs(expected)))


def test_the_cosine_test_goes_both_ways():
    kinds = {adamp(START, g, g).tobytes() == (START - 0.05 * g).tobytes() for g in GRADIENTS}
    assert kinds == {True, False}


@every_twin
def test_sharded_equals_replicated_and_state_survives_a_checkpoint(name, tmp_path):
    tx, _ = TWINS[name]
    params, gradients = {"kernel": jnp.asarray(START, jnp.float32)}, jnp.asarray(GRADIENTS[:3], jnp.float32)
    alone, _ = run(tx, params, gradients)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))
    placed = {"kernel": split(params["kernel"], P("data"))}
    sharded, state = run(tx, placed, split(gradients, P(None, "data")))
    assert sharded["kernel"].sharding.is_equivalent_to(placed["kernel"].sharding, 2)
    np.testing.assert_allclose(
        sharded["kernel"], alone["kernel"], rtol=0, atol=3 * 16 * 2.0**-23 * np.max(np.abs(START))
    )
    if jax.tree.leaves(state):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", state)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: state))
        jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_muon_on_the_ball_keeps_norms_and_orthogonal_steps():
    tx = optax.chain(optax.contrib.muon(0.02, adam_learning_rate=1e-3), optim.hyperball(0.05, **always))
    params = {"kernel": jnp.asarray(START, jnp.float32)}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = jax.jit(tx.update)({"kernel": jnp.asarray(GRADIENTS[0], jnp.float32)}, tx.init(params), params)
    after = np.asarray(params["kernel"] + updates["kernel"], np.float64)
    np.testing.assert_allclose(size(after), size(START), rtol=16 * 2.0**-23)
    # Muon's direction has equal singular values, up to the five Newton-Schulz steps: it is far from the gradient's.
    share = after * (size(START) / size(after)) - START
    values = np.linalg.svd(share - START * np.sum(share * START) / np.sum(START**2), compute_uv=False)
    gradient = np.linalg.svd(GRADIENTS[0], compute_uv=False)
    assert values[0] / values[-1] < gradient[0] / gradient[-1]


def test_noise_has_its_deviation_and_a_restored_run_repeats_it():
    tx = optim.shrink_and_perturb(jax.random.key(0), 1.0, 0.5)
    params = {"kernel": jnp.zeros((100, 100))}
    state = tx.init(params)
    first, later = tx.update(params, state, params)
    again, _ = tx.update(params, state, params)
    second, _ = tx.update(params, later, params)
    np.testing.assert_array_equal(first["kernel"], again["kernel"])
    assert not np.array_equal(first["kernel"], second["kernel"])
    # The deviation of 10,000 draws is off by 0.7 % on average.
    assert abs(float(np.std(first["kernel"])) - 0.5) < 0.02


def test_schedules_start_again():
    schedule = optim.rewarm_schedule(optax.linear_schedule(1.0, 0.0, 4), 3)
    assert [float(schedule(t)) for t in range(6)] == [1.0, 0.75, 0.5, 1.0, 0.75, 0.5]
    told = optim.rewarm_schedule(optax.linear_schedule(1.0, 0.0, 4), [2, 3])
    assert [float(jax.jit(told)(t)) for t in range(5)] == [1.0, 0.75, 1.0, 1.0, 0.75]


def test_the_equilibrium_is_where_weight_decay_and_growth_balance():
    """Random tangential Adam-like steps with decoupled decay settle at the rotation that the formula gives."""
    rng, w, rate, decay, momentum = np.random.default_rng(0), np.ones(1000), 0.01, 0.2, 0.9
    mean, angles = np.zeros(1000), []
    for step in range(4000):
        mean = momentum * mean + (1 - momentum) * tangent(w, rng.standard_normal(1000))
        new = w * (1 - rate * decay) - rate * mean
        if step > 3000:
            cosine = np.dot(w, new) / np.linalg.norm(w) / np.linalg.norm(new)
            angles.append(np.arccos(cosine))
        w = new
    expected = optim.equilibrium_rotation(rate, decay, momentum=momentum)
    # Steps of unit variance stand for Adam's; their norm and the transient leave a few percent.
    assert abs(np.mean(angles) / expected - 1) < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optim.hyperball(-1.0), "learning_rate|negative"),
        (lambda: optim.rotate_weights(0.1, decay=1.0), r"decay .* in \[0, 1\), got 1.0"),
        (lambda: optim.project_updates(threshold=0.0), "threshold .* positive, got 0.0"),
        (lambda: optim.fan_radius(0.0), "scale .* positive, got 0.0"),
        (lambda: optim.shrink_and_perturb(jax.random.key(0), 1.5), r"shrink .* in \[0, 1\], got 1.5"),
        (lambda: optim.shrink_and_perturb(jax.random.key(0), 0.5, -1.0), "noise .* negative, got -1.0"),
        (lambda: optim.scale_by_effective_lr(0.1, like="other"), "like"),
        (lambda: optim.rewarm_schedule(optax.constant_schedule(1.0), [3, 2]), r"increasing steps, got \[3, 2\]"),
        (lambda: optim.rewarm_schedule(optax.constant_schedule(1.0), 0), "at least one step"),
        (lambda: optim.equilibrium_rotation(0.1, -1.0), "weight_decay must not be negative"),
        (lambda: optim.fan_radius()("bias", np.ones(3)), "finds no input axis of 'bias'"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_noise_of_another_shape_is_refused():
    tx = optim.shrink_and_perturb(jax.random.key(0), 0.5, lambda key, path, w: jnp.ones(3))
    params = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=r"noise for 'kernel' has shape \(3,\), expected \(2, 2\)"):
        tx.update(params, tx.init(params), params)
