"""500 steps on digits with state that the backward pass writes, by the three documented recipes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import normjax as nj
from normjax.backward_state import OVERWRITE_WITH_GRADIENT

STEPS, BATCH, WIDTH = 500, 64, 32
NORMS = {
    "unified": nj.unified_norm(warmup=100, outlier_filtration=True, max_skips=4),
    "power": nj.power_norm(num_groups=4, warmup=100),
}


@pytest.fixture(autouse=True)
def standard_promotion():
    """Optax's Adam and Flax's layers mix dtypes."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def digits():
    """Images, labels and the batches' indices."""
    images, labels = load_digits(return_X_y=True)
    indices = np.random.default_rng(0).integers(0, 1500, (STEPS, BATCH))
    return jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels), jnp.asarray(indices)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train_optax(norm):
    images, labels, indices = digits()
    rngs = jax.random.split(jax.random.key(0))
    params, state = norm.init(None, jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32))
    glorot = jax.nn.initializers.glorot_normal()
    params = {"in": glorot(rngs[0], (64, WIDTH)), "norm": params, "out": glorot(rngs[1], (WIDTH, 10))}
    tx = nj.overwrite_with_gradient(optax.adam(3e-3))

    def model(params, state, x, train):
        h, state = norm.apply(params["norm"], state, x @ params["in"], train=train)
        return jax.nn.relu(h) @ params["out"], state

    def step(carry, index):
        params, state, opt_state = carry

        def loss(params):
            logits, new_state = model(params, state, images[index], True)
            return cross_entropy(logits, labels[index]), new_state

        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), state, opt_state), value

    (params, state, _), losses = jax.jit(lambda c: jax.lax.scan(step, c, indices))((params, state, tx.init(params)))
    return losses, params["norm"][OVERWRITE_WITH_GRADIENT], state, model(params, state, images, False)[0]


class Net(nn.Module):
    norm: nj.NormTransform

    @nn.compact
    def __call__(self, x, train):
        x = nj.linen.Norm(self.norm, name="norm")(nn.Dense(WIDTH, use_bias=False)(x), not train)
        return nn.Dense(10)(nn.relu(x))


def train_linen(norm):
    images, labels, indices = digits()
    model = Net(norm)
    variables = model.init(jax.random.key(0), images[:2], True)
    stats = variables.pop("batch_stats")
    state = TrainState.create(apply_fn=model.apply, params=variables, tx=optax.adam(3e-3))
    # A counter in Python would change its type in the scan.
    state = state.replace(step=jnp.zeros((), jnp.int32))

    def step(carry, index):
        state, stats = carry

        def loss(variables):
            variables = {**variables, "batch_stats": stats}
            logits, new = state.apply_fn(variables, images[index], True, mutable=["batch_stats"])
            return cross_entropy(logits, labels[index]), new["batch_stats"]

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return (state.apply_gradients(grads=grads), stats), value

    (state, stats), losses = jax.jit(lambda c: jax.lax.scan(step, c, indices))((state, stats))
    # Evaluation needs parameters and running statistics only.
    logits = model.apply({"params": state.params["params"], "batch_stats": stats}, images, False)
    return losses, state.params[OVERWRITE_WITH_GRADIENT]["norm"], stats["norm"], logits


class Model(nnx.Module):
    def __init__(self, norm, rngs):
        self.first = nnx.Linear(64, WIDTH, use_bias=False, rngs=rngs)
        self.norm = nj.nnx.Norm(norm, WIDTH, rngs=rngs)
        self.last = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


def train_nnx(norm):
    images, labels, indices = digits()
    model = Model(norm, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, nj.overwrite_with_gradient(optax.adam(3e-3)), wrt=nnx.Param)

    @nnx.scan(in_axes=(nnx.Carry, 0))
    def step(carry, index):
        model, optimizer = carry
        value, grads = nnx.value_and_grad(lambda m: cross_entropy(m(images[index]), labels[index]))(model)
        optimizer.update(model, grads)
        return (model, optimizer), value

    (model, _), losses = nnx.jit(step)((model, optimizer), indices)
    held = {name: v[...] for name, v in getattr(model.norm, OVERWRITE_WITH_GRADIENT).items()}
    state = nnx.to_pure_dict(nnx.state(model.norm, nnx.BatchStat))
    model.eval()
    return losses, held, state, model(images)


@pytest.mark.parametrize("train", [train_optax, train_linen, train_nnx], ids=["optax", "linen", "nnx"])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_500_steps_without_divergence(norm, train):
    losses, written, state, logits = train(norm)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-50:]) < 0.1 * losses[0]
    assert int(state["count"]) == STEPS
    for leaf in jax.tree.leaves((written, state)):
        assert np.isfinite(leaf).all()
    # A feature that is dead behind its relu has no gradient to keep statistics of.
    assert np.count_nonzero(np.asarray(written["ema_gz"])) > WIDTH // 2
    assert np.max(np.abs(written["ema_gz"])) < 1
    _, labels, _ = digits()
    assert np.mean(np.argmax(logits, axis=-1)[1500:] == np.asarray(labels)[1500:]) > 0.85
