"""The generic linen and nnx modules hold what the pure transform makes, and compute nothing of their own."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import normjax as nj
from normjax.backward_state import OVERWRITE_WITH_GRADIENT, split_written
from tests.norms.cases import FIRST

EPS32 = float(np.finfo(np.float32).eps)
over_methods = pytest.mark.parametrize("case", FIRST, ids=lambda c: c.name)


def assign(variable, value):
    variable[...] = value


@over_methods
def test_linen_equals_nnx_equals_pure(case, rng):
    x = rng.standard_normal(case.shape).astype(np.float32)
    context = case.context(np.random.default_rng(1), case.shape)
    params, state = case.norm.init(jax.random.key(0), x, **context)
    plain, written = split_written(params)
    # Without a state there is one mode.
    two_modes = bool(jax.tree.leaves((state, written)))

    layer = nj.linen.Norm(case.norm)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x, **context)
    own = {"params": plain, OVERWRITE_WITH_GRADIENT: written}
    for collection, tree in own.items():
        assert jax.tree.structure(shapes.get(collection, {})) == jax.tree.structure(tree)
    # Random parameters come from the module's own streams: the comparison takes those of the pure function.
    stats = shapes.get("batch_stats", {})
    variables = {**own, "batch_stats": jax.tree.unflatten(jax.tree.structure(stats), jax.tree.leaves(state))}

    module = nj.nnx.Norm(case.norm, case.shape, rngs=nnx.Rngs(0), **context)
    for name, value in params.items():
        jax.tree.map(assign, getattr(module, name), value, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))

    # One program, in which the compiler finds what is the same.
    @jax.jit
    def everywhere(params, state, variables, module_state, x):
        y, trained = case.norm.apply(params, state, x, train=True, **context)
        linen_y, updates = layer.apply(variables, x, mutable=["batch_stats"], **context)
        other = nnx.merge(nnx.graphdef(module), module_state)
        compared = [(y, linen_y, other(x, **context))]
        if two_modes:
            other.eval()
            evaluated, _ = case.norm.apply(params, trained, x, train=False, **context)
            linen_eval = layer.apply({**variables, **updates}, x, True, **context)
            compared.append((evaluated, linen_eval, other(x, **context)))
        return compared, trained, updates, nnx.state(other, nnx.BatchStat)

    compared, trained, updates, held = everywhere(params, state, variables, nnx.state(module), x)
    for pure, linen, other in compared:
        # The compiler may still fuse the same operations in three ways, and therefore round differently.
        np.testing.assert_allclose(pure, linen, rtol=0, atol=16 * EPS32 * float(np.max(np.abs(pure))))
        np.testing.assert_allclose(pure, other, rtol=0, atol=16 * EPS32 * float(np.max(np.abs(pure))))
    described = lambda tree: sorted(str((a.shape, a.dtype)) for a in jax.tree.leaves(tree))
    assert described(trained) == described(updates.get("batch_stats", {})) == described(held)


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


WRITING = nj.chain(nj.unified_norm(window=2, warmup=1), nj.power_norm(num_groups=2, use_scale=False, use_bias=False))


def test_what_the_backward_pass_writes_is_the_same_everywhere(rng):
    x = rng.standard_normal((8, 4)).astype(np.float32)
    params, state = WRITING.init(None, x)
    own = jax.jit(jax.grad(lambda p: jnp.sum(WRITING.apply(p, state, x, train=True)[0] ** 3)))(params)

    layer = nj.linen.Norm(WRITING)
    variables = layer.init(jax.random.key(0), x)
    stats = {"batch_stats": variables.pop("batch_stats")}
    loss = lambda v: jnp.sum(layer.apply({**v, **stats}, x, mutable=["batch_stats"])[0] ** 3)
    held = TrainState.create(apply_fn=layer.apply, params=variables, tx=optax.sgd(0.1))
    held = held.apply_gradients(grads=jax.grad(loss)(variables)).params

    module = nj.nnx.Norm(WRITING, 4, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(module, nj.overwrite_with_gradient(optax.sgd(0.1)), wrt=nnx.Param)
    optimizer.update(module, nnx.grad(lambda m: jnp.sum(m(x) ** 3))(module))
    kinds = nnx.to_flat_state(nnx.state(module, nj.nnx.OverwriteWithGradient))
    assert sorted(path[0] for path, _ in kinds) == ["0", "0", "1"]

    for name, values in split_written(own)[1].items():
        for entry, value in values.items():
            close = functools.partial(np.testing.assert_allclose, value, rtol=32 * EPS32, atol=32 * EPS32)
            close(held[OVERWRITE_WITH_GRADIENT][name][entry])
            close(getattr(module, name)[OVERWRITE_WITH_GRADIENT][entry][...])
    moved = params["0"]["scale"] - 0.1 * own["0"]["scale"]
    np.testing.assert_allclose(held["params"]["0"]["scale"], moved, rtol=0, atol=32 * EPS32)
    np.testing.assert_allclose(getattr(module, "0")["scale"][...], moved, rtol=0, atol=32 * EPS32)

    # Evaluation keeps the state, and works without the collection.
    evaluate = lambda v: jnp.sum(layer.apply({**v, **stats}, x, True) ** 3)
    kept = jax.grad(evaluate)(held)[OVERWRITE_WITH_GRADIENT]
    jax.tree.map(np.testing.assert_array_equal, kept, held[OVERWRITE_WITH_GRADIENT])
    np.testing.assert_array_equal(evaluate({"params": held["params"]}), evaluate(held))
    with pytest.raises(ValueError, match="collection of that name"):
        loss({"params": held["params"]})


def test_layers_under_scan_have_their_own_written_state(rng):
    x = rng.standard_normal((8, 4)).astype(np.float32)

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nj.linen.Norm(nj.power_norm(), name="norm")(nn.Dense(4)(x)), None

    collections = ("params", "batch_stats", OVERWRITE_WITH_GRADIENT)
    stack = nn.scan(nn.remat(Block), dict.fromkeys(collections, 0), split_rngs={"params": True}, length=3)()
    variables = stack.init(jax.random.key(0), x, None)
    stats = {"batch_stats": variables.pop("batch_stats")}

    def loss(variables):
        (y, _), new = stack.apply({**variables, **stats}, x, None, mutable=["batch_stats"])
        return jnp.sum(y**3), new

    gradients, new = jax.grad(loss, has_aux=True)(variables)
    written = gradients[OVERWRITE_WITH_GRADIENT]["norm"]["ema_gz"]
    assert written.shape == (3, 4)
    assert np.all(np.abs(written) > 0)
    np.testing.assert_array_equal(new["batch_stats"]["norm"]["count"], [1, 1, 1])
