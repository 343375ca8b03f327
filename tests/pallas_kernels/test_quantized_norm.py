"""Quantized RMS norms against float64 NumPy: each value is what some number within the tolerance rounds to."""

import functools
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import pallas_kernels
from pallas_kernels import _gpu_tiling, _strips
from pallas_kernels._dispatch import IMPLEMENTATIONS
from pallas_kernels.quantized_norm import reference, shapes, tpu
from pallas_kernels.quantized_norm.formula import DTYPES, Quantized
from tests.pallas_kernels import oracle
from tests.pallas_kernels.test_placement import FEATURES, mesh_of
from tests.pallas_kernels.test_tpu_interpreter import PARAMS, races_found

KERNELS = ["mosaic_tpu", "triton"]
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
EPSILON = 1e-5


def inputs(rng, shape):
    axes = (shape.axis,) if isinstance(shape.axis, int) else shape.axis
    draw = lambda s, dtype: rng.normal(size=s).astype(np.float32).astype(jnp.dtype(dtype))
    return draw(shape.shape, shape.dtype), draw(tuple(shape.shape[a] for a in axes), "float32")


def rounded(numbers, dtype):
    """To the dtype, as float64."""
    if dtype == "int8":
        return np.round(numbers)
    return numbers.astype(jnp.dtype(dtype)).astype(np.float64)


def check(found, x, scale, dtype, axis, scale_offset=0.0):
    values, row_scale = found
    axes = tuple(sorted(a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis)))
    y, tolerance = oracle.forward("rms", x, scale, None, axis=axis, epsilon=EPSILON, scale_offset=scale_offset)
    assert (values.dtype, values.shape) == (jnp.dtype(dtype), x.shape)
    assert row_scale.shape == tuple(1 if a in axes else size for a, size in enumerate(x.shape))
    expected = np.abs(y).max(axes, keepdims=True) / LARGEST[dtype]
    largest_tolerance = tolerance.max(axes, keepdims=True) / LARGEST[dtype]
    # What a row of zeros is given is below all others.
    oracle.assert_close(row_scale, expected, largest_tolerance + 1e-28, "row_scale")
    # Rounding is monotonic: between what the ends of the interval round to. The quotient of v by its row's largest
    # takes three roundings, a tolerance for which the norm's own is more than enough.
    expected = np.maximum(expected, np.finfo(np.float64).tiny)
    low, high = (np.clip((y + sign * tolerance) / expected, -LARGEST[dtype], LARGEST[dtype]) for sign in (-1, 1))
    values = np.asarray(values).astype(np.float64)
    assert np.all(rounded(low, dtype) <= values)
    assert np.all(values <= rounded(high, dtype))


def norm(implementation, **options):
    options |= {"implementation": implementation, "interpret": implementation != "xla", "epsilon": EPSILON}
    return jax.jit(functools.partial(pallas_kernels.quantized_rms_norm, **options))


# Every shape by one implementation and dtype in turn: the loops are the plain norm's, which sees them all.
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
CASES = [
    pytest.param(name, implementation, dtype, id=f"{name}-{implementation}-{dtype}")
    for i, name in enumerate(shapes.SMALL)
    for k, (implementation, dtype) in enumerate(itertools.product(IMPLEMENTATIONS, DTYPES))
    if NIGHTLY or i % 9 == k
]


@pytest.mark.parametrize(("name", "implementation", "dtype"), CASES)
def test_agrees_with_float64(rng, name, implementation, dtype):
    shape = shapes.SMALL[name]
    x, scale = inputs(rng, shape)
    check(norm(implementation, axis=shape.axis, dtype=dtype)(x, scale), x, scale, dtype, shape.axis)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_zeros_ties_and_offset(rng, implementation):
    x, scale = inputs(rng, shapes.SMALL["partial_block"])
    # Halves of the largest over 127: ties, which go to the even neighbour in every implementation.
    x[3], x[4], x[4, 99] = 0.0, np.arange(100) % 64 + 0.5, 127.0
    values, row_scale = norm(implementation)(x, None)
    check((values, row_scale), x, None, "int8", -1)
    assert not values[3].any()
    assert row_scale[3] > 0
    np.testing.assert_array_equal(values[4, :64], np.round(np.asarray(x[4, :64], np.float64)))
    check(norm(implementation, scale_offset=1.0)(x, scale), x, scale, "int8", -1, scale_offset=1.0)


@pytest.mark.parametrize("implementation", KERNELS)
def test_loops_over_tiles_and_strips(rng, monkeypatch, implementation):
    monkeypatch.setattr(_gpu_tiling, "FEATURES", 64)
    monkeypatch.setattr(_gpu_tiling, "TILE", 64)
    monkeypatch.setattr(_strips, "UNROLLED", 1)
    jax.clear_caches()
    x, scale = inputs(rng, shapes.SMALL["three_strips"])
    check(norm(implementation)(x, scale), x, scale, "int8", -1)
    jax.clear_caches()


def test_vmap_is_a_batch(rng):
    x, scale = inputs(rng, shapes.Shape((3, 5, 12), "float32"))
    check(jax.vmap(norm("mosaic_tpu"), in_axes=(0, None))(x, scale), x, scale, "int8", -1)


@pytest.mark.parametrize(
    ("implementation", "spec", "collectives"),
    [("mosaic_tpu", P("data", "model"), {}), ("triton", P("data"), {}), (None, FEATURES[0], {"all-reduce": 2})],
    ids=["rows of a TPU", "rows of a GPU", "features"],
)
def test_collectives(rng, implementation, spec, collectives):
    mesh = mesh_of("Auto")
    arrays = inputs(rng, shapes.Shape((8, 4, 16), "float32"))
    specs = spec, P(spec[2] if len(spec) > 2 else None)
    placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)]
    options = {"implementation": implementation, "interpret": implementation is not None, "epsilon": EPSILON}
    call = functools.partial(pallas_kernels.quantized_rms_norm, mesh=mesh, spec=spec, **options)
    compiled = jax.jit(call).lower(*placed).compile()
    # A sum and a maximum where features are split.
    assert pallas_kernels.count_collectives(compiled) == collectives
    check(compiled(*placed), *arrays, "int8", -1)


def test_no_races_and_nothing_out_of_bounds(rng):
    settings = Quantized((1,), 1e-6, 0.0, "int8", PARAMS)
    x, scale = inputs(rng, shapes.Shape((66, 20), "float32"))
    found = jax.block_until_ready(jax.jit(lambda x, scale: tpu.forward(settings, x, scale, 64))(x, scale))
    expected = jax.jit(lambda x, scale: reference.forward(settings, x, scale))(x, scale)
    assert not races_found()
    pltpu.reset_tpu_interpret_mode_state()
    np.testing.assert_allclose(*(np.asarray(a[0]).astype(np.int32) for a in (found, expected)), rtol=0, atol=1)
    np.testing.assert_allclose(found[1], expected[1], rtol=16 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_derivative(implementation):
    call = norm(implementation, dtype="float8_e4m3fn")
    with pytest.raises(NotImplementedError, match=r"quantized_rms_norm has no derivative, .* differentiate rms_norm"):
        jax.grad(lambda x: call(x)[1].sum())(jnp.ones((2, 4)))


def test_errors_say_what_came_and_the_way_out():
    x = jnp.ones((2, 4))
    with pytest.raises(ValueError, match=r"dtype='int4' is no dtype of the values; expected one of \('int8', "):
        pallas_kernels.quantized_rms_norm(x, dtype=jnp.int4)
    with pytest.raises(ValueError, match=r"scale must have the shape \(4,\) .* got \(3,\)"):
        pallas_kernels.quantized_rms_norm(x, jnp.ones(3))
    with pytest.raises(ValueError, match=r"epsilon must not be negative, got -1\.0"):
        pallas_kernels.quantized_rms_norm(x, epsilon=-1.0)
    place = {"mesh": mesh_of("Auto"), "spec": P(None, "model")}
    with pytest.raises(ValueError, match="needs whole rows on each device"):
        pallas_kernels.quantized_rms_norm(x, implementation="triton", **place)
