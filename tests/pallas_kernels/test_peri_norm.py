"""Peri-LN's norms around an addition against float64 NumPy; their places on a mesh, transformations and errors."""

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
from pallas_kernels.peri_norm import gpu, reference, shapes, tpu
from pallas_kernels.peri_norm.formula import NormAdd
from pallas_kernels.peri_norm.vjp import KINDS
from pallas_kernels.row_norm import gpu as row_norm_gpu
from tests.pallas_kernels import oracle, peri_norm_oracle

KERNELS = ("mosaic_tpu", "triton")
EVERYTHING = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


def inputs(rng, shape, stream_dtype=None):
    """x, residual, two scales, and the cotangents of both outputs."""
    axes = (shape.axis,) if isinstance(shape.axis, int) else shape.axis
    features = tuple(shape.shape[a] for a in axes)
    draw = lambda s, dtype: rng.normal(size=s).astype(np.float32).astype(jnp.dtype(dtype))
    stream = stream_dtype or shape.dtype
    tensors = [draw(shape.shape, dtype) for dtype in (shape.dtype, stream, stream, shape.dtype)]
    return tensors[0] + 1, tensors[1], draw(features, "float32"), draw(features, "float32"), *tensors[2:]


def options_of(axis, scale_offset=1.0):
    return {"axis": axis, "epsilon": 1e-5, "scale_offset": scale_offset}


def outputs_and_gradients(call, implementation, inputs, cotangents):
    def both(inputs, cotangents):
        outputs, vjp = jax.vjp(call, *inputs)
        return outputs, vjp(cotangents)

    # The interpreter is XLA, which would drop a kernel's rounding of the sum; on a device nothing does.
    compiler_options = {} if implementation == "xla" else {"xla_allow_excess_precision": False}
    return jax.jit(both, compiler_options=compiler_options)(inputs, cotangents)


def check(kind, implementation, arrays, options, twice):
    x, residual, scale_out, scale_in, dh, dy = arrays
    function = pallas_kernels.norm_add_norm if twice else pallas_kernels.norm_add
    settings = {"kind": kind, "implementation": implementation, "interpret": implementation != "xla"}
    call = functools.partial(function, **options, **settings)
    if twice:
        named = {"x": x, "residual": residual, "scale_out": scale_out, "scale_in": scale_in}
        (h, y), gradients = outputs_and_gradients(call, implementation, tuple(named.values()), (dh, dy))
    else:
        named = {"x": x, "residual": residual, "scale_out": scale_out}
        h, gradients = outputs_and_gradients(call, implementation, tuple(named.values()), dh)
    for name, array, gradient in zip(named, named.values(), gradients, strict=True):
        assert (array is None) == (gradient is None), name
        assert array is None or (gradient.dtype, gradient.shape) == (array.dtype, array.shape), name
    found = dict(zip(named, gradients, strict=True))
    assert h.dtype == residual.dtype
    oracle.assert_close(h, *peri_norm_oracle.forward(kind, x, residual, scale_out, **options), "h")
    stream, tolerance = np.asarray(dh, np.float64), 0.0
    if twice:
        assert y.dtype == x.dtype
        oracle.assert_close(y, *oracle.forward(kind, h, scale_in, None, **options), "y")
        inner = oracle.backward(kind, h, scale_in, None, dy, dsum=dh, **options)
        stream, tolerance = inner["x"]
        if scale_in is not None:
            oracle.assert_close(found["scale_in"], *inner["scale"], "gradient of scale_in")
        # XLA's derivative of the sum's rounding is a rounding, a kernel's is none.
        narrow = implementation == "xla" and residual.dtype != jnp.float32
        oracle.assert_close(found["residual"], stream, tolerance, "gradient of residual")
        tolerance = tolerance + narrow * float(jnp.finfo(residual.dtype).eps) * np.abs(stream)
    else:
        np.testing.assert_array_equal(found["residual"], dh)
    outer = peri_norm_oracle.backward(kind, x, scale_out, stream, tolerance, **options)
    oracle.assert_close(found["x"], *outer["x"], "gradient of x")
    if scale_out is not None:
        oracle.assert_close(found["scale_out"], *outer["scale"], "gradient of scale_out")


def visited(shape, implementation, twice):
    """Every shape sees both norms, in one implementation; one norm is some of the same lines, backward a row norm."""
    return (shape + implementation) % 3 == 0 if twice else shape % 6 == 1 and implementation == shape // 6 % 3


CASES = [
    pytest.param(name, KINDS[(i + k) % 2], implementation, twice, id=f"{name}-{implementation}-{1 + twice}")
    for i, name in enumerate(shapes.SMALL)
    for k, implementation in enumerate(IMPLEMENTATIONS)
    for twice in (True, False)
    if EVERYTHING or visited(i, k, twice)
]


@pytest.mark.parametrize(("name", "kind", "implementation", "twice"), CASES)
def test_agrees_with_float64(rng, name, kind, implementation, twice):
    shape = shapes.SMALL[name]
    check(kind, implementation, inputs(rng, shape), options_of(shape.axis), twice)


@pytest.mark.parametrize(
    ("implementation", "twice"), [("xla", True), ("mosaic_tpu", True), ("triton", True), ("mosaic_tpu", False)]
)
def test_a_float32_stream_of_bfloat16_layers(rng, implementation, twice):
    check("rms", implementation, inputs(rng, shapes.SMALL["odd_rows_and_width"], "float32"), options_of(-1), twice)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_scales(rng, implementation):
    x, residual, _, _, dh, dy = inputs(rng, shapes.SMALL["partial_block"])
    check("layer", implementation, (x, residual, None, None, dh, dy), options_of(-1, 0.0), True)


@pytest.fixture
def small_tiles(monkeypatch):
    """Loops that need wide or many rows, on narrow and few ones."""
    monkeypatch.setattr(row_norm_gpu, "PROGRAMS", 6)
    monkeypatch.setattr(gpu, "FEATURES", 64)
    monkeypatch.setattr(_gpu_tiling, "FEATURES", 64)
    monkeypatch.setattr(_gpu_tiling, "TILE", 64)
    monkeypatch.setattr(_strips, "UNROLLED", 1)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize(("implementation", "name"), [("mosaic_tpu", "three_strips"), ("triton", "partial_block")])
def test_loops_over_tiles_and_strips(rng, small_tiles, name, implementation):
    shape = shapes.SMALL[name]
    check("layer", implementation, inputs(rng, shape), options_of(shape.axis), True)


def test_no_races_and_nothing_out_of_bounds(rng):
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    # Two threads share the steps of a parallel grid.
    interpret = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    settings = NormAdd("layer", (1,), 1e-6, twice=True, interpret=interpret)
    draw = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)
    tensors, scales = (draw(70, 20), draw(70, 20)), (draw(20), draw(20))
    cotangents = draw(70, 20), draw(70, 20)

    def passes(room, *block):
        outputs, saved = room.forward(settings, (*tensors, *scales), True, *block)
        return *outputs, *room.backward(settings, scales, saved, cotangents, *block)

    found = jax.block_until_ready(jax.jit(lambda: passes(tpu, 64))())
    # JAX 0.12 raises instead.
    assert not (interpret_pallas_call.races and interpret_pallas_call.races.races_found)
    expected = jax.jit(lambda: passes(reference))()
    for a, b in zip(found, expected, strict=True):
        # Both are float32 and sum in their own order: a few eps of the largest terms, over 70 rows.
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * np.finfo(np.float32).eps * np.abs(b).max())


def placed_problem(rng, mode, spec):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(getattr(AxisType, mode),) * 2)
    arrays = inputs(rng, shapes.Shape((8, 4, 16), "float32"))
    features = P(spec[2] if len(spec) > 2 else None)
    specs = spec, spec, features, features, spec, spec
    placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)]
    return {"mesh": mesh, "spec": spec} if mode == "Auto" else {}, arrays, placed


@pytest.mark.parametrize(
    ("mode", "spec", "implementation", "forward_reduces", "reduces"),
    [
        ("Auto", P("data"), "mosaic_tpu", 0, 1),
        ("Explicit", P(("data", "model")), "triton", 0, 1),
        # Statistics of both norms; backward their projections too, the first in one message with the statistics before
        # it, and the scales over the split rows.
        ("Auto", P("data", None, "model"), None, 2, 4),
    ],
)
def test_on_a_mesh(rng, mode, spec, implementation, forward_reduces, reduces):
    place, arrays, placed = placed_problem(rng, mode, spec)
    options = options_of(-1) | {"implementation": implementation, "interpret": implementation is not None}
    call = functools.partial(pallas_kernels.norm_add_norm, **options, **place)
    forward = jax.jit(call).lower(*placed[:4]).compile()
    both = jax.jit(lambda *a: jax.vjp(call, *a[:4])[1](a[4:])).lower(*placed).compile()
    count = lambda compiled: pallas_kernels.count_collectives(compiled).get("all-reduce", 0)
    assert (count(forward), count(both)) == (forward_reduces, reduces)
    assert not {*pallas_kernels.count_collectives(both)} - {"all-reduce"}
    one = functools.partial(pallas_kernels.norm_add_norm, **options_of(-1), implementation="xla")
    expected = outputs_and_gradients(one, "xla", arrays[:4], arrays[4:])
    for a, b in zip((*forward(*placed[:4]), *both(*placed)), (*expected[0], *expected[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * np.finfo(np.float32).eps * np.abs(b).max())


@pytest.mark.parametrize("implementation", KERNELS)
def test_vmap_of_the_gradient_keeps_examples_apart(rng, implementation):
    arrays = inputs(rng, shapes.Shape((3, 5, 12), "float32"))
    call = functools.partial(pallas_kernels.norm_add_norm, implementation=implementation, interpret=True)

    @jax.jit
    def gradient(x, residual, dh, dy):
        return jax.vjp(jax.checkpoint(call), x, residual, *arrays[2:4])[1]((dh, dy))

    mapped = jax.jit(jax.vmap(gradient))(*arrays[:2], *arrays[4:])
    for i in range(3):
        for a, b in zip(mapped, gradient(*(arrays[k][i] for k in (0, 1, 4, 5))), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=0, atol=16 * np.finfo(np.float32).eps * np.abs(b).max())


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((jnp.ones((2, 4)), jnp.ones((2, 3))), {}, ValueError, r"must have one shape, got \(2, 4\) and \(2, 3\)"),
        ((jnp.ones((2, 4)), jnp.ones((2, 4), jnp.int8)), {}, TypeError, "real floating residual, got int8; cast it"),
        ((jnp.ones(4), jnp.ones(4)), {"kind": "crms"}, ValueError, r"kind='crms' is unknown; expected one of \('rms'"),
        ((jnp.ones(4), jnp.ones(4), jnp.ones(3)), {}, ValueError, r"scale must have the shape \(4,\) .* got \(3,\)"),
        ((jnp.ones(4), jnp.ones(4)), {"scale_offset": 1.0}, ValueError, "to a scale, but scale is None; pass zeros"),
        ((jnp.ones(4), jnp.ones(4)), {"epsilon": -1.0}, ValueError, "epsilon must not be negative, got -1.0"),
        (
            (jnp.ones(4, jnp.float16), jnp.ones(4)),
            {"implementation": "mosaic_tpu"},
            NotImplementedError,
            "takes float32, bfloat16 and computes in float32, got float16, float32; use implementation='xla'",
        ),
    ],
)
def test_errors_say_what_came_and_the_way_out(arguments, options, error, message):
    with pytest.raises(error, match=message):
        pallas_kernels.norm_add(*arguments, **options)
