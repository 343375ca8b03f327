"""Inside shard_map the mixing batch norms merge their statistics by counts, empty devices included."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import normjax as nj
from tests.norms.test_sharding import BATCH, assert_trees_close, unequal_mask

FACTORIES = {
    "rep": nj.rep_batch_norm,
    "prep": lambda **mapped: nj.prep_batch_norm(initial_weight=0.5, ticks_every=2, **mapped),
    "continual": lambda **mapped: nj.continual_norm(num_groups=2, **mapped),
    "batch-channel": lambda **mapped: nj.batch_channel_norm(num_groups=2, **mapped),
    "estimated": lambda **mapped: nj.estimated_batch_norm(moving_speed=0.5, **mapped),
    "adaptive balance": lambda **mapped: nj.adaptive_balance_norm(3, kappa=0.5, **mapped),
    "renorm": lambda **mapped: nj.batch_renorm(r_max=lambda step: 2.0, **mapped),
    "switch": lambda **mapped: nj.switch_norm(momentum=None, **mapped),
    "instance-batch": nj.instance_batch_norm,
}


@pytest.mark.parametrize("name", FACTORIES)
def test_axis_name_merges_by_counts(name, rng):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole, merged = FACTORIES[name](), FACTORIES[name](axis_name="data")
    x = (3 + rng.standard_normal((BATCH, 5, 8))).astype(np.float32)
    mask = unequal_mask(rng, x.shape)
    context = {"task": rng.integers(0, 3, BATCH).astype(np.int32)} if name == "adaptive balance" else {}
    params, state = whole.init(None, x, **context)
    batched = jax.tree.map(lambda _: P("data"), context)

    def step(norm):
        return lambda x, mask, context: norm.apply(params, state, x, train=True, mask=mask, **context)

    specs = (P("data"), P("data"), batched)
    mapped = jax.jit(jax.shard_map(step(merged), mesh=mesh, in_specs=specs, out_specs=(P("data"), P())))
    assert_trees_close(mapped(x, mask, context), jax.jit(step(whole))(x, mask, context), scale=16.0)
