"""The generic linen and nnx modules hold what the pure transform makes, and compute nothing of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import normjax as nj
from normjax.backward_state import OVERWRITE_WITH_GRADIENT, split_written
from tests.norms.cases import CASES

EPS32 = float(np.finfo(np.float32).eps)
over_cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def assign(variable, value):
    variable[...] = value


@over_cases
def test_linen_equals_nnx_equals_pure(case, rng):
    x = rng.standard_normal(case.shape).astype(np.float32)
    context = case.context(np.random.default_rng(1), case.shape)
    params, state = case.norm.init(jax.random.key(0), x, **context)
    y, trained = jax.jit(lambda x: case.norm.apply(params, state, x, train=True, **context))(x)
    evaluated, _ = jax.jit(lambda x: case.norm.apply(params, trained, x, train=False, **context))(x)

    layer = nj.linen.Norm(case.norm)
    variables = layer.init(jax.random.key(0), x, **context)
    own = {"params": split_written(params)[0], OVERWRITE_WITH_GRADIENT: split_written(params)[1]}
    for collection, tree in own.items():
        assert jax.tree.structure(variables.get(collection, {})) == jax.tree.structure(tree)
    # Random parameters come from the module's own streams: the comparison takes those of the pure function.
    variables = {**variables, **own}
    linen_y, updates = jax.jit(lambda v, x: layer.apply(v, x, mutable=["batch_stats"], **context))(variables, x)
    linen_eval = jax.jit(lambda v, x: layer.apply(v, x, True, **context))({**variables, **updates}, x)

    module = nj.nnx.Norm(case.norm, case.shape, rngs=nnx.Rngs(0), **context)
    for name, value in params.items():
        jax.tree.map(assign, getattr(module, name), value, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    nnx_y = nnx.jit(lambda m, x: m(x, **context))(module, x)
    module.eval()
    nnx_eval = nnx.jit(lambda m, x: m(x, **context))(module, x)

    for pure, linen, other in ((y, linen_y, nnx_y), (evaluated, linen_eval, nnx_eval)):
        # Three programs, which the compiler may fuse and therefore round differently.
        np.testing.assert_allclose(pure, linen, rtol=0, atol=16 * EPS32 * float(np.max(np.abs(pure))))
        np.testing.assert_allclose(pure, other, rtol=0, atol=16 * EPS32 * float(np.max(np.abs(pure))))
    own = sorted(map(str, jax.tree.leaves(jax.tree.map(lambda a: (a.shape, a.dtype), trained))))
    held = sorted(map(str, jax.tree.leaves(jax.tree.map(lambda a: (a.shape, a.dtype), updates.get("batch_stats", {})))))
    assert own == held
    assert len(nnx.to_flat_state(nnx.state(module, nnx.BatchStat))) == len(jax.tree.leaves(trained))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, use_bias=False)(x)
        x = nj.linen.Norm(nj.chain(nj.batch_norm(), nj.rms_norm()))(x, not train)
        return nn.Dense(1)(nn.relu(x))


def test_a_linen_model_trains_with_a_chain(rng):
    x, target = rng.standard_normal((32, 4)).astype(np.float32), rng.standard_normal((32, 1)).astype(np.float32)
    model = LinenNet()
    variables = model.init(jax.random.key(0), x, True)
    optimizer = optax.adam(1e-2)
    carry = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))

    @jax.jit
    def step(carry, _):
        params, stats, opt_state = carry

        def loss(params):
            y, new = model.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
            return jnp.mean((y - target) ** 2), new["batch_stats"]

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), stats, opt_state), value

    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
        _, losses = jax.lax.scan(step, carry, None, length=60)
    assert losses[-1] < 0.5 * losses[0]


def test_an_nnx_model_trains_and_scans_over_layers(rng):
    x = rng.standard_normal((16, 8)).astype(np.float32)

    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return nj.nnx.Norm(nj.batch_norm(momentum=0.5), 8, rngs=rngs)

    layers = make(nnx.Rngs(0).split(3))

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def forward(layer, x):
        return jnp.tanh(layer(x))

    y = forward(layers, x)
    assert y.shape == x.shape
    assert layers.mean[...].shape == (3, 8)
    np.testing.assert_allclose(layers.mean[...][0], 0.5 * x.mean(0), rtol=0, atol=1e-6)


def test_initialisation_is_abstract_and_does_not_move_statistics(rng):
    x = 5 + rng.standard_normal((4, 3)).astype(np.float32)
    layer = nj.linen.Norm(nj.batch_norm(axis_name="devices"))
    variables = layer.init(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(3, np.float32))
    abstract = jax.eval_shape(layer.init, jax.random.key(0), jax.ShapeDtypeStruct((4, 3), jnp.float32))
    assert jax.tree.map(jnp.shape, abstract) == jax.tree.map(jnp.shape, variables)
    module = nnx.eval_shape(lambda: nj.nnx.Norm(nj.layer_norm(), 3, rngs=nnx.Rngs(0)))
    assert module.scale.shape == (3,)


def test_partitioned_boxes_pass_through(rng):
    x = rng.standard_normal((4, 8)).astype(np.float32)
    norm = nj.rms_norm(scale_init=nn.with_partitioning(nn.initializers.ones, ("model",)))
    layer = nj.linen.Norm(norm)
    variables = layer.init(jax.random.key(0), x)
    assert variables["params"]["scale"].names == ("model",)
    expected, _ = nj.rms_norm().apply({"scale": jnp.ones(8)}, {}, x, train=True)
    np.testing.assert_array_equal(layer.apply(variables, x), expected)
