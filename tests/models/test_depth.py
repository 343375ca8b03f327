"""Equal blocks as one compiled loop, computed again in the backward pass: the same outputs and gradients."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normjax import models

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
EPS32 = float(np.finfo(np.float32).eps)
SIZES = {"layers": 2, "features": 8, "heads": 2, "hidden": 12}
TOKENS = np.array([[1, 4, 2, 0], [3, 3, 6, 5]], np.int32)
IMAGES = np.random.default_rng(0).standard_normal((2, 4, 4, 2)).astype(np.float32)
DIT = {"shape": (4, 4, 2), "patch": 2, "classes": 3, "time_features": 8}
TIMED = models.time_dependent_norms(layer_norm=True)
DIT_INPUTS = (IMAGES, np.array([10.0, 700.0], np.float32), np.array([0, 3]))


MODELS = {
    "DiT": (lambda **how: models.DiT(**SIZES, **DIT, **how, rngs=nnx.Rngs(0)), DIT_INPUTS),
    "TD DiT": (lambda **how: models.DiT(**SIZES, **DIT, conditioning=TIMED, **how, rngs=nnx.Rngs(0)), DIT_INPUTS),
    "nGPT": (lambda **how: models.NGPT(**SIZES, vocabulary=7, **how, rngs=nnx.Rngs(0)), (TOKENS,)),
    "encoder": (
        lambda **how: models.Encoder(
            dataclasses.replace(models.presets.bert(**SIZES), **how), vocabulary=7, rngs=nnx.Rngs(0)
        ),
        (TOKENS,),
    ),
    "ViT": (
        lambda **how: models.ViT(
            dataclasses.replace(models.presets.vit(**SIZES), **how),
            image_size=4,
            patch_size=2,
            channels=2,
            classes=3,
            rngs=nnx.Rngs(0),
        ),
        (IMAGES,),
    ),
}


def stacked(flat):
    """Parameters by path, those of all blocks stacked into those of one."""
    runs = {}
    for path, value in flat.items():
        at = path.index("blocks") + 1 if "blocks" in path else None
        runs.setdefault(path if at is None else (*path[:at], 0, *path[at + 1 :]), []).append(np.asarray(value))
    return {path: np.stack(values) if "blocks" in path else values[0] for path, values in runs.items()}


def built(make, how, values=None):
    """A model as its graph, parameters and their numbers by path, which are drawn if none are given."""
    graph, params = nnx.split(nnx.eval_shape(lambda: make(**how)))
    flat = {path: variable.get_value() for path, variable in nnx.to_flat_state(params)}
    rng = np.random.default_rng(0)
    draw = lambda leaf: (0.4 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
    values = {path: draw(leaf) for path, leaf in flat.items()} if values is None else values
    assert {path: leaf.shape for path, leaf in flat.items()} == {path: v.shape for path, v in values.items()}
    nnx.replace_by_pure_dict(params, nnx.traversals.unflatten_mapping(values))
    return graph, params, values


# Each is two compilations of both passes; a ViT has the encoder's stack.
@pytest.mark.parametrize("name", [name for name in MODELS if NIGHTLY or name != "ViT"])
def test_scanned_and_rematerialized_equals_unrolled(name):
    make, inputs = MODELS[name]

    def loss(model):
        y = model(*inputs)
        return jnp.sum(jnp.sin(y)), y

    def run(how, values=None):
        graph, params, values = built(make, how, values)
        both = lambda params: jax.value_and_grad(lambda p: loss(nnx.merge(graph, p)), has_aux=True)(params)
        traced = jax.jit(both).trace(params)
        (_, y), gradients = traced.lower().compile()(params)
        flat = {path: variable[...] for path, variable in nnx.to_flat_state(gradients)}
        return values, y, flat, str(traced.jaxpr)

    values, y, gradients, plain = run({})
    _, other, found, looped = run({"scan": True, "remat": True}, stacked(values))
    # Sums of a few dozen products in another order.
    np.testing.assert_allclose(other, y, rtol=0, atol=64 * EPS32 * max(1.0, float(np.max(np.abs(y)))))
    for path, expected in stacked(gradients).items():
        scale = max(1.0, float(np.max(np.abs(expected))))
        np.testing.assert_allclose(found[path], expected, rtol=0, atol=64 * EPS32 * scale, err_msg=str(path))
    for primitive in ("scan[", "remat2["):
        assert primitive in looped, primitive
        assert primitive not in plain, primitive
