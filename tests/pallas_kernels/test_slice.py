"""Kernels on a slice of sixteen TPUs, compiled ahead of time: no more collectives than needed, counted in the HLO."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import pallas_kernels
from pallas_kernels.analysis import tpu

SHAPE, FEATURES = (16, 512, 1024), 1024
ROWS, SPLIT_FEATURES = P("data"), P("data", None, "model")


@pytest.fixture(scope="module")
def devices():
    if not tpu.available():
        pytest.skip("libtpu is not installed (extra tpu)")
    return np.array(tpu.slice_devices("v5e:4x4")).reshape(4, 4)


def mesh_of(devices, mode):
    return jax.sharding.Mesh(devices, ("data", "model"), axis_types=(getattr(AxisType, mode),) * 2)


def compiled(call, mesh, spec, arrays, direction):
    """One pass of `call(*arrays)`; arrays of fewer than three dimensions are split as the features are."""
    features = P(*([None] * 2 + [spec[2] if len(spec) > 2 else None])[-1:])
    place = lambda a: NamedSharding(mesh, spec if a.ndim >= 3 else features)
    like = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place(a))
    arrays = tuple(map(like, arrays))
    if direction == "forward":
        return jax.jit(call).lower(*arrays).compile()
    outputs = jax.eval_shape(call, *arrays)
    cotangents = jax.tree.map(like, outputs)
    return jax.jit(lambda dy, *arrays: jax.vjp(call, *arrays)[1](dy)).lower(cotangents, *arrays).compile()


def all_reduced(program):
    """The element types and sizes that all-reduces of a program take."""
    results = re.findall(r"= (\(?[^=]*?)\s*all-reduce(?:-start)?\(", program.as_text())
    arrays = [array for result in results for array in re.findall(r"(\w+)\[([\d,]*)\]", result)]
    return [(dtype, int(np.prod([int(d) for d in dims.split(",") if d]))) for dtype, dims in arrays]


def tensor(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def parameters(count, features=FEATURES):
    return (jax.ShapeDtypeStruct((features,), jnp.float32),) * count


# Arrays of each kernel, and how many parameters' gradients its all-reduces sum.
X = tensor(*SHAPE)
KERNELS = {
    "layer_norm": ((X, *parameters(2)), 2),
    "add_rms_norm": ((X, X, *parameters(1)), 1),
    "norm_add_norm": ((X, X, *parameters(2)), 2),
    "gated_rms_norm": ((X, X, *parameters(1)), 1),
    "qk_norm": ((tensor(16, 512, 8, 128), tensor(16, 512, 8, 128), *parameters(2, 128)), 2),
    "group_norm": ((tensor(16, 32, 32, 128), *parameters(2, 128)), 2),
}


def call_of(kernel, mode, mesh, spec, **options):
    options |= {"mesh": mesh, "spec": spec} if mode == "Auto" else {}
    options |= {"num_groups": 32} if kernel == "group_norm" else {}
    return functools.partial(getattr(pallas_kernels, kernel), **options)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mode", ["Auto", "Explicit"])
def test_split_rows_need_an_all_reduce_of_the_parameters_gradients_only(devices, mode, kernel):
    mesh = mesh_of(devices, mode)
    arrays, summed = KERNELS[kernel]
    call = call_of(kernel, mode, mesh, ROWS, implementation="mosaic_tpu")
    forward, backward = (compiled(call, mesh, ROWS, arrays, d) for d in ("forward", "backward"))
    for program in (forward, backward):
        assert "tpu_custom_call" in pallas_kernels.custom_call_targets(program)
    assert pallas_kernels.count_collectives(forward) == {}
    # One message, or one for queries and one for keys, which XLA may send as one.
    assert set(pallas_kernels.count_collectives(backward)) == {"all-reduce"}
    assert pallas_kernels.count_collectives(backward)["all-reduce"] <= (2 if kernel == "qk_norm" else 1)
    found = all_reduced(backward)
    assert {dtype for dtype, _ in found} == {"f32"}
    assert sum(size for _, size in found) == summed * arrays[-1].shape[0]


@pytest.mark.parametrize("kernel", ["layer_norm", "add_rms_norm"])
@pytest.mark.parametrize("mode", ["Auto", "Explicit"])
def test_split_features_need_one_small_all_reduce_forward(devices, mode, kernel):
    mesh = mesh_of(devices, mode)
    arrays, _ = KERNELS[kernel]
    call = call_of(kernel, mode, mesh, SPLIT_FEATURES)
    forward, backward = (compiled(call, mesh, SPLIT_FEATURES, arrays, d) for d in ("forward", "backward"))
    assert pallas_kernels.count_collectives(forward) == {"all-reduce": 1}
    # Statistics and projections over the features, and the parameters' gradients over the rows.
    assert pallas_kernels.count_collectives(backward) == {"all-reduce": 3}
    rows, shards = SHAPE[0] // 4 * SHAPE[1], 4
    # Mean and squares of every shard of a row at most, where each shard has 256 features.
    assert sum(size for _, size in all_reduced(forward)) <= 2 * shards * rows
