"""A training step of a language model on eight devices: the same under every mesh, with the collectives expected."""

import dataclasses
import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import normjax as nj
from normjax import sharding
from tests.models.meshes import COLLECTIVES, MESHES, collectives

CONFIG = nj.models.TransformerConfig(
    layers=2, features=16, heads=4, hidden=32, placement=nj.placements.peri(nj.rms_norm()), scan=True
)
STEPS = 10
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # for optax's Adam
        yield


def optimizer():
    # Stacked weights have a norm for each layer.
    hidden = nj.hidden_weights(readout=("head",))
    return nj.nap(optax.adamw(1e-2), mask=hidden, axes=lambda path, w: (1, 2), learning_rate=1e-2)


def make():
    return nj.models.LanguageModel(CONFIG, vocabulary=32, tied=False, rngs=nnx.Rngs(0))


@functools.cache
def made():
    """Once, on one device, for all meshes."""

    def both():
        model = make()
        return model, optimizer().init(nnx.state(model, nnx.Param))

    # Arrays of the host go to a mesh without a program that cuts each.
    with jax.numpy_dtype_promotion("standard"):
        return jax.device_get(jax.jit(both)())


def train(model, state, batches):
    def step(carry, tokens):
        model, state = carry

        def loss(model):
            logits = model(tokens[:, :-1])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]))

        value, gradients = nnx.value_and_grad(loss)(model)
        params = nnx.state(model, nnx.Param)
        updates, state = optimizer().update(gradients, state, params)
        nnx.update(model, optax.apply_updates(params, updates))
        return (model, state), value

    (model, state), losses = jax.lax.scan(step, (model, state), batches)
    return model, state, losses


def trained(name):
    data, model_axis, rules = MESHES[name]
    mesh = sharding.make_mesh(data, model_axis)
    model, state = sharding.shard(made(), mesh, rules)
    model.stack.config = dataclasses.replace(CONFIG, stream_sharding=sharding.batch_sharding(mesh))
    tokens = np.random.default_rng(0).integers(0, 32, (STEPS, 8, 9)).astype(np.int32)
    tokens = jax.device_put(tokens, jax.NamedSharding(mesh, jax.P(None, "data")))
    placed = sharding.shardings((model, state), mesh, rules)
    whole = jax.NamedSharding(mesh, jax.P())
    compiled = jax.jit(train, out_shardings=(*placed, whole)).lower(model, state, tokens).compile()
    return mesh, compiled, *compiled(model, state, tokens)


@pytest.fixture(scope="module")
def reference():
    with jax.numpy_dtype_promotion("standard"):
        return np.asarray(trained("data")[-1], np.float64)


# `mixed` cuts as `tensor` does, and more.
@pytest.mark.parametrize("name", ["fsdp", "tensor", "mixed"] if NIGHTLY else ["fsdp", "mixed"])
def test_ten_steps_are_those_of_data_parallelism(name, reference):
    mesh, compiled, model, state, losses = trained(name)
    np.testing.assert_allclose(losses, reference, rtol=0, atol=1e-5)
    assert reference[-1] < reference[0] - 0.1
    rules = MESHES[name][2]
    spec = jax.P(None, rules["embed"], rules["mlp"])
    moments = state.inner_state[0]
    for tree in (nnx.state(model), moments.mu, moments.nu):
        kernel = tree["stack"]["blocks"][0]["ffn"]["branch"]["up"]["kernel"][...]
        assert kernel.sharding.is_equivalent_to(jax.NamedSharding(mesh, spec), 3)
    assert all(r.sharding.is_fully_replicated and r.shape == (2,) for r in state.radii.values())
    assert set(collectives(compiled)) == COLLECTIVES[name]


def test_projection_and_tracking_are_one_round_of_reductions():
    """All norms of the whole tree together, at most two all-reduces under fsdp (one for each axis of the mesh)."""
    for name, most in (("data", 0), ("fsdp", 2)):
        data, model_axis, rules = MESHES[name]
        mesh = sharding.make_mesh(data, model_axis)
        model, state = made()
        params = nnx.state(model, nnx.Param)
        args = sharding.abstract((params, state, params), mesh, rules)
        placed = sharding.shardings((params, state), mesh, rules)
        count = collectives(jax.jit(optimizer().update, out_shardings=placed).lower(*args).compile())
        assert set(count) <= {"all-reduce"}, (name, count)
        assert count.get("all-reduce", 0) <= most, (name, count)


def test_a_checkpoint_moves_to_another_mesh(tmp_path):
    """Saved under one mesh, restored into the abstract tree of another: bit for bit, where its rules say."""
    old, new = sharding.make_mesh(), sharding.make_mesh(4, 2)
    model = sharding.create(make, old, sharding.FSDP)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.to_pure_dict(nnx.state(model)))
        checkpointer.wait_until_finished()
        target = nnx.state(sharding.abstract(jax.eval_shape(make), new, sharding.MIXED))
        restored = checkpointer.restore(tmp_path / "state", nnx.to_pure_dict(target))
    jax.tree.map(np.testing.assert_array_equal, restored, nnx.to_pure_dict(nnx.state(model)))
    kernel = restored["stack"]["blocks"][0]["ffn"]["branch"]["up"]["kernel"]
    assert kernel.sharding == jax.NamedSharding(new, jax.P(None, "data", "model"))


def test_every_parameter_with_more_than_one_axis_is_named():
    """Of every placement and every form of attention that the stack may have."""
    norm = nj.rms_norm()
    for place in (nj.placements.sub, nj.placements.hybrid, nj.placements.gated_residual):
        config = dataclasses.replace(
            CONFIG, placement=place(norm), gated=True, use_bias=True, relative_buckets=4, qk_norm=norm, kv_heads=2
        )
        model = jax.eval_shape(
            lambda config=config: nj.models.LanguageModel(
                config, vocabulary=32, tied=False, max_tokens=9, rngs=nnx.Rngs(0)
            )
        )
        for path, variable in nnx.to_flat_state(nnx.state(model)):
            names = variable.get_metadata()["out_sharding"]
            assert len(names) == variable.ndim, (path, names)
            assert (names[0] == "layers") == ("blocks" in path), (path, names)


def test_linen_boxes_carry_the_names():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
            return nn.Dense(8, kernel_init=init)(x)

    mesh = sharding.make_mesh(4, 2)
    made = sharding.create(lambda: Net().init(jax.random.key(0), jnp.ones((1, 4))), mesh, sharding.MIXED)
    dense = made["params"]["Dense_0"]
    assert dense["kernel"].value.sharding.spec == jax.P("data", "model")
    assert dense["bias"].sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("names", "shape", "rules", "message"),
    [
        (("embed", "width"), (8, 8), sharding.FSDP, "rules say nothing of"),
        (("embed", "mlp"), (8, 8), {"embed": "data", "mlp": "data"}, "expected different axes of the mesh"),
        (("embed",), (8,), {"embed": "tensor"}, "expected different axes of the mesh"),
        (("embed", "mlp"), (6, 8), sharding.FSDP, "which 4 devices do not divide"),
        (("embed",), (8, 8), sharding.FSDP, "expected one name for each"),
    ],
)
def test_what_cannot_be_sharded_says_why(names, shape, rules, message):
    kernel = nnx.Param(jnp.ones(shape), out_sharding=names, eager_sharding=False)
    with pytest.raises(ValueError, match=message):
        sharding.shard({"layer": {"kernel": kernel}}, sharding.make_mesh(4, 2), rules)


def test_a_mesh_has_all_devices():
    assert sharding.make_mesh(model=2).shape == {"data": 4, "model": 2}
    with pytest.raises(ValueError, match="is not the number of devices, 8"):
        sharding.make_mesh(3, 2)
