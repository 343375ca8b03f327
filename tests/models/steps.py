"""Training steps of every model but the decoder, and the programs that they are on a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import normjax as nj
from normjax import models, sharding

STEPS, BATCH = 3, 8
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
SIZES = {"layers": 2, "features": 16, "heads": 4, "hidden": 32}
BERT = models.presets.bert(**SIZES, scan=True)
VIT = models.presets.vit(**SIZES, scan=True)
RESNET = models.ResNetConfig(nj.batch_norm(), depths=(1, 1), widths=(8, 8), bottleneck=True)
DIT = {"shape": (4, 4, 2), "patch": 2, "classes": 3, "time_features": 8, "scan": True}


def tokens(rng):
    return (rng.integers(0, 32, (STEPS, BATCH, 5)).astype(np.int32),)


def images(rng):
    return (rng.standard_normal((STEPS, BATCH, 4, 4, 2)).astype(np.float32),)


def noisy_images(rng):
    times = rng.uniform(0, 1000, (STEPS, BATCH)).astype(np.float32)
    return (*images(rng), times, rng.integers(0, 4, (STEPS, BATCH)).astype(np.int32))


def vectors(rng):
    return (rng.standard_normal((STEPS, BATCH, 6)).astype(np.float32),)


def encoder(stream):
    options = {"vocabulary": 32, "max_tokens": 8, "types": 2, "pooler": True, "masked_head": True}
    return models.Encoder(dataclasses.replace(BERT, stream_sharding=stream), **options, rngs=nnx.Rngs(0))


def read(model, tokens):
    y = model(tokens, types=tokens % 2)
    return model.logits(y), model.pooled(y)


def vit(stream):
    config = dataclasses.replace(VIT, stream_sharding=stream)
    return models.ViT(config, image_size=4, patch_size=2, channels=2, classes=3, rngs=nnx.Rngs(0))


def dit(stream, conditioning=None):
    return models.DiT(**SIZES, **DIT, conditioning=conditioning, stream_sharding=stream, rngs=nnx.Rngs(0))


def ngpt(stream):
    return models.NGPT(**SIZES, vocabulary=32, scan=True, stream_sharding=stream, rngs=nnx.Rngs(0))


def resnet(stream):
    config = dataclasses.replace(RESNET, stream_sharding=stream)
    return models.ResNet(config, classes=3, channels=2, rngs=nnx.Rngs(0))


def mlp(stream):
    return models.MLPClassifier(6, (16, 32, 16), classes=3, norm=nj.batch_norm(), rngs=nnx.Rngs(0))


call = lambda model, *inputs: model(*inputs)
MODELS = {
    "encoder": (encoder, read, tokens),
    "ViT": (vit, call, images),
    "DiT": (dit, call, noisy_images),
    "nGPT": (ngpt, call, tokens),
    "ResNet": (resnet, call, images),
    "MLP": (mlp, call, vectors),
}


def train(of, model, state, batches):
    def step(carry, inputs):
        model, state = carry

        def loss(model):
            # Any function of every output whose gradient differs between examples.
            return sum(jnp.mean(jnp.square(y - jnp.cos(jnp.arange(y.size)).reshape(y.shape))) for y in outputs(model))

        outputs = lambda model: jax.tree.leaves(of(model, *inputs))
        value, gradients = nnx.value_and_grad(loss)(model)
        params = nnx.state(model, nnx.Param)
        updates, state = OPTIMIZER.update(gradients, state, params)
        nnx.update(model, optax.apply_updates(params, updates))
        return (model, state), value

    (model, state), losses = jax.lax.scan(step, (model, state), batches)
    return model, state, losses


def program(name, mesh, rules):
    """A model, and its steps on a mesh, lowered: arguments and results where the rules say; nothing is allocated."""
    make, of, inputs = MODELS[name]
    model = nnx.eval_shape(lambda: make(sharding.batch_sharding(mesh)))
    state = jax.eval_shape(OPTIMIZER.init, nnx.state(model, nnx.Param))
    placed = sharding.shardings((model, state), mesh, rules)
    cut = jax.NamedSharding(mesh, jax.P(None, "data"))
    batches = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=cut) for a in inputs(np.random.default_rng(0))]
    run = jax.jit(functools.partial(train, of), out_shardings=(*placed, jax.NamedSharding(mesh, jax.P())))
    return model, run.lower(*sharding.abstract((model, state), mesh, rules), batches)
