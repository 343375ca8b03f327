"""The battery over what controls weight norms: each member's equation once more in float64 NumPy, and all together.

A case is a transform, its extra arguments at a step, and the step of one leaf in NumPy. Scanned twenty steps in
float64 each; sharded, in bfloat16 and through a checkpoint in one program of all.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from normjax import optim
from normjax.optim._leaves import resharded
from tests.optim.test_optim_battery import apply, avals, close, make_grads, make_params

STEPS, RATE = 20, 0.1
# Explicit axes need a program of their own; every night.
NIGHTLY = hypothesis.settings.get_current_profile_name() == "nightly"
AXIS_TYPES = [AxisType.Auto, AxisType.Explicit] if NIGHTLY else [AxisType.Auto]
HIDDEN = optim.hidden_weights(readout=("head",))
AXES = {"block/kernel": (1, 2), "dense/kernel": (0,)}
SIZES = {"axes": AXES, "mask": HIDDEN}
WEIGHTS = ("block/kernel", "dense/kernel")


def length(x, axes):
    return np.sqrt(np.sum(np.square(x), axis=axes, keepdims=True))


def sphere(x, r, axes):
    return r * x / length(x, axes)


def across(p, u, axes):
    return u - p * np.sum(p * u, axis=axes, keepdims=True) / length(p, axes) ** 2


# Steps of one weight: p, gradient g, initial weights, axes, memory of the leaf and the step; they return the new p.
def clip(p, g, start, axes, memory, t):
    moved = p - RATE * g
    return moved * np.minimum(1, 2.0 / length(moved, axes))


def ball(p, g, start, axes, memory, t):
    r = length(start, axes)
    return sphere(p - 0.05 * r * g / length(g, axes), r, axes)


def rotate(p, g, start, axes, memory, t):
    r, u = length(start, axes), across(p, -RATE * g, axes)
    memory["v"] = 0.9 * memory.get("v", 0) + 0.1 * length(u, axes) ** 2
    return sphere(p + 0.05 * r * u / np.sqrt(memory["v"] / (1 - 0.9 ** (t + 1))), r, axes)


def tangent(p, g, start, axes, memory, t):
    memory["m"] = u = g + 0.9 * memory.get("m", 0)
    for view in (axes, tuple(range(p.ndim))):
        cosine = np.abs(np.sum(p * g, axis=view, keepdims=True)) / length(p, view) / length(g, view)
        if np.max(cosine) < 1.5 / np.sqrt(np.prod([p.shape[a] for a in view])):
            memory["hits"] = memory.get("hits", 0) + 1
            return p - RATE * across(p, u, view)
    return p - RATE * u


def effective(p, g, start, axes, memory, t):
    return p - RATE * (length(p, axes) / length(start, axes)) ** 2 * g


def implicit(p, g, start, axes, memory, t):
    r = length(start, axes)
    twin = memory.get("twin", r)
    moved = p - RATE * g / (twin / length(p, axes)) ** 2
    memory["twin"] = twin * length(moved, axes) / length(p, axes)
    return sphere(moved, r, axes)


def unit_rows(p, g, start, axes, memory, t):
    return sphere(p - RATE * g, 1.0, axes)


def perturb(p, g, start, axes, memory, t):
    return 0.9 * (p - RATE * g) + 0.05 if (t + 1) % 3 == 0 else p - RATE * g


def rewarm(p, g, start, axes, memory, t):
    since = t if t < 7 else t - 7
    return p - RATE * 0.8**since * g


def covariance(t, dtype=jnp.float32):
    root = jnp.cos(jnp.arange(16, dtype=dtype).reshape(4, 4) + jnp.asarray(t, dtype))
    return {"dense": root @ root.T}


def tract(p, g, start, axes, memory, t):
    root = np.cos(np.arange(16.0).reshape(4, 4) + t)
    return p - RATE * np.linalg.inv(root @ root.T + 0.1 * np.eye(4)) @ g


def hidden(t, dtype=jnp.float32):
    return {"dense": jnp.sin(jnp.arange(12, dtype=dtype).reshape(3, 4) * 1.3 + jnp.asarray(t, dtype))}


def plain(p, g, start, axes, memory, t):
    return p - RATE * g


def replaced(trees, t, memory):
    """Continual backpropagation after the step of SGD: all leaves at once, as a unit has weights on both sides."""
    rate, beta, maturity = 0.2, 0.9, 3
    activation = np.mean(np.abs(np.sin(np.arange(12.0).reshape(3, 4) * 1.3 + t)), axis=0)
    useful = activation * np.sum(np.abs(trees["head/kernel"]), axis=1)
    memory.setdefault("y", np.zeros(4)), memory.setdefault("age", np.zeros(4, int)), memory.setdefault("due", 0.0)
    memory["y"], memory["age"] = beta * memory["y"] + (1 - beta) * useful, memory["age"] + 1
    mature = memory["age"] > maturity
    memory["due"] += rate * mature.sum()
    number = min(int(memory["due"]), mature.sum())
    memory["due"] -= number
    order = np.argsort(np.where(mature, memory["y"] / (1 - beta ** memory["age"]), np.inf), kind="stable")
    for unit in order[:number]:
        trees["dense/kernel"][:, unit], trees["dense/bias"][unit], trees["head/kernel"][unit] = 0.3, 0.3, 0.0
        memory["y"][unit], memory["age"][unit] = 0.0, 0
    memory["hits"] = memory.get("hits", 0) + number


def constant(key, path, leaf):
    return jnp.full(leaf.shape, 0.3, jnp.promote_types(leaf.dtype, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Case:
    """A transform after SGD or around it, the NumPy step of the leaves it controls, and what it needs in `update`."""

    make: Callable[[], Any]
    step: Callable[..., np.ndarray]
    leaves: tuple[str, ...] | None = WEIGHTS
    extra: Callable[..., dict[str, Any]] = lambda t, dtype=jnp.float32: {}
    needs_params: bool = True
    after: Callable[..., None] | None = None


def cooling(count):
    # optax's own exponential decay is float32 for integer counts.
    return RATE * 0.8 ** count.astype(float)


def last(transform):
    return optax.chain(optax.scale(-RATE), transform)


KEY = jax.random.key(0)
CASES = {
    "clip_weights": Case(lambda: last(optim.clip_weights(2.0, **SIZES)), clip),
    "hyperball": Case(lambda: last(optim.hyperball(0.05, **SIZES)), ball),
    "rotate_weights": Case(lambda: last(optim.rotate_weights(0.05, decay=0.9, **SIZES)), rotate),
    "project_updates": Case(
        lambda: optax.chain(optim.project_updates(optax.trace(0.9), threshold=1.5, **SIZES), optax.scale(-RATE)),
        tangent,
    ),
    "scale_by_effective_lr": Case(lambda: optim.scale_by_effective_lr(RATE, like="sgd", **SIZES), effective),
    "implicit_schedule": Case(
        lambda: last(optax.chain(optim.implicit_schedule(like="sgd", **SIZES), optim.project_weights(**SIZES))),
        implicit,
    ),
    # SimbaV2 and nGPT: unit vectors along an axis that the matrix decides.
    "unit_rows": Case(lambda: last(optim.project_weights(1.0, **SIZES)), unit_rows),
    "shrink_and_perturb": Case(
        lambda: last(optim.shrink_and_perturb(KEY, 0.9, lambda key, path, w: constant(key, path, w) / 6, every_k=3)),
        perturb,
        None,
    ),
    "rewarmed_schedule": Case(
        lambda: optim.scale_by_rewarmed_schedule(cooling),
        rewarm,
        None,
        lambda t, dtype=jnp.float32: {"new_task": jnp.asarray(t) == 7},
        needs_params=False,
    ),
    "tract": Case(
        lambda: optax.chain(optim.scale_by_tract(0.1), optax.scale(-RATE)),
        tract,
        ("dense/kernel",),
        lambda t, dtype=jnp.float32: {"covariance": covariance(t, dtype)},
        needs_params=False,
    ),
    "continual_backprop": Case(
        lambda: optim.continual_backprop(
            optax.sgd(RATE), KEY, {"dense": "head"}, replacement_rate=0.2, decay=0.9, maturity=3, init=constant
        ),
        plain,
        None,
        lambda t, dtype=jnp.float32: {"activations": hidden(t, dtype)},
        after=replaced,
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@pytest.fixture(autouse=True)
def _promotion():
    # optax's own scale and schedules promote dtypes; strictness of ours is what test_optim_battery asks.
    with jax.numpy_dtype_promotion("standard"):
        yield


def flat(tree):
    return {f"{m}/{n}": np.array(x, np.float64) for m, leaves in tree.items() for n, x in leaves.items()}


def twin(case, params, steps):
    trees, memories, joint = flat(params), {}, {}
    starts = {path: x.copy() for path, x in trees.items()}
    for t in range(steps):
        for path, p in trees.items():
            g = np.cos(np.arange(p.size).reshape(p.shape) * 1.7 + t)
            controlled = case.leaves is None or path in case.leaves
            axes, memory = AXES.get(path, tuple(range(p.ndim))), memories.setdefault(path, {})
            if controlled:
                trees[path] = case.step(p, g, starts[path], axes, memory, t)
            elif case.step is tangent:
                # The momentum is the inner optimizer's, and acts on every leaf.
                memory["m"] = g + 0.9 * memory.get("m", 0)
                trees[path] = p - RATE * memory["m"]
            else:
                trees[path] = p - RATE * g
        if case.after is not None:
            case.after(trees, t, joint)
    hits = [memory["hits"] for memory in (*memories.values(), joint) if "hits" in memory]
    return trees, hits


@every_case
def test_twenty_scanned_steps_against_the_equation_in_float64(case):
    with jax.enable_x64(True):
        params, tx = make_params(jnp.float64), case.make()

        def step(carry, t):
            params, state = carry
            updates, state = tx.update(make_grads(params, t), state, params, **case.extra(t, jnp.float64))
            return (optax.apply_updates(params, updates), state), None

        run = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), jnp.arange(STEPS))[0])
        new, state = run(params)
    assert {x.dtype for x in jax.tree.leaves((new, state)) if jnp.issubdtype(x.dtype, jnp.floating)} == {
        np.dtype(np.float64)
    }
    expected, hits = twin(case, params, STEPS)
    assert all(hits)
    for path, value in flat(new).items():
        # Each step multiplies a rounding by at most about 1.1, the shares of momentum included.
        scale = max(1.0, np.abs(expected[path]).max())
        np.testing.assert_allclose(value, expected[path], rtol=0, atol=1e3 * STEPS * 2.0**-52 * scale, err_msg=path)


@every_case
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_trees_keep_structure_shapes_and_dtypes(case, dtype):
    tx, params = case.make(), make_params(dtype)
    state = tx.init(params)
    abstract = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    assert avals(abstract) == avals(state)
    updates, new = jax.eval_shape(lambda p, s: tx.update(p, s, p, **case.extra(0)), params, state)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert all(u.dtype in (dtype, jnp.float32) for u in jax.tree.leaves(updates))
    assert jax.tree.structure(state) == jax.tree.structure(new)
    assert avals(state) == avals(new)


@every_case
def test_params_are_required(case):
    tx, params = case.make(), make_params()
    if case.needs_params:
        with pytest.raises(ValueError, match="params=None"):
            tx.update(params, tx.init(params), **case.extra(0))


def like(g, p):
    """A gradient sharded as its parameter, as those of a loss are."""
    return resharded(g, jax.typeof(p).sharding)


def all_together(dtype, placed=lambda tree: tree):
    """One step of every case in one program; its parameters and states before any step."""
    transforms = {name: case.make() for name, case in CASES.items()}
    params = placed({name: make_params(dtype) for name in CASES})
    traces = []

    @jax.jit
    def step(params, states, t):
        traces.append(1)
        new = {}
        for name, tx in transforms.items():
            # In float32 first: cosines of bfloat16 phases are other gradients.
            grads = jax.tree.map(lambda g, p: like(g.astype(dtype), p), make_grads(make_params(), t), params[name])
            updates, state = tx.update(grads, states[name], params[name], **CASES[name].extra(t))
            new[name] = (apply(params[name], updates), state)
        return {name: p for name, (p, _) in new.items()}, {name: s for name, (_, s) in new.items()}

    return step, params, {name: tx.init(params[name]) for name, tx in transforms.items()}, traces


def run(step, params, states, steps):
    for t in steps:
        params, states = step(params, states, jnp.int32(t))
    return params, states


@pytest.fixture(scope="module")
def halves():
    """The step of all cases, and where it is after four steps and after eight."""
    with jax.numpy_dtype_promotion("standard"):
        step, params, states, traces = all_together(jnp.float32)
        # On a device by name, as what orbax restores is: one program takes both.
        params, states = jax.device_put((params, states), jax.devices()[0])
        middle = run(step, params, states, range(4))
        final = run(step, *middle, range(4, 8))
    assert len(traces) == 1
    return step, middle, final


def test_a_checkpoint_goes_on_where_it_was(halves, tmp_path):
    step, middle, final = halves
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", middle)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.tree.map(ocp.utils.to_shape_dtype_struct, middle))
    jax.tree.map(np.testing.assert_array_equal, run(step, *restored, range(4, 8)), final)


@pytest.mark.parametrize("axis_type", AXIS_TYPES, ids=lambda t: t.name)
def test_sharded_equals_replicated(halves, axis_type):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    specs = {(3, 4, 4): (None, "data", "model"), (4, 4): ("data", "model"), (4, 2): ("data", None)}

    def place(tree):
        return jax.tree.map(
            lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*specs.get(x.shape, ())))), tree
        )

    with jax.set_mesh(mesh):
        step, params, states, _ = all_together(jnp.float32, place)
        sharded = run(step, params, states, range(8))
    close(sharded, halves[-1], ulps=512)  # eight steps of sums in another order
    kernel = sharded[0]["hyperball"]["dense"]["kernel"]
    assert kernel.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("data", "model")), 2)


def test_bfloat16_parameters_follow_the_equation_to_their_own_precision():
    step, params, states, _ = all_together(jnp.bfloat16)
    new, _ = run(step, params, states, range(3))
    for name, case in CASES.items():
        expected, _ = twin(case, params[name], 3)
        for path, value in flat(new[name]).items():
            # Three roundings of the weights, and gradients that are bfloat16 as well: half an ulp each, amplified by
            # the covariance's smallest eigenvalue in one case.
            scale = max(1.0, np.abs(expected[path]).max())
            slack = 10 if name == "tract" else 1
            np.testing.assert_allclose(value, expected[path], rtol=0, atol=6 * slack * 2.0**-8 * scale, err_msg=path)
