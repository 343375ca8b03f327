"""What the family of weight-norm control promises beyond its update equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import optim
from tests.optim.test_optim_twins import MASK, RATE, loss, make_params

STEPS = 60


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def differences(free_tx, *twin_txs, weights=("w1", "w2")):
    """How far the directions of each projected run are from the free one's, relatively, and how much that one grew."""
    rng = np.random.default_rng(1)

    def step(carry, batch):
        new = []
        for tx, (params, state) in zip((free_tx, *twin_txs), carry, strict=True):
            updates, state = tx.update(jax.grad(loss)(params, *batch), state, params)
            new.append((optax.apply_updates(params, updates), state))
        return tuple(new), None

    with jax.enable_x64(True):
        data = jnp.asarray(rng.normal(size=(STEPS, 8, 6))), jnp.asarray(rng.normal(size=(STEPS, 8, 3)))
        params = make_params()

        @jax.jit
        def run(params, data):
            start = tuple((params, tx.init(params)) for tx in (free_tx, *twin_txs))
            return [params for params, _ in jax.lax.scan(step, start, data)[0]]

        free, *twins = jax.tree.map(np.float64, run(params, data))
    found = []
    for twin in twins:
        growth = {n: np.linalg.norm(free[n]) / np.linalg.norm(twin[n]) for n in weights}
        worst = max(np.abs(free[n] / growth.get(n, 1) - twin[n]).max() / np.abs(twin[n]).max() for n in free)
        found.append((worst, min(growth.values())))
    return found


# Adam's epsilon is not scale invariant; 1e-30 keeps a zero gradient finite and is otherwise nothing.
ADAM = optax.chain(optax.scale_by_adam(eps=1e-30), optax.scale(-RATE))
SGD = optax.scale(-20 * RATE)


@pytest.mark.parametrize(
    ("inner", "like", "options"),
    [(SGD, "sgd", {}), (SGD, "sgd", {"every_k": 7}), (ADAM, "adam", {"rescale_moments": True})],
    ids=["sgd", "sgd_every_7", "adam"],
)
def test_the_implicit_schedule_makes_the_exact_twin_of_a_free_run(inner, like, options):
    implicit = optim.implicit_schedule(like=like, mask=MASK)
    twin, bare = (optim.nap(tx, mask=MASK, **options) for tx in (optax.chain(inner, implicit), inner))
    (worst, growth), (without, _) = differences(inner, twin, bare)
    assert growth > 1.01
    assert worst < 1e-12
    assert without > 1e-4


def test_a_free_run_at_a_stated_effective_rate_is_the_projected_one():
    def schedule(count):
        # optax's linear schedule is float32 for integer counts.
        return 20 * RATE * (1 - 0.9 * count.astype(float) / STEPS)

    free = optim.scale_by_effective_lr(schedule, like="sgd", mask=MASK)
    ((worst, growth),) = differences(free, optim.nap(optax.sgd(schedule), mask=MASK))
    assert growth > 1.01
    assert worst < 1e-12


def test_muonh_moves_matrices_by_the_stated_share_and_the_rest_by_adam():
    rng = np.random.default_rng(0)
    sizes = {"hidden": (6, 5), "head": (5, 2), "bias": (5,)}
    params = {name: jax.device_put(np.asarray(rng.normal(size=size), jnp.float32)) for name, size in sizes.items()}
    muon = optax.contrib.muon(0.3, adam_learning_rate=1e-3)
    tx = optax.chain(muon, optim.hyperball(0.02), optim.track_effective_lr())
    grads = jax.tree.map(lambda p: jnp.asarray(np.cos(5 * np.asarray(p))), params)
    # Without jit Muon's iterations compile one by one.
    first = lambda tx: jax.jit(lambda grads, params: tx.update(grads, tx.init(params), params))(grads, params)
    (updates, state), (plain, _) = first(tx), first(muon)
    # Two programs: five iterations of slope 3.4445 amplify a rounding of the orthogonal factor by 485.
    tolerance = 512 * 2.0**-23
    np.testing.assert_allclose(updates["bias"], plain["bias"], rtol=64 * 2.0**-23)
    np.testing.assert_allclose(updates["head"], plain["head"], rtol=0, atol=tolerance)
    old, new = np.float64(params["hidden"]), np.float64(params["hidden"]) + np.float64(updates["hidden"])
    direction = np.float64(plain["hidden"]) / np.linalg.norm(plain["hidden"])
    moved = old + 0.02 * np.linalg.norm(old) * direction
    np.testing.assert_allclose(new, moved * np.linalg.norm(old) / np.linalg.norm(moved), rtol=0, atol=tolerance)
    assert float(optim.weight_motion(state)["hidden"].rotation) < 0.0203


def test_rotation_of_adamw_settles_where_the_formula_says():
    """Random gradients, weights of one scale: the walk's rotation after three decay times, to 5 %."""
    rate, decay, momentum, steps = 0.01, 1.0, 0.9, 600
    tx = optax.chain(optax.adamw(rate, b1=momentum, b2=0.99, weight_decay=decay), optim.track_effective_lr())

    def step(carry, key):
        params, state = carry
        updates, state = tx.update({"w": jax.random.normal(key, (32, 32))}, state, params)
        return (optax.apply_updates(params, updates), state), optim.weight_motion(state)["w"].rotation

    params = {"w": jnp.full((32, 32), 0.1)}
    keys = jax.random.split(jax.random.key(0), steps)
    _, rotation = jax.jit(lambda c: jax.lax.scan(step, c, keys))((params, tx.init(params)))
    expected = optim.equilibrium_rotation(rate, decay, momentum=momentum)
    # 300 steps, whose sizes correlate over 1 / (1 - momentum), of 1024 weights: the mean is good to below 1 %; the
    # formula neglects terms of relative order rate * decay / (1 - momentum), 10 %, squared once more.
    assert np.mean(rotation[-300:]) == pytest.approx(expected, rel=0.05)


def test_a_rewarmed_schedule_told_of_its_tasks_is_the_one_that_knew_them():
    cosine, starts = optax.warmup_cosine_decay_schedule(0.0, 1.0, 3, 10), [4, 9]
    tx, known = optim.scale_by_rewarmed_schedule(cosine), optim.rewarm_schedule(cosine, starts)

    def step(state, t):
        updates, state = tx.update(jnp.ones(()), state, new_task=(t == 4) | (t == 9))
        return state, -updates

    _, told = jax.jit(lambda: jax.lax.scan(step, tx.init(None), jnp.arange(14)))()
    np.testing.assert_array_equal(told, jax.jit(jax.vmap(known))(jnp.arange(14)))
    periodic = optim.rewarm_schedule(cosine, 5)
    assert [float(periodic(t)) for t in (0, 5, 7)] == [float(cosine(t)) for t in (0, 0, 2)]


@pytest.mark.parametrize(
    ("shape", "axes", "in_axes", "expected"),
    [
        ((3, 8), None, None, np.sqrt(16)),
        ((3, 8), 0, None, np.sqrt(2)),
        ((3, 3, 4, 8), None, None, np.sqrt(16)),
        ((5, 3, 8), (1, 2), None, np.sqrt(16)),
        ((6, 2, 4), (0, 2), None, np.sqrt(8)),
        ((8, 3), -1, 1, np.sqrt(2)),
    ],
    ids=["matrix", "neuron", "conv", "scanned", "head", "transposed"],
)
def test_fan_radius_is_the_mean_norm_of_he_initialisation(shape, axes, in_axes, expected):
    radius = optim.fan_radius(2.0, axes=axes, in_axes=in_axes)
    assert radius("w", np.zeros(shape)) == pytest.approx(expected, rel=1e-12)


def test_tract_turns_the_gradient_of_a_scale_invariant_layer_away_from_the_tangent():
    rng = np.random.default_rng(0)
    spread = np.array([2, 1, 1, 0.5, 0.25, 0.1])
    x, w, target = rng.normal(size=(64, 6)) * spread, rng.normal(size=(6, 8)), rng.normal(size=(64, 8))
    with jax.enable_x64(True):
        params, x, target = {"w": jnp.asarray(w)}, jnp.asarray(x), jnp.asarray(target)

        def loss(params):
            z = x @ params["w"]
            z = z - jnp.mean(z, 0, keepdims=True)
            return jnp.mean((z / jnp.sqrt(jnp.mean(z**2, 0, keepdims=True)) - target) ** 2)

        tx = optim.scale_by_tract(0.1)

        @jax.jit
        def run(params):
            grads = jax.grad(loss)(params)
            return grads, tx.update(grads, tx.init(params), covariance={"w": optim.input_covariance(x)})[0]

        grads, scaled = run(params)

    def cosines(g, axis):
        w, g = np.asarray(params["w"]), np.asarray(g["w"])
        return np.abs(np.sum(w * g, axis) / np.linalg.norm(w, axis=axis) / np.linalg.norm(g, axis=axis))

    assert np.max(cosines(grads, 0)) < 1e-13
    # What the docstring of scale_by_tract says.
    assert np.max(cosines(scaled, 0)) == pytest.approx(0.46, abs=0.01)
    assert cosines(scaled, None) == pytest.approx(0.15, abs=0.01)


def network():
    rng = np.random.default_rng(0)
    kernel = lambda *shape: jax.device_put(np.asarray(rng.normal(size=shape), jnp.float32))
    return {
        "conv": {"kernel": kernel(2, 2, 1, 3), "bias": kernel(3)},
        "dense": {"kernel": kernel(12, 5), "bias": kernel(5)},
        "head": {"kernel": kernel(5, 2)},
    }


@pytest.mark.parametrize("preserve_norm", [False, True])
def test_redo_resets_dormant_units_of_flattened_images_too(preserve_norm):
    params = network()
    images = np.ones((4, 2, 2, 3), np.float32)
    images[..., 1] = 0.0
    hidden = np.ones((4, 5), np.float32)
    hidden[:, 2:4] = 0.01
    key, following = jax.random.key(0), {"conv": "dense", "dense": ("head",)}
    activations = {"conv": images, "dense": hidden}
    new, changed = jax.jit(lambda params: optim.redo(key, params, activations, following, preserve_norm=preserve_norm))(
        params
    )
    assert np.all(np.asarray(changed["conv/bias"]) == [False, True, False])
    assert np.all(np.asarray(new["conv"]["bias"])[1] == 0)
    # Channel 1 of each of the four positions of the image, and both dormant units of the next layer.
    rows = np.arange(12) % 3 == 1
    np.testing.assert_array_equal(np.asarray(new["dense"]["kernel"])[rows], 0)
    np.testing.assert_array_equal(np.asarray(new["head"]["kernel"])[2:4], 0)
    for module in params:
        old, reset = (np.float64(tree[module]["kernel"]) for tree in (params, new))
        touched = np.asarray(changed[f"{module}/kernel"])
        assert np.any(old[touched] != reset[touched])
        if preserve_norm:
            # A few float32 roundings of the norm.
            assert np.linalg.norm(reset) == pytest.approx(np.linalg.norm(old), rel=16 * 2.0**-23)
        else:
            np.testing.assert_array_equal(reset[~touched], old[~touched])
            assert np.linalg.norm(reset) != pytest.approx(np.linalg.norm(old), rel=1e-3)


def test_reset_moments_leave_the_other_entries():
    params = network()
    tx = optax.chain(optax.clip(1.0), optax.adam(0.1))
    _, state = jax.jit(lambda params: tx.update(params, tx.init(params), params))(params)
    mask = np.zeros((5, 2), bool)
    mask[2] = True
    new = optim.reset_moments(state, {"head/kernel": mask})
    for field in ("mu", "nu"):
        before, after = (np.asarray(getattr(s[1][0], field)["head"]["kernel"]) for s in (state, new))
        np.testing.assert_array_equal(after, np.where(mask, 0, before))
    assert new[1][0].mu["conv"]["bias"] is state[1][0].mu["conv"]["bias"]


def test_noise_depends_on_the_step_and_the_leaf_and_not_on_the_history():
    params = {"a": jnp.zeros(64), "b": jnp.zeros(64)}
    tx = optim.shrink_and_perturb(jax.random.key(0), 0.5, 0.1)
    state = tx.init(params)
    first, later = tx.update(params, state, params)
    again, _ = tx.update(params, state, params)
    second, _ = tx.update(params, later, params)
    np.testing.assert_array_equal(first["a"], again["a"])
    for other in (first["b"], second["a"]):
        assert np.all(np.asarray(first["a"]) != np.asarray(other))
    # The standard deviation of 64 samples: 0.1 within four standard errors, 0.1 / sqrt(128) each.
    assert np.std(first["a"]) == pytest.approx(0.1, abs=0.04)


KEY = jax.random.key(0)
P = {"dense": {"kernel": jnp.ones((2, 3))}, "head": {"kernel": jnp.ones((3, 1))}}
FOLLOWING = {"dense": "head"}


def updated(tx, **extra):
    return tx.update(P, tx.init(P), P, **extra)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optim.fan_radius(0.0), "must be positive, got 0.0"),
        (lambda: optim.fan_radius()("b", np.zeros(3)), "no input axis of 'b'"),
        (lambda: optim.hyperball(-0.1), "must not be negative, got -0.1"),
        (lambda: optim.rotate_weights(0.1, decay=1.0), r"in \[0, 1\), got 1.0"),
        (lambda: optim.equilibrium_rotation(0.1, -1.0), "weight_decay must not be negative"),
        (lambda: optim.equilibrium_rotation(0.1, 0.1, momentum=1.0), "momentum lies in"),
        (lambda: optim.equilibrium_rotation(0.1, 0.1, like="lion"), "got 'lion'"),
        (lambda: optim.project_updates(threshold=0.0), "must be positive, got 0.0"),
        (lambda: optim.effective_lr_schedule(0.1, like="lion"), "got 'lion'"),
        (lambda: optim.scale_by_effective_lr(-0.1), "must not be negative"),
        (lambda: optim.implicit_schedule(like="lion"), "got 'lion'"),
        (lambda: optim.shrink_and_perturb(KEY, 1.5), r"in \[0, 1\], got 1.5"),
        (lambda: optim.shrink_and_perturb(KEY, noise=-1.0), "must not be negative, got -1.0"),
        (lambda: updated(optim.shrink_and_perturb(KEY, noise=lambda *_: jnp.ones(7))), r"shape \(7,\)"),
        (lambda: optim.rewarm_schedule(lambda t: t, 0), "at least one step"),
        (lambda: optim.rewarm_schedule(lambda t: t, [5, 5]), "increasing steps"),
        (lambda: optim.rewarm_schedule(lambda t: t, []), "increasing steps"),
        (lambda: optim.scale_by_tract(0.0), "must be positive, got 0.0"),
        (lambda: updated(optim.scale_by_tract()), "needs the inputs' covariance"),
        (lambda: updated(optim.scale_by_tract(), covariance={"dense": jnp.eye(3)}), "has 2 inputs"),
        (lambda: updated(optim.scale_by_tract(), covariance={"other": jnp.eye(2)}), "covariance names"),
        (lambda: optim.input_covariance(jnp.ones(3)), "at least one row"),
        (lambda: optim.patch_covariance(jnp.ones((1, 4, 4, 1)), (2,)), "one size of the window"),
        (lambda: optim.redo(KEY, P, {"dense": jnp.ones((2, 3))}, FOLLOWING, threshold=-1.0), "never negative"),
        (lambda: optim.redo(KEY, P, {}, FOLLOWING), "redo needs the activations"),
        (lambda: optim.redo(KEY, P, {"dense": jnp.ones((2, 4))}, FOLLOWING), "with 3 units"),
        (lambda: optim.redo(KEY, P, {"dense": jnp.ones((2, 3))}, {"dense": "dense"}), "to have 3 inputs"),
        (lambda: optim.redo(KEY, P, {"x": jnp.ones((2, 3))}, {"x": "head"}), "'x' is not a module"),
        (lambda: optim.reset_moments(optax.sgd(0.1).init(P), {"head/kernel": np.ones((3, 1))}), "none of"),
        (lambda: updated(optim.continual_backprop(optax.sgd(0.1), KEY, FOLLOWING)), "needs the activations"),
        (lambda: optim.continual_backprop(optax.sgd(0.1), KEY, FOLLOWING, replacement_rate=2.0), "got 2.0"),
        (lambda: optim.continual_backprop(optax.sgd(0.1), KEY, FOLLOWING, decay=1.0), "got 1.0"),
    ],
)
def test_bad_calls_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_types_say_what_came():
    with pytest.raises(TypeError, match="a constant has nothing to restart"):
        optim.scale_by_rewarmed_schedule(0.1)
    with pytest.raises(TypeError, match="int32"):
        optim.input_covariance(jnp.ones((2, 2), jnp.int32))
