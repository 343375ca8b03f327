"""State that the backward pass writes, with the batch on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import normjax as nj
from tests.norms.test_sharding import BATCH, assert_trees_close, unequal_mask

OPTIONS = {
    nj.unified_norm: {"window": (2, 3), "warmup": 2, "outlier_filtration": True, "max_skips": 2},
    nj.power_norm: {"num_groups": 2, "warmup": 1},
}


@pytest.mark.parametrize("mask_backward", [False, True], ids=["published", "masked backward"])
@pytest.mark.parametrize("outside", [True, False], ids=["gradient outside", "gradient inside"])
@pytest.mark.parametrize("factory", OPTIONS, ids=["unified", "power"])
def test_axis_name_merges_forward_and_backward(factory, outside, mask_backward, rng):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    options = {**OPTIONS[factory], "mask_backward": mask_backward}
    whole, merged = factory(**options), factory(axis_name="data", **options)
    x = (1 + rng.standard_normal((BATCH, 3, 4))).astype(np.float32)
    mask = unequal_mask(rng, x.shape)

    def total(norm):
        def loss(params, state, x, mask):
            y, new_state = norm.apply(params, state, x, train=True, mask=mask)
            return jnp.sum(jnp.where(mask, jnp.sin(3 * y), 0)), new_state

        return loss

    split = {"mesh": mesh, "in_specs": (P(), P(), P("data"), P("data"))}

    def spread(params, state, x, mask):
        value, new_state = total(merged)(params, state, x, mask)
        return jax.lax.psum(value, "data"), new_state

    def inside(params, state, x, mask):
        # Parameters that do not vary over devices: JAX itself sums their gradients over them.
        return jax.grad(total(merged), argnums=(0, 2), has_aux=True)(params, state, x, mask)

    if outside:
        mapped = jax.grad(jax.shard_map(spread, out_specs=(P(), P()), **split), argnums=(0, 2), has_aux=True)
    else:
        mapped = jax.shard_map(inside, out_specs=((P(), P("data")), P()), **split)
    alone = jax.jit(jax.grad(total(whole), argnums=(0, 2), has_aux=True))
    mapped = jax.jit(mapped)
    params, state = whole.init(None, x)
    for _ in range(3):
        expected, found = alone(params, state, x, mask), mapped(params, state, x, mask)
        assert_trees_close(found, expected, scale=32.0)
        written = "_overwrite_with_gradient"
        params, state = {**params, written: expected[0][0][written]}, expected[1]
        x = (1.5 * x[::-1]).astype(np.float32)
