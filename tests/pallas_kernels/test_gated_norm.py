"""Gated RMS norms against float64 NumPy, forward and backward; on a mesh; in the interpreter that knows of memory."""

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
from pallas_kernels._dispatch import IMPLEMENTATIONS
from pallas_kernels.gated_norm import shapes
from pallas_kernels.gated_norm.api import ACTIVATIONS
from pallas_kernels.row_norm import reference, tpu
from pallas_kernels.row_norm.formula import RowNorm
from pallas_kernels.row_norm.gate import Gate
from tests.pallas_kernels import gated_oracle, oracle
from tests.pallas_kernels.test_placement import FEATURES, mesh_of
from tests.pallas_kernels.test_tpu_interpreter import PARAMS, races_found

KERNELS = ["mosaic_tpu", "triton"]
VARIANTS = list(itertools.product(ACTIVATIONS, (False, True)))
EPSILON = 1e-5


def inputs(rng, shape, gate_dtype=None):
    axes = (shape.axis,) if isinstance(shape.axis, int) else shape.axis
    draw = lambda s, dtype: rng.normal(size=s).astype(np.float32).astype(jnp.dtype(dtype))
    x, dy = draw(shape.shape, shape.dtype), draw(shape.shape, shape.dtype)
    gate = draw(shape.shape, gate_dtype or shape.dtype)
    return x, gate, draw(tuple(shape.shape[a] for a in axes), "float32"), dy


def check(arrays, implementation, axis, activation, gate_first, scale_offset=0.0):
    options = {"activation": activation, "gate_first": gate_first, "axis": axis, "scale_offset": scale_offset}
    options |= {"epsilon": EPSILON}
    call = functools.partial(
        pallas_kernels.gated_rms_norm, implementation=implementation, interpret=implementation != "xla", **options
    )

    def both(x, gate, scale, dy):
        y, vjp = jax.vjp(call, x, gate, scale)
        return y, vjp(dy)

    primals = arrays[:3]
    y, gradients = jax.jit(both)(*arrays)
    assert y.dtype == primals[0].dtype
    oracle.assert_close(y, *gated_oracle.forward(*primals, **options), "y")
    expected = gated_oracle.backward(*arrays, **options)
    for name, array, gradient in zip(("x", "gate", "scale"), primals, gradients, strict=True):
        if array is None:
            assert gradient is None
        else:
            assert (gradient.dtype, gradient.shape) == (array.dtype, array.shape)
            oracle.assert_close(gradient, *expected[name], f"gradient of {name}")


# Every shape by one implementation and variant in turn: the kernels' loops are the plain norm's, which sees them all.
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
CASES = [
    pytest.param(name, implementation, *variant, id=f"{name}-{implementation}-{'-'.join(map(str, variant))}")
    for i, name in enumerate(shapes.SMALL)
    for k, implementation in enumerate(IMPLEMENTATIONS)
    for j, variant in enumerate(VARIANTS)
    if NIGHTLY or (i % len(IMPLEMENTATIONS) == k and i // len(IMPLEMENTATIONS) % len(VARIANTS) == j)
]


@pytest.mark.parametrize(("name", "implementation", "activation", "gate_first"), CASES)
def test_agrees_with_float64(rng, name, implementation, activation, gate_first):
    shape = shapes.SMALL[name]
    check(inputs(rng, shape), implementation, shape.axis, activation, gate_first)


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_wide_gate_and_scale_offset(rng, implementation, gate_first):
    arrays = inputs(rng, shapes.SMALL["odd_rows_and_width"], "float32")
    check(arrays, implementation, -1, "silu", gate_first, scale_offset=1.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_without_scale_and_with_a_closed_gate(rng, implementation):
    x, gate, _, dy = inputs(rng, shapes.SMALL["partial_block"])
    gate[3] = -200.0
    check((x, gate, None, dy), implementation, -1, "silu", True)


@pytest.mark.parametrize("implementation", KERNELS)
def test_vmap_remat_and_a_donated_gate(rng, implementation):
    x, gate, scale, dy = inputs(rng, shapes.Shape((3, 5, 12), "float32"))
    call = functools.partial(pallas_kernels.gated_rms_norm, implementation=implementation, interpret=True)
    mapped = jax.checkpoint(jax.vmap(call, in_axes=(0, 0, None)))
    step = jax.jit(lambda *a: jax.vjp(mapped, *a[:3])[1](a[3]), donate_argnums=1)
    expected = gated_oracle.backward(x, gate, scale, dy, activation="silu", gate_first=False, axis=-1, epsilon=1e-6)
    for name, found in zip(("x", "gate", "scale"), step(x, jnp.array(gate), scale, dy), strict=True):
        oracle.assert_close(found, *expected[name], name)


@pytest.mark.parametrize("implementation", KERNELS)
def test_split_rows_need_one_all_reduce_for_the_scale(rng, implementation):
    check_on_mesh(rng, P("data"), {"implementation": implementation, "interpret": True}, {}, {"all-reduce": 1})


def test_split_features_need_one_all_reduce_forward(rng):
    # Backward the mean square and the projection meet in one; another is the scale's, whose rows are split too.
    check_on_mesh(rng, FEATURES[0], {}, {"all-reduce": 1}, {"all-reduce": 2})


def check_on_mesh(rng, spec, options, forward_collectives, both_collectives):
    mesh = mesh_of("Auto")
    arrays = inputs(rng, shapes.Shape((8, 4, 16), "float32"))
    specs = spec, spec, P(spec[2] if len(spec) > 2 else None), spec
    placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)]
    gated = {"activation": "silu", "gate_first": True}
    call = functools.partial(pallas_kernels.gated_rms_norm, mesh=mesh, spec=spec, **gated, **options)
    forward = jax.jit(call).lower(*placed[:3]).compile()
    both = jax.jit(lambda *a: jax.vjp(call, *a[:3])[1](a[3])).lower(*placed).compile()
    assert pallas_kernels.count_collectives(forward) == forward_collectives
    assert pallas_kernels.count_collectives(both) == both_collectives
    expected = gated_oracle.backward(*arrays, axis=-1, epsilon=1e-6, **gated)
    for name, gradient in zip(("x", "gate", "scale"), both(*placed), strict=True):
        oracle.assert_close(gradient, *expected[name], name)


def test_no_races_and_nothing_out_of_bounds(rng):
    settings = RowNorm("rms", (1,), 1e-6, gate=Gate("silu", False), interpret=PARAMS)
    x, gate, scale, dy = inputs(rng, shapes.Shape((66, 20), "float32"))

    def passes(room, *block):
        outputs, saved = room.forward(settings, (x, gate, scale, None), True, *block)
        return *outputs, *room.backward(settings, (scale, None), saved, (dy,), *block)[:3]

    found, expected = jax.block_until_ready(jax.jit(lambda: passes(tpu, 64))()), jax.jit(lambda: passes(reference))()
    assert not races_found()
    pltpu.reset_tpu_interpret_mode_state()
    for a, b in zip(found, expected, strict=True):
        # Both are float32 and sum in their own order: a few eps of the largest terms, over 66 rows.
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * np.finfo(np.float32).eps * np.abs(b).max())


@pytest.mark.parametrize(
    ("gate", "options", "error", "message"),
    [
        (jnp.ones((2, 3)), {}, ValueError, r"x and gate must have one shape, got \(2, 4\) and \(2, 3\)"),
        (jnp.ones((2, 4), jnp.int32), {}, TypeError, "gate must be a real floating array, got int32"),
        (2.0, {}, TypeError, "gate must be a real floating array, got float"),
        (jnp.ones((2, 4)), {"activation": "gelu"}, ValueError, "activation='gelu' is unknown; expected one of"),
        (
            jnp.ones((2, 4), jnp.float16),
            {"implementation": "mosaic_tpu"},
            NotImplementedError,
            "takes float32, bfloat16 and computes in float32, got float32, float16; use implementation='xla'",
        ),
    ],
)
def test_errors_say_what_came_and_the_way_out(gate, options, error, message):
    with pytest.raises(error, match=message):
        pallas_kernels.gated_rms_norm(jnp.ones((2, 4)), gate, **options)
