"""Variables from linen to nnx and back, and running statistics estimated anew."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj
from normjax import fold

EPS32 = float(np.finfo(np.float32).eps)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


NORMS = {
    "prep": nj.prep_batch_norm(total_steps=3),
    "power": nj.power_norm(),
    "ibn": nj.split([nj.instance_norm(), nj.batch_norm()]),
}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nj.linen.LayerNorm(name="layer")(nn.Dense(4, name="dense")(x))
        x = nj.linen.BatchNorm(use_running_average=not train, name="batch")(x)
        for name, norm in NORMS.items():
            x = nj.linen.Norm(norm, name=name)(x, use_running_average=not train)
        return x


class Module(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.layer, self.batch = nj.nnx.LayerNorm(4, rngs=rngs), nj.nnx.BatchNorm(4, rngs=rngs)
        for name, norm in NORMS.items():
            setattr(self, name, nj.nnx.Norm(norm, (5, 2, 4), rngs=rngs))

    def __call__(self, x):
        x = self.batch(self.layer(self.hidden(x)))
        for name in NORMS:
            x = getattr(self, name)(x)
        return x


def test_the_same_function_in_both():
    x = normal(5, 2, 3)
    linen, rng = Linen(), np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
    variables = jax.tree.map(draw, jax.eval_shape(lambda: linen.init(jax.random.key(0), x, False)))
    model = nnx.eval_shape(lambda: Module(nnx.Rngs(0)))
    nnx.update(model, fold.linen_to_nnx(variables, {"dense": "hidden"}))
    back = fold.nnx_to_linen(nnx.state(model), {"hidden": "dense"})
    occupied = lambda tree: {jax.tree_util.keystr(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    assert occupied(back).keys() == occupied(variables).keys()
    jax.tree.map(np.testing.assert_array_equal, occupied(back), occupied(variables))
    model.eval()
    expected = jax.jit(lambda variables: linen.apply(variables, x, False))(variables)
    np.testing.assert_allclose(nnx.jit(lambda model: model(x))(model), expected, rtol=8 * EPS32, atol=8 * EPS32)


def test_names_that_are_wrong():
    tree = {"params": {"a": {"scale": 1.0}, "b": {"scale": 2.0}}}
    with pytest.raises(ValueError, match="belong to no module"):
        fold.linen_to_nnx(tree, {"c": "d"})
    with pytest.raises(ValueError, match="two leaves are called"):
        fold.linen_to_nnx(tree, {"a": "b"})
    state = nnx.state(nj.nnx.LayerNorm(2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="belong to no module"):
        fold.nnx_to_linen(state, {"c": "d"})
    with pytest.raises(TypeError, match="expected a variable"):
        fold.nnx_to_linen({"scale": jnp.ones(2)})


@pytest.mark.parametrize("layer", [nnx.BatchNorm, nj.nnx.BatchNorm], ids=["flax", "normjax"])
def test_statistics_of_all_batches_together(layer):
    batches = [normal(16, 3, seed=i) * (i + 1) + i for i in range(3)]
    model = layer(3, momentum=0.9, rngs=nnx.Rngs(0))
    model.mean[...] = jnp.full(3, 1e3, jnp.float32)
    fold.recalibrate_model(model, batches)
    together = np.concatenate(batches).astype(np.float64)
    np.testing.assert_allclose(model.mean[...], together.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.var[...], together.var(0), rtol=1e-5)
    fold.recalibrate_model(model, batches, between=False)
    np.testing.assert_allclose(model.var[...], np.mean([b.var(0) for b in batches], 0), rtol=1e-5)


def test_what_does_not_move_is_no_calibration():
    frozen = nj.nnx.Norm(nj.batch_norm(frozen=True), 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="do not move"):
        fold.recalibrate_model(frozen, [normal(4, 2)])
    with pytest.raises(ValueError, match="batches is empty"):
        fold.recalibrate_model(frozen, [])
