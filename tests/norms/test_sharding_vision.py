"""Statistics of regions and of colouring, merged by counts over devices that hold unequal numbers of positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import normjax as nj
from tests.norms.test_sharding import BATCH, assert_trees_close, unequal_mask

MESH = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
SHAPE = (BATCH, 3, 3, 4)


def region(rng):
    found = rng.random((BATCH, 3, 3, 1)) < np.linspace(0, 1, BATCH).reshape(-1, 1, 1, 1)
    return {"region": found}


NORMS = {
    "region": (lambda **options: nj.region_norm(**options), region),
    "learned region": (lambda **options: nj.learned_region_norm(kernel_size=3, **options), lambda rng: {}),
    "colouring": (
        lambda **options: nj.gdwct(num_groups=2, hidden=4, **options),
        lambda rng: {"style": rng.standard_normal((BATCH, 4)).astype(np.float32)},
    ),
}


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", NORMS)
def test_axis_name_merges_by_counts(name, masked, rng):
    factory, make_context = NORMS[name]
    x, context = (3 + rng.standard_normal(SHAPE)).astype(np.float32), make_context(rng)
    mask = unequal_mask(rng, x.shape) if masked else np.ones((BATCH, 1, 1, 1), bool)
    whole, merged = factory(), factory(axis_name="data")
    params, state = whole.init(jax.random.key(0), x, **context)
    expected, _ = whole.apply(params, state, x, train=True, mask=mask, **context)

    def apply(params, x, mask, context):
        return merged.apply(params, {}, x, train=True, mask=mask, **context)[0]

    batch = P("data")
    mapped = jax.jit(jax.shard_map(apply, mesh=MESH, in_specs=(P(), batch, batch, batch), out_specs=batch))
    assert_trees_close(mapped(params, x, mask, context), expected, scale=8.0)


def test_the_whitening_penalty_merges_by_counts(rng):
    x = (3 + rng.standard_normal(SHAPE)).astype(np.float32)
    mask = unequal_mask(rng, x.shape)
    expected = nj.whitening_penalty(x, num_groups=2, mask=mask)
    penalty = lambda x, mask: nj.whitening_penalty(x, num_groups=2, mask=mask, axis_name="data")
    mapped = jax.jit(jax.shard_map(penalty, mesh=MESH, in_specs=(P("data"), P("data")), out_specs=P()))
    assert_trees_close(mapped(x, mask), jnp.asarray(expected), scale=8.0)
