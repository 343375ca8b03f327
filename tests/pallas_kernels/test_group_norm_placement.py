"""Group norm on a mesh of eight devices: the values of one device, and no more collectives than needed."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import pallas_kernels
from tests.pallas_kernels import group_oracle, oracle

OPTIONS = {"num_groups": 4, "epsilon": 1e-5}
BATCH, CHANNELS, SPACE = P(("data", "model")), P("data", None, None, "model"), P("data", "model")


def problem(rng, mode, spec):
    """The call, arrays on the mesh, and the same on one device. In Explicit mode the types say where the arrays are."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(getattr(AxisType, mode),) * 2)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    arrays = draw(8, 4, 3, 8), draw(8), draw(8), draw(8, 4, 3, 8)
    channels = P(spec[3] if len(spec) > 3 else None)
    specs = spec, channels, channels, spec
    placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)]
    where = {"mesh": mesh, "spec": spec} if mode == "Auto" else {}
    return functools.partial(pallas_kernels.group_norm, **OPTIONS, **where), placed, arrays


def check(call, placed, arrays, forward, both):
    """The values, and the collectives of the forward pass and of both."""
    compiled = jax.jit(call).lower(*placed[:3]).compile()
    gradient = jax.jit(lambda x, scale, bias, dy: jax.vjp(call, x, scale, bias)[1](dy)).lower(*placed).compile()
    assert pallas_kernels.count_collectives(compiled) == ({"all-reduce": forward} if forward else {})
    assert pallas_kernels.count_collectives(gradient) == {"all-reduce": both}
    x, scale, bias, dy = arrays
    oracle.assert_close(compiled(*placed[:3]), *group_oracle.forward(x, scale, bias, **OPTIONS), "y")
    expected = group_oracle.backward(x, scale, bias, dy, **OPTIONS)
    for name, found in zip(expected, gradient(*placed), strict=True):
        oracle.assert_close(found, *expected[name], name)


@pytest.mark.parametrize(
    ("mode", "spec", "implementation"),
    [
        ("Auto", BATCH, "triton"),
        ("Explicit", BATCH, "mosaic_tpu"),
        ("Auto", CHANNELS, "mosaic_tpu"),
        ("Explicit", CHANNELS, "triton"),
    ],
)
def test_split_batch_and_whole_groups_need_one_all_reduce_for_the_parameters(rng, mode, spec, implementation):
    call, placed, arrays = problem(rng, mode, spec)
    call = functools.partial(call, implementation=implementation, interpret=True)
    check(call, placed, arrays, forward=0, both=1)


@pytest.mark.parametrize("mode", ["Auto", "Explicit"])
def test_split_space_needs_one_all_reduce_forward(rng, mode):
    call, placed, arrays = problem(rng, mode, SPACE)
    # Statistics; backward the two sums of each group, and the parameters.
    check(call, placed, arrays, forward=1, both=3)


@pytest.mark.parametrize("mode", ["Auto", "Explicit"])
def test_xla_keeps_whole_groups_where_they_are(rng, mode):
    call, placed, _ = problem(rng, mode, CHANNELS)
    compiled = jax.jit(call).lower(*placed[:3]).compile()
    assert pallas_kernels.count_collectives(compiled) == {}


def test_split_space_of_a_distant_map_cancels_nothing(rng):
    call, (x, *_), _ = problem(rng, "Auto", SPACE)
    x = x + 1e4
    oracle.assert_close(call(x), *group_oracle.forward(x, None, None, **OPTIONS), "y")


def test_what_cannot_be_placed(rng):
    call, (x, *_), _ = problem(rng, "Auto", SPACE)
    with pytest.raises(ValueError, match=r"whole groups on each device, .* the space over \('model',\); reshard x, or"):
        call(x, implementation="triton")
    call, (x, *_), arrays = problem(rng, "Auto", CHANNELS)
    with pytest.raises(ValueError, match=r"the channels of 1 groups over \('model',\); reshard x, or pass"):
        call(x, num_groups=1, implementation="mosaic_tpu")
    expected = group_oracle.forward(arrays[0], None, None, **OPTIONS | {"num_groups": 1})
    oracle.assert_close(call(x, num_groups=1), *expected, "y")
