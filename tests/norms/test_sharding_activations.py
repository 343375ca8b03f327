"""Activation norms inside shard_map: statistics merged over a mapped axis equal those of the whole."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import normjax as nj
from tests.norms.test_sharding import assert_trees_close, unequal_mask

# The factory, its options and the axis that is sharded: the batch where its statistics are merged, else a spatial axis.
MERGED = {
    "b0": (nj.evo_norm_b, {"unbiased": True}, 0),
    "b2": (nj.evo_norm_b, {"variant": "B2"}, 0),
    "s0": (nj.evo_norm_s, {"num_groups": 2}, 1),
    "filter response": (nj.filter_response_norm, {}, 1),
}


@pytest.mark.parametrize("name", MERGED)
def test_axis_name_merges_by_counts(name, rng):
    factory, options, axis = MERGED[name]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole, merged = factory(**options), factory(axis_name="data", **options)
    x = rng.standard_normal((16, 8, 2, 4)).astype(np.float32)
    mask = unequal_mask(rng, x.shape) if axis == 0 else rng.random((16, 8, 1, 1)) < 0.6
    mask = np.broadcast_to(mask, (16, 8, 2, 1))
    params, state = whole.init(None, x)
    spec = P(*["data" if a == axis else None for a in range(4)])

    def step(norm):
        return lambda params, state, x, mask: norm.apply(params, state, x, train=True, mask=mask)

    mapped = jax.jit(jax.shard_map(step(merged), mesh=mesh, in_specs=(P(), P(), spec, spec), out_specs=(spec, P())))
    assert_trees_close(mapped(params, state, x, mask), jax.jit(step(whole))(params, state, x, mask), scale=8.0)
