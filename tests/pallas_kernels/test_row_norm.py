"""Every row norm, shape and implementation against float64 NumPy, forward and backward.

The interpreter fills outputs and what lies beyond an array with NaN, so that a value that was not written or not
masked is seen.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import pallas_kernels
from pallas_kernels import _gpu_tiling, _strips
from pallas_kernels._dispatch import IMPLEMENTATIONS
from pallas_kernels.row_norm import gpu, shapes
from tests.pallas_kernels import oracle

CALLS = {"layer": pallas_kernels.layer_norm, "rms": pallas_kernels.rms_norm, "crms": pallas_kernels.crms_norm}
EPSILON = 1e-5


def inputs(rng, shape, kind):
    """x with an offset, dy, and parameters of the shape of the axes; rms without a bias, crms with neither."""
    axes = (shape.axis,) if isinstance(shape.axis, int) else shape.axis
    features = tuple(shape.shape[a] for a in axes)
    draw = lambda s, dtype: rng.normal(size=s).astype(jnp.dtype(dtype))
    x = draw(shape.shape, "float32") + 1
    scale = None if kind == "crms" else draw(features, "float32")
    bias = draw(features, "float32") if kind == "layer" else None
    return x.astype(jnp.dtype(shape.dtype)), scale, bias, draw(shape.shape, shape.dtype)


def norm(kind, implementation, **options):
    """The public call of `(x, scale, bias)`."""
    options |= {"implementation": implementation, "interpret": implementation != "xla", "epsilon": EPSILON}
    if kind == "crms":
        return lambda x, scale, bias: CALLS[kind](x, **options)
    return functools.partial(CALLS[kind], **options)


def value_and_vjp(call, x, scale, bias, dy):
    """The output and the cotangents of the inputs, compiled together."""

    def both(x, scale, bias, dy):
        y, vjp = jax.vjp(call, x, scale, bias)
        return y, vjp(dy)

    return jax.jit(both)(x, scale, bias, dy)


def check(kind, call, arrays, axis, scale_offset=0.0):
    x, scale, bias, dy = arrays
    y, gradients = value_and_vjp(call, *arrays)
    options = {"axis": axis, "epsilon": EPSILON, "scale_offset": scale_offset}
    assert y.dtype == x.dtype
    oracle.assert_close(y, *oracle.forward(kind, x, scale, bias, **options), "y")
    expected = oracle.backward(kind, x, scale, bias, dy, **options)
    for name, array, gradient in zip(("x", "scale", "bias"), (x, scale, bias), gradients, strict=True):
        if array is None:
            assert gradient is None
        else:
            assert (gradient.dtype, gradient.shape) == (array.dtype, array.shape)
            oracle.assert_close(gradient, *expected[name], f"gradient of {name}")


# layer runs every line of the kernels; rms and crms leave some out, or differ in the formulas that all share, and XLA
# knows no blocks whose edges a shape could meet. All of it is for the nightly profile.
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
CASES = [
    pytest.param(name, kind, implementation, id=f"{name}-{kind}-{implementation}")
    for i, name in enumerate(shapes.SMALL)
    for k, implementation in enumerate(IMPLEMENTATIONS)
    for kind, visited in (
        ("layer", implementation != "xla" or i % 4 == 0),
        ("rms", (i + k) % 6 == 0),
        ("crms", (i + k) % 8 == 1),
    )
    if visited or NIGHTLY
]


@pytest.mark.parametrize(("name", "kind", "implementation"), CASES)
def test_agrees_with_float64(rng, name, kind, implementation):
    shape = shapes.SMALL[name]
    check(kind, norm(kind, implementation, axis=shape.axis), inputs(rng, shape, kind), shape.axis)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scale_offset_and_parameters_of_another_dtype(rng, implementation):
    x, scale, bias, dy = inputs(rng, shapes.SMALL["rows_above_bf16_register"], "layer")
    scale, bias = scale.astype(jnp.bfloat16), bias.astype(jnp.bfloat16)
    for kind in ("layer", "rms"):
        check(kind, norm(kind, implementation, scale_offset=1.0), (x, scale, bias, dy), -1, scale_offset=1.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_parameters(rng, implementation):
    x, _, _, dy = inputs(rng, shapes.SMALL["partial_block"], "crms")
    check("layer", norm("layer", implementation), (x, None, None, dy), -1)


def test_float16_with_triton(rng):
    shape = shapes.SMALL["odd_rows_and_width"]._replace(dtype="float16")
    check("layer", norm("layer", "triton"), inputs(rng, shape, "layer"), -1)


@pytest.fixture
def small_tiles(monkeypatch):
    """Loops that need wide or many rows, on narrow and few ones."""
    monkeypatch.setattr(gpu, "PROGRAMS", 6)
    monkeypatch.setattr(_gpu_tiling, "FEATURES", 64)
    monkeypatch.setattr(_gpu_tiling, "TILE", 64)
    monkeypatch.setattr(_strips, "UNROLLED", 1)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("implementation", ["mosaic_tpu", "triton"])
@pytest.mark.parametrize("name", ["partial_block", "three_strips", "middle_axis"])
def test_loops_over_tiles_and_strips(rng, small_tiles, name, implementation):
    shape = shapes.SMALL[name]
    check("layer", norm("layer", implementation, axis=shape.axis), inputs(rng, shape, "layer"), shape.axis)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_variance_of_a_distant_row(rng, implementation):
    # E[x²] − E[x]² would be off by 1e4² eps = 12 times the variance.
    x = jnp.asarray(1e4 + rng.normal(size=(4, 100)), jnp.float32)
    y = jax.jit(norm("layer", implementation))(x, None, None)
    oracle.assert_close(y, *oracle.forward("layer", x, None, None, axis=-1, epsilon=EPSILON), "y")


@pytest.mark.parametrize("implementation", ["mosaic_tpu", "triton"])
@pytest.mark.parametrize("axis", [-1, 0])
def test_a_row_has_the_same_bits_in_any_batch(rng, implementation, axis):
    # Batches of several blocks each: XLA's CPU compiler inlines a grid of one step, and then contracts other products
    # with sums than in a loop, which says nothing of the kernel.
    x, dy = (rng.normal(size=(1100, 12)).astype(np.float32) for _ in range(2))
    place = lambda a: a if axis == -1 else a.T

    @jax.jit
    def value_and_gradient(x, dy):
        y, vjp = jax.vjp(lambda x: norm("layer", implementation, axis=axis)(x, None, None), place(x))
        return tuple(map(place, (y, *vjp(place(dy)))))

    rows = slice(417, 1050)
    for part, all_rows in zip(value_and_gradient(x[rows], dy[rows]), value_and_gradient(x, dy), strict=True):
        np.testing.assert_array_equal(part, all_rows[rows])


def test_the_interpreter_poisons_what_a_kernel_leaves_out():
    def writes_half(x_ref, o_ref):
        o_ref[:4, :] = x_ref[:4, :]

    shape = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    y = pl.pallas_call(writes_half, out_shape=shape, interpret=True)(jnp.ones(shape.shape))
    assert np.isfinite(y[:4]).all()
    assert np.isnan(y[4:]).all()
