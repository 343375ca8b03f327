"""In optax wrappers, linen, nnx and orbax; policies for scales and offsets; telemetry."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from normjax import optim

EPS = 2.0**-23
HIDDEN = optim.hidden_weights(readout=("head",))


@pytest.fixture(autouse=True)
def _promotion():
    # Optax and Flax promote dtypes themselves; strictness of our own code is the battery's subject.
    with jax.numpy_dtype_promotion("standard"):
        yield


def make_params(seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"a": (4, 6), "b": (6, 6), "head": (6, 2)}
    return {name: jax.device_put(np.asarray(rng.normal(size=size), jnp.float32)) for name, size in sizes.items()}


def norms(params):
    return {name: np.linalg.norm(np.float64(w)) for name, w in params.items()}


@functools.cache
def compiled_step(tx, **extra):
    @jax.jit
    def step(params, state, index):
        grads = jax.tree.map(lambda p: jnp.cos(5 * p + index), params)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


def run(tx, params, steps, **extra):
    step, state = compiled_step(tx, **extra), tx.init(params)
    for index in range(steps):
        params, state = step(params, state, jnp.float32(index))
    assert step._cache_size() == 1
    return params, state


def assert_projected(params, new, names=("a", "b")):
    for name, before in norms(params).items():
        after = np.linalg.norm(np.float64(new[name]))
        if name in names:
            assert after == pytest.approx(before, rel=8 * EPS)
        else:
            assert abs(after / before - 1) > 1e-4


def test_nap_inside_multi_steps_projects_each_emitted_step():
    params = make_params()
    tx = optax.MultiSteps(optim.nap(optax.adam(0.1), mask=HIDDEN, learning_rate=0.1), 3)
    new, state = run(tx, params, 6)
    assert_projected(params, new)
    assert int(state.inner_opt_state.count) == 2
    assert optim.effective_learning_rates(state)["a"] == pytest.approx(0.1, rel=8 * EPS)


def test_injected_learning_rates_are_found():
    params, schedule = make_params(), optax.linear_schedule(0.1, 0.0, 10)
    outer = optax.inject_hyperparams(lambda learning_rate: optim.nap(optax.sgd(learning_rate), mask=HIDDEN))(schedule)
    inner = optim.nap(optax.inject_hyperparams(optax.sgd)(schedule), mask=HIDDEN)
    beside = optax.chain(
        optax.inject_hyperparams(optax.sgd)(schedule),
        optim.project_weights(mask=HIDDEN),
        optim.track_effective_lr(),
    )
    for tx in (outer, inner, beside):
        new, state = run(tx, params, 4)
        assert_projected(params, new)
        # The rate of step number 3, the fourth.
        assert optim.effective_learning_rates(state)["a"] == pytest.approx(0.07, rel=1e-6)


def test_project_weights_itself_can_be_injected():
    params = make_params()
    factory = optax.inject_hyperparams(optim.project_weights, static_args=("mask", "axes"))
    new, state = run(optax.chain(optax.sgd(0.1), factory(radius=2.0, every_k=2, mask=HIDDEN)), params, 4)
    assert norms(new)["a"] == pytest.approx(2.0, rel=8 * EPS)
    assert int(state[1].hyperparams["every_k"]) == 2


def test_learning_rate_as_an_extra_argument_wins():
    tx = optim.nap(optax.sgd(0.1), mask=HIDDEN, learning_rate=0.5)
    _, state = run(tx, make_params(), 2, learning_rate=0.25)
    assert optim.effective_learning_rates(state, like="sgd")["b"] == pytest.approx(0.25, rel=8 * EPS)


def test_masked_and_partition():
    params = make_params()
    masked = optax.masked(optim.nap(optax.sgd(0.1), mask=True, learning_rate=0.1), HIDDEN)
    new, state = run(masked, params, 3)
    assert_projected(params, new)
    assert set(optim.weight_motion(state)) == {"a", "b"}

    groups = {
        "fast": optim.nap(optax.inject_hyperparams(optax.adam)(0.1), mask=True),
        "slow": optim.nap(optax.inject_hyperparams(optax.sgd)(0.01), mask=True),
        "free": optax.inject_hyperparams(optax.sgd)(0.5),
    }
    new, state = run(optax.partition(groups, {"a": "fast", "b": "slow", "head": "free"}), params, 3)
    assert_projected(params, new)
    rates = optim.effective_learning_rates(state)
    assert rates["a"] == pytest.approx(0.1, rel=8 * EPS)
    assert rates["b"] == pytest.approx(0.01, rel=8 * EPS)


def test_rescaled_moments_inside_wrapped_optimizers():
    params = make_params()
    inner = optax.inject_hyperparams(optax.adam)(0.1)
    wrapped, _ = run(optim.nap(inner, mask=HIDDEN, rescale_moments=True), params, 4)
    plain, _ = run(optim.nap(optax.adam(0.1), mask=HIDDEN, rescale_moments={"mu": 1, "nu": 2}), params, 4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=64 * EPS * 3), wrapped, plain)


def test_scanned_layers_equal_separate_layers_with_moments():
    layers = [make_params(seed)["b"] for seed in range(3)]
    options = {"mask": True, "rescale_moments": True, "every_k": 2, "learning_rate": 0.1}
    stack = jnp.asarray(np.stack(layers))
    stacked, state = run(optim.nap(optax.adam(0.1), axes=(1, 2), **options), {"layers": stack}, 4)
    single_tx = optim.nap(optax.adam(0.1), **options)
    for index, layer in enumerate(layers):
        alone, single = run(single_tx, {"layers": layer}, 4)
        np.testing.assert_allclose(np.asarray(stacked["layers"])[index], alone["layers"], rtol=0, atol=256 * EPS)
        rates = (
            optim.effective_learning_rates(state)["layers"],
            optim.effective_learning_rates(single)["layers"],
        )
        np.testing.assert_allclose(np.asarray(rates[0])[index], rates[1], rtol=64 * EPS)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
        x = nn.LayerNorm()(nn.Dense(8, use_bias=False, kernel_init=init, name="hidden")(x))
        return nn.Dense(2, name="head")(nn.relu(x))


def test_linen_train_state_and_partitioned_boxes():
    params = jax.jit(Net().init)(jax.random.key(0), jnp.ones((1, 4)))["params"]
    assert isinstance(params["hidden"]["kernel"], nn.Partitioned)
    tx = optim.nap(optax.adam(0.1), scale_offset="decay", rate=0.1, rescale_moments=True, learning_rate=0.1)
    state = TrainState.create(apply_fn=Net().apply, params=params, tx=tx)
    state = state.replace(step=jnp.asarray(0, jnp.int32))  # a Python int would compile once more by itself
    assert not any(isinstance(r, nn.Partitioned) for r in state.opt_state.radii.values())
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)

    @jax.jit
    def step(state):
        return state.apply_gradients(
            grads=jax.grad(lambda p: jnp.sum(state.apply_fn({"params": p}, x) ** 2))(state.params)
        )

    for _ in range(3):
        state = step(state)
    assert step._cache_size() == 1
    assert list(optim.effective_learning_rates(state)) == ["hidden/kernel"]
    before, after = (p["hidden"]["kernel"].value for p in (params, state.params))
    assert norms({"w": after})["w"] == pytest.approx(norms({"w": before})["w"], rel=8 * EPS)
    specs = nn.get_partition_spec(jax.eval_shape(tx.init, params))
    assert specs.radii["hidden/kernel"] == jax.sharding.PartitionSpec()
    assert specs.inner_state[0].mu["hidden"]["kernel"] == jax.sharding.PartitionSpec("in", "out")


def test_decay_targets_keep_the_sharding_metadata_of_their_parameters():
    params = jax.eval_shape(Net().init, jax.random.key(0), jnp.ones((1, 4)))["params"]
    specs = nn.get_partition_spec(jax.eval_shape(optim.decay_towards_init(0.1).init, params))
    assert specs.targets["hidden/kernel"] == jax.sharding.PartitionSpec("in", "out")


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 8, use_bias=False, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.hidden(x))))


make_model = nnx.jit(lambda: Model(nnx.Rngs(0)))


@pytest.mark.parametrize("policy", ["free", "decay", "joint"])
def test_nnx_optimizer(policy):
    model = make_model()
    before = np.float64(model.hidden.kernel[...])
    rate = 0.1 if policy == "decay" else None
    tx = optim.nap(optax.adam(0.1), scale_offset=policy, rate=rate, rescale_moments=True, learning_rate=0.1)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(x) ** 2))(model))

    for _ in range(3):
        step(model, optimizer)
    assert np.linalg.norm(np.float64(model.hidden.kernel[...])) == pytest.approx(np.linalg.norm(before), rel=8 * EPS)
    assert np.any(np.asarray(model.hidden.kernel[...]) != before)
    for state in (optimizer.opt_state, optimizer):
        assert list(optim.effective_learning_rates(state)) == ["hidden/kernel"]
    if policy == "joint":
        joint = np.hypot(np.linalg.norm(model.norm.scale[...]), np.linalg.norm(model.norm.bias[...]))
        assert joint == pytest.approx(np.sqrt(8), rel=8 * EPS)


@pytest.mark.parametrize("transform", ["project", "decay", "track"])
def test_other_transforms_in_an_nnx_optimizer_with_a_tree_mask(transform):
    model = make_model()
    mask = jax.tree.map(lambda x: x.ndim > 1, nnx.state(model, nnx.Param))
    makers = {
        "project": lambda: optim.project_weights(mask=mask),
        "decay": lambda: optim.decay_towards_init(0.5, mask=mask),
        "track": lambda: optim.track_effective_lr(0.1, mask=mask),
    }
    optimizer = nnx.Optimizer(model, optax.chain(optax.sgd(0.1), makers[transform]()), wrt=nnx.Param)
    gradients = nnx.jit(nnx.grad(lambda m: jnp.sum(m(jnp.ones((1, 4))) ** 2)))(model)
    optimizer.update(model, gradients)
    assert int(optimizer.opt_state[1].count[...]) == 1


def affine_params():
    return {
        "norm": {"scale": jnp.full(4, 2.0), "bias": jnp.full(4, 1.0)},
        "rms": {"scale": jnp.full(3, 3.0)},
        "hidden": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
    }


@pytest.mark.parametrize(("policy", "rate"), [("free", None), ("decay", 0.25), ("joint", None)])
def test_scale_and_offset_policies(policy, rate):
    params, mask = affine_params(), {"hidden/kernel": True, "bias": False, "scale": False}
    tx = optim.nap(optax.sgd(1.0), mask=mask, scale_offset=policy, rate=rate)

    @jax.jit
    def step(params):
        grads = jax.tree.map(lambda p: jnp.full_like(p, -1.0), params)
        updates, state = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates), state

    new, state = step(params)
    shrink = np.sqrt((4 * 4 + 4 * 1) / (4 * 9 + 4 * 4))
    expected = {"free": (3.0, 2.0, 4.0), "decay": (2.75, 1.75, 3.75), "joint": (3 * shrink, 2 * shrink, 3.0)}[policy]
    np.testing.assert_allclose(new["norm"]["scale"], expected[0], rtol=8 * EPS)
    np.testing.assert_allclose(new["norm"]["bias"], expected[1], rtol=8 * EPS)
    np.testing.assert_allclose(new["rms"]["scale"], expected[2], rtol=8 * EPS)
    np.testing.assert_array_equal(new["hidden"]["bias"], 2.0)
    keys = {"free": set(), "decay": {"norm/scale", "norm/bias", "rms/scale"}, "joint": {"norm", "rms"}}
    assert set(state.affine) == keys[policy]


def test_joint_norm_per_scanned_layer_and_other_names():
    params = {"ln": {"gamma": np.ones((2, 4)), "beta": np.zeros((2, 4))}, "w": np.ones((2, 4, 4))}
    params = jax.tree.map(jnp.float32, params)
    tx = optim.nap(
        optax.sgd(1.0),
        mask={"w": True, "ln": False},
        axes={"w": (1, 2), "ln": 1},
        scale_offset="joint",
        scale_offset_names=("gamma", "beta"),
    )
    grads = {
        "ln": {"gamma": -np.array([[1.0], [2.0]]) * np.ones((2, 4)), "beta": np.zeros((2, 4))},
        "w": np.zeros((2, 4, 4)),
    }

    @jax.jit
    def step(params, grads):
        updates, state = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates), state

    new, state = step(params, jax.tree.map(jnp.float32, grads))
    assert state.affine["ln"].shape == (2,)
    np.testing.assert_allclose(new["ln"]["gamma"], 1.0, rtol=8 * EPS)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.relu(nn.LayerNorm()(nn.Dense(4, use_bias=False, name="dense")(x))), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(2, name="head")(layers(name="layers")(x, None)[0])


@functools.cache
def stack_params():
    return jax.jit(Stack().init)(jax.random.key(0), jnp.ones((3, 4)))["params"]


@pytest.mark.parametrize("policy", ["free", "decay", "joint"])
def test_a_stack_scanned_by_linen_has_one_radius_per_layer(policy):
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)
    params = stack_params()
    kernel = params["layers"]["dense"]["kernel"]
    tx = optim.nap(
        optax.adam(0.1),
        axes={"layers/dense/kernel": (1, 2), "layers/LayerNorm_0": 1},
        scale_offset=policy,
        rate=0.1 if policy == "decay" else None,
        rescale_moments=True,
        learning_rate=0.1,
    )
    state = TrainState.create(apply_fn=Stack().apply, params=params, tx=tx)

    @jax.jit
    def step(state):
        gradient = jax.grad(lambda p: jnp.sum(state.apply_fn({"params": p}, x) ** 2))
        return state.apply_gradients(grads=gradient(state.params))

    for _ in range(3):
        state = step(state)
    moved = state.params["layers"]["dense"]["kernel"]
    assert state.opt_state.radii["layers/dense/kernel"].shape == (3,)
    np.testing.assert_allclose(
        np.linalg.norm(np.float64(moved), axis=(1, 2)), np.linalg.norm(np.float64(kernel), axis=(1, 2)), rtol=8 * EPS
    )
    assert np.abs(np.asarray(moved) - np.asarray(kernel)).max() > 0.01
    if policy == "joint":
        affine = state.params["layers"]["LayerNorm_0"]
        joint = np.hypot(*(np.linalg.norm(np.float64(affine[name]), axis=1) for name in ("scale", "bias")))
        np.testing.assert_allclose(joint, 2.0, rtol=8 * EPS)


def test_rotation_is_right_for_tiny_and_large_angles():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(8, 8)).astype(np.float32)
    direction = rng.normal(size=(8, 8)).astype(np.float32)
    tx = optim.track_effective_lr()
    for size in (1e-7, 1e-4, 1.0, 30.0):
        u = np.float32(size) * direction
        _, state = tx.update({"w": jnp.asarray(u)}, tx.init({"w": jnp.asarray(w)}), {"w": jnp.asarray(w)})
        w64, u64 = np.float64(w), np.float64(u)
        along = np.sum(w64 * u64) / np.linalg.norm(w64)
        across = np.linalg.norm(u64 - along * w64 / np.linalg.norm(w64))
        motion = optim.weight_motion(state)["w"]
        # arccos of the cosine would return 0 or 5e-4 for the smallest.
        np.testing.assert_allclose(motion.rotation, np.arctan2(across, np.linalg.norm(w64) + along), rtol=32 * EPS)
        np.testing.assert_allclose(motion.relative_update, np.linalg.norm(u64) / np.linalg.norm(w64), rtol=32 * EPS)


def test_rotation_of_a_radial_step_is_small_against_its_size():
    w = jax.device_put(np.asarray(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32))
    tx = optim.track_effective_lr()
    _, state = tx.update({"w": -0.1 * w}, tx.init({"w": w}), {"w": w})
    motion = optim.weight_motion(state)["w"]
    # sqrt(|u|² - along²) with sums of 64 terms, each norm good to about two roundings.
    assert float(motion.rotation) <= np.sqrt(4 * EPS) * 0.1 / 0.9


def test_tracking_interval_keeps_the_last_measurement_and_updates_pass_untouched():
    params = make_params()
    tx = optim.track_effective_lr(0.1, every_k=3)
    state = tx.init(params)
    for index in range(5):
        updates = jax.tree.map(lambda p, scale=1.0 + index: scale * p, params)
        out, state = tx.update(updates, state, params)
        assert out is updates
        measured = 1.0 + 3 * (index // 3)
        np.testing.assert_allclose(optim.weight_motion(state)["a"].relative_update, measured, rtol=16 * EPS)


def test_zero_initialised_weights_have_finite_telemetry():
    params = {"w": jnp.zeros((2, 2))}
    tx = optim.track_effective_lr(0.1)
    with jax.debug_nans(True):
        _, state = tx.update({"w": jnp.ones((2, 2))}, tx.init(params), params)
    motion = optim.weight_motion(state)["w"]
    assert (float(motion.norm), float(motion.growth), float(motion.relative_update)) == (0.0, 1.0, 0.0)
    assert optim.effective_learning_rates(state)["w"] == pytest.approx(0.1, rel=8 * EPS)
