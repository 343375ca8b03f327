"""Addition and norm in one pass against float64 NumPy: both outputs, and gradients with the sum's own cotangent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels._dispatch import IMPLEMENTATIONS
from pallas_kernels.add_norm import shapes
from tests.pallas_kernels import oracle

CALLS = {"layer": pallas_kernels.add_layer_norm, "rms": pallas_kernels.add_rms_norm}
EPSILON = 1e-5


def check(rng, kind, implementation, shape, residual_dtype=None):
    axes = (shape.axis,) if isinstance(shape.axis, int) else shape.axis
    features = tuple(shape.shape[a] for a in axes)
    wide = residual_dtype or shape.dtype
    draw = lambda s, dtype: rng.normal(size=s).astype(np.float32).astype(jnp.dtype(dtype))
    x, dy = draw(shape.shape, shape.dtype), draw(shape.shape, shape.dtype)
    residual, dsum = draw(shape.shape, wide), draw(shape.shape, wide)
    scale = draw(features, "float32")
    bias = draw(features, "float32") if kind == "layer" else None
    options = {"axis": shape.axis, "epsilon": EPSILON, "scale_offset": 1.0}

    def both(x, residual, scale, bias, cotangents):
        call = lambda *a: CALLS[kind](*a, implementation=implementation, interpret=implementation != "xla", **options)
        outputs, vjp = jax.vjp(call, x, residual, scale, bias)
        return outputs, vjp(cotangents)

    # The interpreter is XLA, which would drop a kernel's rounding of the sum; on a device nothing does.
    compiler_options = {} if implementation == "xla" else {"xla_allow_excess_precision": False}
    compiled = jax.jit(both, compiler_options=compiler_options)
    (total, y), gradients = compiled(x, residual, scale, bias, (dsum, dy))
    assert (total.dtype, y.dtype) == (residual.dtype, x.dtype)
    # The sum is rounded once, so that it has the bits of the sum computed apart.
    np.testing.assert_array_equal(total, x.astype(jnp.dtype(wide)) + residual)
    oracle.assert_close(y, *oracle.forward(kind, total, scale, bias, **options), "y")
    expected = oracle.backward(kind, total, scale, bias, dy, dsum=dsum, **options)
    expected["residual"] = expected["x"]
    for name, array, gradient in zip(
        ("x", "residual", "scale", "bias"), (x, residual, scale, bias), gradients, strict=True
    ):
        if array is None:
            assert gradient is None
        else:
            assert (gradient.dtype, gradient.shape) == (array.dtype, array.shape)
            oracle.assert_close(gradient, *expected[name], f"gradient of {name}")


# XLA's formula has no blocks that a shape could miss.
@pytest.mark.parametrize(
    ("name", "implementation"),
    [(n, i) for k, n in enumerate(shapes.SMALL) for i in IMPLEMENTATIONS if i != "xla" or k % 4 == 0],
)
def test_agrees_with_float64(rng, name, implementation):
    kind = ("layer", "rms")[list(shapes.SMALL).index(name) % 2]
    check(rng, kind, implementation, shapes.SMALL[name])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_float32_stream_of_bfloat16_layers(rng, implementation):
    check(rng, "layer", implementation, shapes.SMALL["odd_rows_and_width"], "float32")


def test_what_does_not_add():
    x = jnp.ones((2, 4))
    with pytest.raises(ValueError, match=r"one shape, got \(2, 4\) and \(2, 3\)"):
        pallas_kernels.add_rms_norm(x, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="the sum has the residual's dtype, bfloat16, which cannot hold x of float32"):
        pallas_kernels.add_layer_norm(x, x.astype(jnp.bfloat16))
    with pytest.raises(TypeError, match="expected real floating arrays, got float32 and int32"):
        pallas_kernels.add_rms_norm(x, jnp.ones((2, 4), jnp.int32))
