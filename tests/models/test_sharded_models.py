"""A few training steps of every model on eight devices are those on one, under every mesh."""

import functools
import math
import os

import jax
import numpy as np
import pytest
from flax import nnx

from normjax import models, sharding
from tests.models.meshes import COLLECTIVES, MESHES, collectives
from tests.models.steps import MODELS, OPTIMIZER, dit, ngpt, program, train

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


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


def started(model):
    """The optimizer's state, which begins at zero."""
    state = jax.eval_shape(OPTIMIZER.init, nnx.state(model, nnx.Param))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)


@functools.cache
def on_one_device(name):
    make, of, inputs = MODELS[name]
    model = drawn(nnx.eval_shape(lambda: make(None)))
    state = started(model)
    model, _, losses = jax.jit(functools.partial(train, of))(model, state, inputs(np.random.default_rng(0)))
    return jax.tree.leaves(nnx.state(model)), np.asarray(losses)


# Each is a compilation of both passes; `mixed` cuts along both axes of a mesh, `tensor` what a bottleneck gathers, and
# what a ViT has beyond an encoder, an encoder beyond a language model and the MLP beyond a block is not cut. Nightly
# pays for the others.
DAILY = [("DiT", "mixed"), ("nGPT", "mixed"), ("ResNet", "tensor")]
CASES = [(name, mesh) for mesh in MESHES for name in MODELS] if NIGHTLY else DAILY


@pytest.mark.parametrize(("name", "how"), CASES)
def test_steps_are_those_on_one_device(name, how):
    data, model_axis, rules = MESHES[how]
    mesh = sharding.make_mesh(data, model_axis)
    model, lowered = program(name, mesh, rules)
    model, compiled = drawn(model), lowered.compile()
    state = started(model)
    cut = jax.NamedSharding(mesh, jax.P(None, "data"))
    batches = jax.device_put(list(MODELS[name][2](np.random.default_rng(0))), cut)
    model, _, losses = compiled(*sharding.shard((model, state), mesh, rules), batches)
    values, expected = on_one_device(name)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-5)
    assert np.all(np.abs(np.diff(expected)) > 1e-3)
    # Parameters and running statistics, too.
    for value, other in zip(jax.tree.leaves(nnx.state(model)), values, strict=True):
        np.testing.assert_allclose(value, other, rtol=0, atol=1e-5)
    # The convolution inside of a bottleneck gathers what the one before it has cut.
    gathered = {"all-gather"} if name == "ResNet" and how == "tensor" else set()
    assert set(collectives(compiled)) <= COLLECTIVES[how] | gathered


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
        # A weak type is a strong one after a step, which would be compiled for both.
        assert not variable.get_value().weak_type, path
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
