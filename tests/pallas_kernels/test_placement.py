"""Kernels on a mesh of eight devices: the values of one device, and no more collectives than needed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import pallas_kernels
from tests.pallas_kernels import oracle

ROWS = [P("data"), P(("data", "model")), P("data", "model")]
FEATURES = [P("data", None, "model"), P(None, None, ("data", "model"))]
OPTIONS = {"axis": -1, "epsilon": 1e-6}


def mesh_of(mode):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(getattr(AxisType, mode),) * 2)


def problem(rng, mesh, spec, kind="layer"):
    """Arrays on the mesh, and the same on one device."""
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    arrays = draw(8, 4, 16), draw(16), draw(16), draw(8, 4, 16)
    features = P(spec[2] if len(spec) > 2 else None)
    specs = spec, features, features, spec
    return [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)], arrays


def call_of(mode, mesh, spec, **options):
    """In Explicit mode the types say where the arrays are."""
    options |= {"mesh": mesh, "spec": spec} if mode == "Auto" else {}
    return functools.partial(pallas_kernels.layer_norm, **options)


def compiled_pair(call, placed):
    """Forward; and forward with backward."""
    forward = jax.jit(call).lower(*placed[:3]).compile()
    both = jax.jit(lambda x, scale, bias, dy: jax.vjp(call, x, scale, bias)[1](dy)).lower(*placed).compile()
    return forward, both


def check_values(forward, both, placed, arrays):
    x, scale, bias, dy = arrays
    oracle.assert_close(forward(*placed[:3]), *oracle.forward("layer", x, scale, bias, **OPTIONS), "y")
    expected = oracle.backward("layer", x, scale, bias, dy, **OPTIONS)
    for name, gradient in zip(expected, both(*placed), strict=True):
        oracle.assert_close(gradient, *expected[name], name)


# Every mode with every way to split rows, by one kernel or the other: what places them is the same.
SPLIT_ROWS = [
    pytest.param(mode, spec, ("mosaic_tpu", "triton")[(i + j) % 2], id=f"{mode}-{spec}")
    for i, mode in enumerate(("Auto", "Explicit"))
    for j, spec in enumerate(ROWS)
]


@pytest.mark.parametrize(("mode", "spec", "implementation"), SPLIT_ROWS)
def test_split_rows_need_one_all_reduce_for_the_parameters(rng, mode, spec, implementation):
    mesh = mesh_of(mode)
    placed, arrays = problem(rng, mesh, spec)
    forward, both = compiled_pair(call_of(mode, mesh, spec, implementation=implementation, interpret=True), placed)
    assert pallas_kernels.count_collectives(forward) == {}
    assert pallas_kernels.count_collectives(both) == {"all-reduce": 1}
    assert forward.output_shardings.is_equivalent_to(NamedSharding(mesh, spec), 3)
    check_values(forward, both, placed, arrays)


@pytest.mark.parametrize("spec", FEATURES, ids=str)
@pytest.mark.parametrize("mode", ["Auto", "Explicit"])
def test_split_features_need_one_all_reduce_forward(rng, mode, spec):
    mesh = mesh_of(mode)
    placed, arrays = problem(rng, mesh, spec)
    forward, both = compiled_pair(call_of(mode, mesh, spec), placed)
    assert pallas_kernels.count_collectives(forward) == {"all-reduce": 1}
    # Statistics, projections, and the parameters where rows are split too.
    assert pallas_kernels.count_collectives(both) == {"all-reduce": 3 if spec[0] else 2}
    check_values(forward, both, placed, arrays)


def test_split_features_of_a_distant_row_cancel_nothing(rng):
    mesh = mesh_of("Auto")
    x = jnp.asarray(1e4 + rng.normal(size=(8, 4, 16)), jnp.float32)
    y = pallas_kernels.layer_norm(x, mesh=mesh, spec=FEATURES[0])
    oracle.assert_close(y, *oracle.forward("layer", x, None, None, **OPTIONS), "y")


def test_addition_and_rms_on_a_mesh(rng):
    mesh, spec = mesh_of("Auto"), ROWS[0]
    (x, scale, _, residual), arrays = problem(rng, mesh, spec)
    options = {"implementation": "mosaic_tpu", "interpret": True, "mesh": mesh, "spec": spec}
    call = lambda *a: pallas_kernels.add_rms_norm(*a, **options)
    both = jax.jit(lambda x, r, s: jax.vjp(call, x, r, s)[1]((x, r))).lower(x, residual, scale).compile()
    assert pallas_kernels.count_collectives(both) == {"all-reduce": 1}
    dx, dresidual, dscale = both(x, residual, scale)
    total = arrays[0] + arrays[3]
    expected = oracle.backward("rms", total, arrays[1], None, arrays[3], dsum=arrays[0], **OPTIONS)
    np.testing.assert_array_equal(dx, dresidual)
    oracle.assert_close(dx, *expected["x"], "x")
    oracle.assert_close(dscale, *expected["scale"], "scale")


def test_inside_a_shard_map_a_kernel_is_local(rng):
    mesh = mesh_of("Auto")
    (x, scale, bias, _), arrays = problem(rng, mesh, ROWS[0])
    local = functools.partial(pallas_kernels.layer_norm, implementation="triton", interpret=True)
    specs = {"in_specs": (P("data"), P(), P()), "out_specs": P("data"), "check_vma": False}
    y = jax.jit(jax.shard_map(local, mesh=mesh, **specs))(x, scale, bias)
    oracle.assert_close(y, *oracle.forward("layer", *arrays[:3], **OPTIONS), "y")


def test_what_cannot_be_placed():
    mesh = mesh_of("Auto")
    x = jnp.ones((8, 4, 16))
    with pytest.raises(ValueError, match=r"needs whole rows on each device, .* over \('model',\); reshard x, or pass"):
        pallas_kernels.layer_norm(x, implementation="triton", mesh=mesh, spec=FEATURES[0])
    with pytest.raises(ValueError, match="mesh and spec belong together"):
        pallas_kernels.layer_norm(x, mesh=mesh)
    with pytest.raises(ValueError, match="has more entries than x of shape"):
        pallas_kernels.layer_norm(x[0, 0], mesh=mesh, spec=P(None, "data"))
    local = functools.partial(pallas_kernels.layer_norm, implementation="triton", interpret=True)
    partly = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"), axis_names={"data"})
    with pytest.raises(ValueError, match="make all mesh axes manual"):
        partly(x)
