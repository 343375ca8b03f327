"""A few training steps of every model on eight devices are those on one, under every mesh."""

import dataclasses
import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import normjax as nj
from normjax import models, sharding
from tests.models.meshes import COLLECTIVES, MESHES, collectives

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
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


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # for optax
        yield


def drawn(model):
    """The abstract model with numbers; its own initializers, compiled one by one, would take seconds."""
    rng = np.random.default_rng(1)
    graph, state = nnx.split(model)
    flat = dict(nnx.to_flat_state(state))
    for path, variable in flat.items():
        noise = 0.3 * rng.standard_normal(variable.shape).astype(np.float32)
        flat[path] = variable.replace(np.abs(1 + noise) if path[-1] in ("scale", "var") else noise)
    return nnx.merge(graph, nnx.from_flat_state(flat))


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


@functools.cache
def on_one_device(name):
    make, of, inputs = MODELS[name]
    model = drawn(nnx.eval_shape(lambda: make(None)))
    state = jax.tree.map(np.zeros_like, OPTIMIZER.init(nnx.state(model, nnx.Param)))
    return np.asarray(jax.jit(functools.partial(train, of))(model, state, inputs(np.random.default_rng(0)))[-1])


# Each is a compilation of both passes; `mixed` cuts along both axes of a mesh, nightly pays for the others.
CASES = [(name, mesh) for mesh in MESHES for name in MODELS if NIGHTLY or mesh == "mixed"]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_steps_are_those_on_one_device(name, how):
    make, of, inputs = MODELS[name]
    data, model_axis, rules = MESHES[how]
    mesh = sharding.make_mesh(data, model_axis)
    model = drawn(nnx.eval_shape(lambda: make(sharding.batch_sharding(mesh))))
    state = OPTIMIZER.init(nnx.state(model, nnx.Param))
    placed = sharding.shardings((model, state), mesh, rules)
    model, state = jax.device_put((model, state), placed)
    batches = jax.device_put(inputs(np.random.default_rng(0)), jax.NamedSharding(mesh, jax.P(None, "data")))
    run = jax.jit(functools.partial(train, of), out_shardings=(*placed, jax.NamedSharding(mesh, jax.P())))
    compiled = run.lower(model, state, batches).compile()
    losses = compiled(model, state, batches)[-1]
    expected = on_one_device(name)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    assert np.all(np.abs(np.diff(expected)) > 1e-3)
    # The convolution inside of a bottleneck gathers what the one before it has cut.
    expected_kinds = COLLECTIVES[how] | ({"all-gather"} if name == "ResNet" and how != "data" else set())
    assert set(collectives(compiled)) <= expected_kinds, collectives(compiled)


# The largest part of the parameters that one device of eight holds; that under `tensor` has devices in fours, and whole
# are what makes and reads the stream, shortcuts and what turns a condition into scales.
SHARES = {
    "encoder": (0.2, 0.4, 0.2),
    "ViT": (0.2, 0.4, 0.2),
    "DiT": (0.2, 0.65, 0.25),
    "nGPT": (0.2, 0.3, 0.2),
    "ResNet": (0.3, 0.65, 0.3),
    "MLP": (0.3, 0.4, 0.3),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_and_statistic_is_named_and_most_are_cut(name):
    state = nnx.state(nnx.eval_shape(lambda: MODELS[name][0](None)))
    for path, variable in nnx.to_flat_state(state):
        names = variable.get_metadata().get("out_sharding", ())
        assert len(names) == variable.ndim, (path, names)
        assert (names[:1] == ("layers",)) == ("blocks" in path), (path, names)
    for how, most in zip(("fsdp", "tensor", "mixed"), SHARES[name], strict=True):
        data, model_axis, rules = MESHES[how]
        arrays = jax.tree.leaves(sharding.abstract(state, sharding.make_mesh(data, model_axis), rules))
        local = sum(math.prod(a.sharding.shard_shape(a.shape)) for a in arrays)
        assert local <= most * sum(a.size for a in arrays), (how, local)


def test_norms_of_a_condition_and_of_heads_are_named():
    """Time-dependent norms, adaptive ones and nGPT's scale of heads."""
    timed = nnx.state(nnx.eval_shape(lambda: dit(None, models.time_dependent_norms(layer_norm=True))))
    names = {path: v.get_metadata()["out_sharding"] for path, v in nnx.to_flat_state(timed)}
    assert names["blocks", 0, "ffn_norm", "scale", "u"] == ("layers", "norm")
    ada = nnx.state(nnx.eval_shape(lambda: dit(None)))
    names = {path: v.get_metadata()["out_sharding"] for path, v in nnx.to_flat_state(ada)}
    assert names["blocks", 0, "ffn_norm", "kernel"] == ("layers", "embed", "norm")
    assert names["final_norm", "bias"] == ("norm",)
    scale = nnx.eval_shape(lambda: ngpt(None)).blocks[0].qk_norm.scale
    assert scale.get_metadata()["out_sharding"] == ("layers", "heads", None)
