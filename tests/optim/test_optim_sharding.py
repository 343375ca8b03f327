"""Eight forced host devices: sharded equals replicated, state keeps its sharding, collectives are counted."""

import functools
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from normjax import optim

PROGRAM = """
import functools
import re
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from normjax import optim

LAYERS = 6
rng = np.random.default_rng(0)
host = {f"layer{i}": rng.normal(size=(16, 32)).astype(np.float32) for i in range(LAYERS)}
host["stack"] = rng.normal(size=(4, 16, 32)).astype(np.float32)
grads = jax.tree.map(lambda w: np.cos(5 * w), host)
STACK = {"stack": (1, 2)}
# Rounds of reductions in the program (two where both are conditional); XLA merges all sums of a round
# into one all-reduce for each of the two mesh axes.
OPTIONS = {
    "project": (lambda: optim.project_weights(mask=True, axes=STACK), 1),
    "track": (lambda: optim.track_effective_lr(0.1, axes=STACK), 1),
    "nap": (lambda: optim.nap(optax.adam(0.1), mask=True, axes=STACK, rescale_moments=True), 1),
    "nap_every": (lambda: optim.nap(optax.adam(0.1), mask=True, axes=STACK, every_k=2, track_every=10), 2),
    "decay": (lambda: optim.decay_towards_init(0.1), 0),
}


def sharding(mesh, path):
    return NamedSharding(mesh, P(None, "data", "model") if path == "stack" else P("data", "model"))


def train(tx, params, grads):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, sizes = tx.init(params), []
    for _ in range(4):
        params, state = step(params, state)
        sizes.append(step._cache_size())
    return params, state, step, sizes


def place(tree, rule):
    return {path: jax.device_put(x, rule(path)) for path, x in tree.items()}


def close(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    # Four steps of sums in another order: a few float32 roundings of the largest entry each.
    np.testing.assert_allclose(a, b, rtol=0, atol=64 * 2.0**-23 * max(1.0, np.abs(b).max()))


def check_sharding(mesh, tree):
    for path, x in tree.items():
        assert x.sharding.is_equivalent_to(sharding(mesh, path), x.ndim), (path, x.sharding)


@functools.cache
def alone(name):
    return train(OPTIONS[name][0](), place(host, lambda _: None), place(grads, lambda _: None))


def check(name, axis_type):
    make, rounds = OPTIONS[name]
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        spread = functools.partial(sharding, mesh)
        params, state, step, sizes = train(make(), place(host, spread), place(grads, spread))
        hlo = step.lower(params, state).compile().as_text()
    jax.tree.map(close, (params, state), alone(name)[:2])
    check_sharding(mesh, params)
    if name.startswith("nap"):
        check_sharding(mesh, state.inner_state[0].mu)
        check_sharding(mesh, state.inner_state[0].nu)
    if name == "decay":
        check_sharding(mesh, state.targets)
    else:
        numbers = state.radii if hasattr(state, "radii") else state.reference
        assert all(r.sharding.is_fully_replicated for r in numbers.values())
        assert numbers["stack"].shape == (4,)
    if name in ("track", "nap", "nap_every"):
        assert len(optim.weight_motion(state)) == LAYERS + 1
    reduces = len(re.findall(r" all-reduce(?:-start)?\\(", hlo))
    assert reduces == 2 * rounds, (name, axis_type, reduces)
    for other in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
        assert not re.search(rf" {other}(?:-start)?\\(", hlo), (name, other)
    # The counters of an eager init live on one device until the first step places them on the mesh.
    assert sizes[1:] == [sizes[1]] * 3, (name, sizes)
    print(name, axis_type, "all-reduces:", reduces)


for name in OPTIONS:
    check(name, AxisType.Auto)
    check(name, AxisType.Explicit)
"""


def test_sharded_equals_replicated_on_eight_devices():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        # Collectives of one device that do not depend on each other block a thread each. With as many threads as
        # devices, XLA's default, they can wait for each other forever.
        "NPROC": "32",
        "JAX_NUMPY_DTYPE_PROMOTION": "standard",  # for optax's Adam; our own strictness is tested elsewhere
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


ROUNDING = 64 * 2.0**-23  # three steps of sums in another order, entries of about one
SPEC = ("data", "model")
x = np.linspace(-1, 1, 48, dtype=np.float32).reshape(6, 8)
policies = pytest.mark.parametrize("policy", ["free", "decay", "joint"])


@pytest.fixture
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax and Flax promote dtypes themselves
        yield


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=ROUNDING, atol=ROUNDING)


def _mesh(axis_type):
    return jax.make_mesh((4, 2), SPEC, axis_types=(axis_type,) * 2)


def _nap(policy):
    rate = 0.1 if policy == "decay" else None
    return optim.nap(optax.adam(0.1), scale_offset=policy, rate=rate, rescale_moments=True, learning_rate=0.1)


def _gradients(params):
    return jax.tree.map(lambda p: jnp.cos(5 * p), params)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), SPEC)
        h = nn.LayerNorm()(nn.Dense(16, use_bias=False, kernel_init=init, name="hidden")(x))
        return nn.Dense(2, name="head")(nn.relu(h))


@functools.cache
def initialized():
    return jax.jit(Net().init)(jax.random.key(0), x)["params"]


@policies
@pytest.mark.usefixtures("_promotion")
def test_linen_partitioned_boxes_on_a_mesh(policy):
    """Flax's own recipe: shardings from the abstract state's metadata, as `out_shardings` of the initialisation."""
    tx, mesh = _nap(policy), _mesh(AxisType.Auto)

    def train(state):
        @jax.jit
        def step(params, opt_state):
            updates, opt_state = tx.update(_gradients(params), opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        for _ in range(3):
            state = step(*state)
        return state

    def init(params):
        return params, tx.init(params)

    params = initialized()
    expected = train(init(params))
    with jax.set_mesh(mesh):
        shardings = nn.get_sharding(jax.eval_shape(init, params), mesh)
        new, state = train(jax.jit(init, out_shardings=shardings)(params))
    jax.tree.map(close, nn.unbox((new, state)), nn.unbox(expected))
    for tree in (new, state.inner_state[0].mu, state.inner_state[0].nu):
        kernel = tree["hidden"]["kernel"].value
        assert kernel.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(*SPEC)), 2)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((state.radii, state.tracker)))


class Model(nnx.Module):
    def __init__(self, rngs, *, sharded):
        init = nnx.initializers.lecun_normal()
        init = nnx.with_partitioning(init, SPEC) if sharded else init
        self.hidden = nnx.Linear(8, 16, use_bias=False, kernel_init=init, rngs=rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, 2, rngs=rngs)


@nnx.jit
def step(model, optimizer):
    optimizer.update(model, _gradients(nnx.state(model, nnx.Param)))


def train(policy, *, sharded):
    model = Model(nnx.Rngs(0), sharded=sharded)
    optimizer = nnx.Optimizer(model, _nap(policy), wrt=nnx.Param)
    for _ in range(3):
        step(model, optimizer)
    return model, optimizer.opt_state


alone = functools.cache(functools.partial(train, sharded=False))


@policies
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.usefixtures("_promotion")
def test_nnx_optimizer_of_sharded_params_on_a_mesh(policy, axis_type):
    """Sharding metadata of a Param describes its axes; radii and measurements, which have none, must not inherit it."""
    mesh = _mesh(axis_type)
    plain, plain_state = alone(policy)
    with jax.set_mesh(mesh):
        model, state = train(policy, sharded=True)
    jax.tree.map(close, nnx.to_pure_dict(nnx.state(model)), nnx.to_pure_dict(nnx.state(plain)))
    jax.tree.map(close, jax.tree.leaves(state), jax.tree.leaves(plain_state))
    sharding = NamedSharding(mesh, PartitionSpec(*SPEC))
    moments = state.inner_state[0]
    for kernel in (model.hidden.kernel, moments.mu["hidden"]["kernel"], moments.nu["hidden"]["kernel"]):
        assert kernel[...].sharding.is_equivalent_to(sharding, 2)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((state.radii, state.tracker)))
