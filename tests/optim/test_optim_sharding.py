"""Eight forced host devices: sharded equals replicated, state keeps its sharding, collectives are counted."""

import os
import subprocess
import sys

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
    return params, state, step.lower(params, state).compile().as_text(), sizes


def place(tree, rule):
    return {path: jax.device_put(x, rule(path)) for path, x in tree.items()}


def close(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    # Four steps of sums in another order: a few float32 roundings of the largest entry each.
    np.testing.assert_allclose(a, b, rtol=0, atol=64 * 2.0**-23 * max(1.0, np.abs(b).max()))


def check_sharding(mesh, tree):
    for path, x in tree.items():
        assert x.sharding.is_equivalent_to(sharding(mesh, path), x.ndim), (path, x.sharding)


def check(name, axis_type):
    make, rounds = OPTIONS[name]
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    expected = train(make(), place(host, lambda _: None), place(grads, lambda _: None))
    with jax.set_mesh(mesh):
        spread = functools.partial(sharding, mesh)
        params, state, hlo, sizes = train(make(), place(host, spread), place(grads, spread))
    jax.tree.map(close, (params, state), expected[:2])
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
check("nap", AxisType.Explicit)
"""


def test_sharded_equals_replicated_on_eight_devices():
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUMPY_DTYPE_PROMOTION": "standard",  # for optax's Adam; our own strictness is tested elsewhere
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
