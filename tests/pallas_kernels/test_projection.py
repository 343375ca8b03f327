"""Projections of weights against float64 NumPy; many steps of a deferred one; their places on a mesh and errors."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import pallas_kernels
from pallas_kernels import _gpu_tiling, _strips
from pallas_kernels._dispatch import IMPLEMENTATIONS
from pallas_kernels.projection import reference, shapes, tpu, tpu_matrices
from tests.pallas_kernels import oracle
from tests.pallas_kernels.oracle import EPS32

EVERYTHING = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


def axes_of(shape):
    axes = range(len(shape.shape)) if shape.axis is None else np.atleast_1d(shape.axis)
    return tuple(int(a) % len(shape.shape) for a in axes)


def of_matrices(shape):
    axes = axes_of(shape)
    return len(axes) > 1 and axes[-1] == len(shape.shape) - 1


def inputs(rng, shape, update_dtype=None):
    """Weight, update and radius; the first norm of several is zero, and so is one radius."""
    axes = axes_of(shape)
    kept = tuple(size for a, size in enumerate(shape.shape) if a not in axes)
    weight, update = (np.array(rng.normal(size=shape.shape), np.float32) for _ in range(2))
    radius = np.array(rng.uniform(1, 2, size=kept), np.float32)
    if radius.size > 2:
        zero = np.expand_dims(np.arange(radius.size).reshape(kept) == 0, axes)
        weight, update = (np.where(zero, np.float32(0), a) for a in (weight, update))
        radius.flat[1] = 0
    narrow = weight.astype(jnp.dtype(shape.dtype))
    return narrow, (np.float32(0.1) * update).astype(jnp.dtype(update_dtype or shape.dtype)), radius


def projected(moved, radius, axes):
    """In float64, and the error that float32 explains: a sum of non-negative squares, and a few operations."""
    length = np.sqrt((moved * moved).sum(axes, keepdims=True))
    radius = np.expand_dims(np.asarray(radius, np.float64), axes)
    valid = (length > 0) & (radius > 0)
    factor = np.where(valid, radius / np.where(valid, length, 1), 1)
    expected = moved * factor
    depth = 8 + np.log2(moved.size) + moved.shape[0] / 64
    # The sum of two numbers is off by eps of the larger, which may cancel.
    largest = np.abs(moved).max(axes, keepdims=True) * factor
    return expected, depth * EPS32 * (np.abs(expected) + largest)


def check(rng, shape, implementation, update_dtype=None, calls=("project", "update_and_project")):
    weight, update, radius = inputs(rng, shape, update_dtype)
    options = {"axis": shape.axis, "implementation": implementation, "interpret": implementation != "xla"}
    wide, axes = np.asarray(weight, np.float64), axes_of(shape)
    arrays = {"project": (weight,), "update_and_project": (weight, update)}
    for call in calls:
        found = getattr(pallas_kernels, call)(*arrays[call], radius, **options)
        moved = wide if call == "project" else wide + np.asarray(update, np.float64)
        assert (found.dtype, found.shape) == (weight.dtype, weight.shape)
        oracle.assert_close(found, *projected(moved, radius, axes), call)


CASES = [
    pytest.param(name, implementation, id=f"{name}-{implementation}")
    for i, name in enumerate(shapes.SMALL)
    for k, implementation in enumerate(IMPLEMENTATIONS)
    if not (implementation == "triton" and of_matrices(shapes.SMALL[name]))
    if EVERYTHING or implementation == "mosaic_tpu" or (i + k) % 3 == 0
]


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_agrees_with_float64(rng, name, implementation):
    # Without an update a load is missing and nothing else differs.
    alone = EVERYTHING or list(shapes.SMALL).index(name) % 3 == 0
    check(rng, shapes.SMALL[name], implementation, calls=("project", "update_and_project")[not alone :])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_float32_update_of_a_bfloat16_weight(rng, implementation):
    check(rng, shapes.SMALL["bf16_per_row"], implementation, "float32")


@pytest.mark.parametrize(("implementation", "name"), [("mosaic_tpu", "odd"), ("triton", "per_row")])
def test_loops_over_tiles_and_strips(rng, monkeypatch, name, implementation):
    monkeypatch.setattr(_gpu_tiling, "FEATURES", 64)
    monkeypatch.setattr(_strips, "UNROLLED", 1)
    jax.clear_caches()
    check(rng, shapes.SMALL[name], implementation)
    jax.clear_caches()


@pytest.mark.parametrize("name", list(shapes.SMALL)[:: 1 if EVERYTHING else 3])
def test_a_deferred_factor_leads_to_the_radius(rng, name):
    shape = shapes.SMALL[name]
    weight, update, radius = inputs(rng, shape)
    before = jnp.asarray(rng.uniform(0.5, 2, size=radius.shape), jnp.float32)
    moved, factor = pallas_kernels.deferred_update(weight, before, update, radius, axis=shape.axis)
    axes = axes_of(shape)
    scaled = np.asarray(weight, np.float64) * np.expand_dims(before, axes)
    expected = scaled + np.asarray(update, np.float64)
    oracle.assert_close(moved, expected, 2 * EPS32 * (np.abs(scaled) + np.abs(expected)), "moved")
    meant = np.asarray(moved, np.float64) * np.expand_dims(factor, axes)
    oracle.assert_close(meant, *projected(np.asarray(moved, np.float64), radius, axes), "factor")


@pytest.mark.parametrize("implementation", ["xla", "mosaic_tpu"])
def test_twenty_deferred_steps_train_the_same_network(rng, implementation):
    """A loss that ignores the weight's norm: its gradient at the meant weight, at once and deferred."""
    inputs, target = jnp.asarray(rng.normal(size=(16, 12)), jnp.float32), jnp.asarray(rng.normal(size=(16, 8)))
    start = jnp.asarray(rng.normal(size=(12, 8)), jnp.float32)
    radius = jnp.linalg.norm(start)

    @jax.jit
    def loss(weight):
        y = pallas_kernels.rms_norm((inputs @ weight).reshape(1, -1), epsilon=0.0).reshape(16, 8)
        return jnp.mean((y - target.astype(y.dtype)) ** 2)

    options = {"implementation": implementation, "interpret": implementation != "xla"}

    @jax.jit
    def step(at_once, weight, factor):
        at_once = pallas_kernels.update_and_project(at_once, -2.0 * jax.grad(loss)(at_once), radius, **options)
        update = -2.0 * jax.grad(loss)(factor * weight)
        return at_once, *pallas_kernels.deferred_update(weight, factor, update, radius)

    at_once, weight, factor = start, start, jnp.float32(1.0)
    for _ in range(20):
        at_once, weight, factor = step(at_once, weight, factor)
    assert loss(at_once) < loss(start) - 0.1
    assert abs(factor - 1) > 1e-6
    # Each step rounds once more or less on either side, and gradient descent here does not part what lies close.
    np.testing.assert_allclose(factor * weight, at_once, rtol=0, atol=20 * 16 * EPS32 * np.abs(start).max())
    # The function ignores the factor.
    np.testing.assert_allclose(loss(weight), loss(at_once), rtol=20 * 16 * EPS32)
    np.testing.assert_allclose(jnp.linalg.norm(at_once), radius, rtol=4 * EPS32)


@pytest.mark.parametrize(
    ("shape", "axes", "kept"),
    [((70, 20), (1,), 0), ((2, 70, 20), (1, 2), 0), ((2, 70, 20), (1, 2), tpu_matrices.KEPT)],
    ids=["rows", "matrices", "kept matrices"],
)
def test_no_races_and_nothing_out_of_bounds(rng, monkeypatch, shape, axes, kept):
    monkeypatch.setattr(tpu_matrices, "KEPT", kept)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    # Two threads share the steps of a parallel grid.
    interpret = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    weight, update = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))
    radius = jnp.ones([1 if a in axes else size for a, size in enumerate(shape)])
    found = [tpu.project(weight, update, radius, axes, interpret, 64)]
    expected = [reference.project(weight, update, radius, axes)]
    # JAX 0.12 raises instead.
    assert not (interpret_pallas_call.races and interpret_pallas_call.races.races_found)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=32 * EPS32 * np.abs(b).max())


@pytest.mark.parametrize(
    ("mode", "axis", "spec"), [("Auto", -1, P(("data", "model"))), ("Explicit", (1, 2), P("data"))]
)
def test_split_rows_need_no_collective(rng, mode, axis, spec):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(getattr(AxisType, mode),) * 2)
    weight, update, _ = inputs(rng, shapes.Shape((8, 16, 24), "float32", axis))
    arrays = [jax.device_put(a, NamedSharding(mesh, spec)) for a in (weight, update)]
    options = {"implementation": "mosaic_tpu", "interpret": True}
    options |= {"mesh": mesh, "spec": spec} if mode == "Auto" else {}
    call = functools.partial(pallas_kernels.update_and_project, radius=2.0, axis=axis)
    compiled = jax.jit(functools.partial(call, **options)).lower(*arrays).compile()
    assert pallas_kernels.count_collectives(compiled) == {}
    expected = call(weight, update)
    np.testing.assert_allclose(compiled(*arrays), expected, rtol=0, atol=32 * EPS32 * np.abs(expected).max())


def test_a_split_matrix_needs_one_number_of_each_norm(rng):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    spec = P("data", "model")
    weight, update, _ = inputs(rng, shapes.Shape((8, 16, 24), "float32", -1))
    arrays = [jax.device_put(a, NamedSharding(mesh, spec)) for a in (weight, update)]
    call = lambda weight, update: pallas_kernels.deferred_update(weight, 1.5, update, 2.0, axis=(1, 2))
    compiled = jax.jit(call).lower(*arrays).compile()
    assert pallas_kernels.count_collectives(compiled) == {"all-reduce": 1}
    for a, b in zip(compiled(*arrays), call(weight, update), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=32 * EPS32 * np.abs(b).max())


@pytest.mark.parametrize(("implementation", "axis"), [("mosaic_tpu", None), ("triton", -1)])
def test_vmap_is_a_stack_of_layers_and_donation_is_safe(rng, implementation, axis):
    weight, update, _ = inputs(rng, shapes.Shape((3, 9, 20), "float32", -1))
    call = functools.partial(
        pallas_kernels.update_and_project, radius=2.0, axis=axis, implementation=implementation, interpret=True
    )
    stacked = jax.vmap(lambda w, u: call(w, u))
    expected = jnp.stack([call(w, u) for w, u in zip(weight, update, strict=True)])
    donated = jnp.array(weight, copy=True)
    found = jax.jit(stacked, donate_argnums=0)(donated, update)
    assert donated.is_deleted()
    np.testing.assert_allclose(found, expected, rtol=0, atol=8 * EPS32 * np.abs(expected).max())


def test_a_norm_that_overflows_leaves_the_weight():
    weight = jnp.full((2, 2), 3e38)
    np.testing.assert_array_equal(pallas_kernels.project(weight, 1.0), weight)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_there_is_no_derivative(implementation):
    call = functools.partial(pallas_kernels.project, radius=1.0, axis=-1, implementation=implementation, interpret=True)
    for derivative in (jax.grad(lambda w: jnp.sum(call(w))), lambda w: jax.jvp(call, (w,), (w,))):
        with pytest.raises(NotImplementedError, match="has no derivative here: differentiate the loss at the weights"):
            derivative(jnp.ones((2, 4)))


@pytest.mark.parametrize(
    ("call", "arguments", "options", "error", "message"),
    [
        ("project", (jnp.ones((2, 4)), jnp.ones(3)), {"axis": -1}, ValueError, r"radius must be .*each norm, \(2,\)"),
        ("project", (jnp.ones(4, jnp.int32), 1.0), {}, TypeError, "expected a real floating array, got int32"),
        ("project", (jnp.ones((2, 3, 4)), 1.0), {"axis": (0, 2)}, ValueError, "must name adjacent axes"),
        ("project", (jnp.ones(()), 1.0), {}, ValueError, r"does not name axes of an array of shape \(\)"),
        (
            "update_and_project",
            (jnp.ones(4), jnp.ones(3), 1.0),
            {},
            ValueError,
            r"shape \(4,\) of the weight, got \(3,",
        ),
        ("update_and_project", (jnp.ones(4), jnp.ones(4, int), 1.0), {}, TypeError, "real floating update, got int"),
        (
            "update_and_project",
            (jnp.ones((2, 4)), jnp.ones((2, 4)), 1.0),
            {"implementation": "triton"},
            NotImplementedError,
            r"single rows or columns, got axes \(0, 1\) of shape \(2, 4\): .*use implementation='xla'",
        ),
        (
            "deferred_update",
            (jnp.ones((2, 4)), jnp.ones(2), jnp.ones((2, 4)), 1.0),
            {},
            ValueError,
            "factor must be one",
        ),
        (
            "project",
            (jnp.ones(4, jnp.float16), 1.0),
            {"implementation": "mosaic_tpu"},
            NotImplementedError,
            "takes float32, bfloat16 and computes in float32, got float16; use implementation='xla'",
        ),
    ],
)
def test_errors_say_what_came_and_the_way_out(call, arguments, options, error, message):
    with pytest.raises(error, match=message):
        getattr(pallas_kernels, call)(*arguments, **options)


def test_a_split_norm_is_refused_by_a_kernel():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match=r"needs whole rows on each device, .* over \('data',\); reshard"):
        pallas_kernels.project(jnp.ones((8, 4)), 1.0, implementation="mosaic_tpu", mesh=mesh, spec=P("data"))
