"""The stack in every form it may be compiled in: unrolled, scanned, rematerialized, masked, vmapped, bridged."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.nnx import bridge

import normjax as nj
from normjax.models import Attention, AttentionKind, LanguageModel, Rope, Transformer, TransformerConfig

EPS32 = float(np.finfo(np.float32).eps)
LLAMA = nj.models.presets.llama(layers=3, features=8, heads=4, kv_heads=2, hidden=12)


def stack_of(config):
    return Transformer(config, rngs=nnx.Rngs(0))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filled(config):
    return with_random_parameters(lambda: stack_of(config))


def with_random_parameters(make):
    """A model with random parameters; its own initializers, compiled one by one, would take seconds."""
    graph, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)
    return nnx.merge(graph, jax.tree.map(lambda p: jnp.asarray(0.4 * rng.standard_normal(p.shape), p.dtype), state))


def loss_and_gradients(model, x):
    run = nnx.jit(nnx.value_and_grad(lambda model, x: jnp.sum(jnp.sin(model(x)))))
    return run(model, x)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=64 * EPS32 * max(1.0, float(np.max(np.abs(b)))))


# As many layers as make a run of several blocks, behind one of another kind in a mix.
SCANNED = {
    "mix": (nj.placements.mix(nj.rms_norm(), num_post=1), 3),
    "resi_dual": (nj.placements.resi_dual(nj.rms_norm()), 2),
}


@pytest.mark.parametrize("name", SCANNED)
def test_scanned_equals_unrolled(name):
    place, layers = SCANNED[name]
    config = dataclasses.replace(LLAMA, layers=layers, placement=place)
    plain, scanned = filled(config), filled(dataclasses.replace(config, scan=True, remat=True))
    # Runs of equal blocks: their parameters are those of the single blocks, stacked.
    start = 0
    for run, length in zip(scanned.blocks, scanned.runs, strict=True):
        # Pure: a stacked parameter has one named axis more.
        states = [nnx.to_pure_dict(nnx.state(block)) for block in plain.blocks[start : start + length]]
        nnx.update(run, jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *states))
        start += length
    x = normal(2, 5, 8)
    value, gradients = loss_and_gradients(plain, x)
    other, stacked = loss_and_gradients(scanned, x)
    close(other, value)
    start = 0
    for run, length in zip(stacked["blocks"], scanned.runs, strict=True):
        singles = [nnx.to_pure_dict(gradients["blocks"][i]) for i in range(start, start + length)]
        expected = jax.tree.map(lambda *leaves: np.stack(leaves), *singles)
        jax.tree.map(close, nnx.to_pure_dict(stacked["blocks"][run]), expected)
        start += length


def test_masked_tokens_are_not_seen_and_causality():
    stack, x = filled(dataclasses.replace(LLAMA, kinds=(AttentionKind(causal=False),))), normal(2, 5, 8)
    run = nnx.jit(lambda stack, x, mask=None: stack(x, mask=mask))
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    later = x + 7 * (np.arange(5) >= 3)[:, None].astype(np.float32)
    y, other = run(stack, x, mask), run(stack, np.stack([later[0], x[1]]), mask)
    np.testing.assert_array_equal(y[0, :3], other[0, :3])
    causal = filled(LLAMA)
    y, other = (np.asarray(run(causal, v)) for v in (x, later))
    np.testing.assert_array_equal(y[:, :3], other[:, :3])
    assert np.any(y[:, 3:] != other[:, 3:])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 2])
def test_the_bounded_scores_see_what_the_others_see(causal, window):
    kind = AttentionKind(causal=causal, window=window, rope=Rope())
    options = {"heads": 4, "kv_heads": 2, "kind": kind}
    # So high a bound changes nothing but the code that runs.
    plain, capped = (
        with_random_parameters(lambda cap=cap: Attention(8, **options, softcap=cap, rngs=nnx.Rngs(0)))
        for cap in (None, 1e6)
    )
    x, mask = normal(2, 6, 8), np.array([[1, 1, 1, 1, 1, 0], [1] * 6])
    outputs = nnx.jit(lambda *both: [a(x, mask=mask) for a in both])(plain, capped)
    close(outputs[1], outputs[0])


def test_rotation_keeps_lengths_and_depends_on_distance():
    for rope in (Rope(), Rope(interleaved=True), Rope(fraction=0.5)):
        q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)
        turned = jax.jit(rope)
        at = lambda x, p, turned=turned: np.asarray(turned(x, np.array([p])))[0, 0, 0]
        close(np.linalg.norm(at(q, 5)), np.linalg.norm(q))
        close(at(q, 7) @ at(k, 4), at(q, 13) @ at(k, 10))
        np.testing.assert_array_equal(at(q, 0), q[0, 0, 0])


def test_a_language_model_trains_in_bfloat16():
    config = dataclasses.replace(
        nj.models.presets.gemma2(layers=2, features=16, heads=2, hidden=32), dtype=jnp.bfloat16
    )
    options = {"vocabulary": 7, "embedding_scale": 4.0, "logit_softcap": 30.0}
    tokens = np.random.default_rng(0).integers(0, 7, (4, 9)).astype(np.int32)

    @nnx.jit
    def start():
        model = LanguageModel(config, **options, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    model, optimizer = start()

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            logits = model(tokens[:, :-1]).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    with jax.numpy_dtype_promotion("standard"):
        losses = [step(model, optimizer) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_from_linen_and_under_vmap():
    config = dataclasses.replace(LLAMA, layers=1)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(bridge.to_linen(Transformer, config)(x))

    x = normal(2, 5, 8)
    variables = jax.jit(Model().init)(jax.random.key(0), x)
    assert jax.jit(Model().apply)(variables, x).shape == (2, 5, 1)

    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return Transformer(config, rngs=rngs)

    several = nnx.jit(lambda rngs: make(rngs))(nnx.Rngs(0).split(3))
    mapped = nnx.vmap(lambda model, x: model(x), in_axes=(0, None))
    assert nnx.jit(lambda model, x: mapped(model, x))(several, x).shape == (3, 2, 5, 8)


def test_what_is_refused():
    with pytest.raises(ValueError, match="layers"):
        dataclasses.replace(LLAMA, layers=0)
    with pytest.raises(ValueError, match="kv_heads=3 must divide heads=4"):
        stack_of(dataclasses.replace(LLAMA, kv_heads=3))
    with pytest.raises(ValueError, match="before they are rotated"):
        Attention(8, heads=2, qk_norm_over="projection", qk_norm_after_rope=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"expected 8 features on the last axis, got x of shape \(2, 5, 6\)"):
        filled(LLAMA)(normal(2, 5, 6))
    model = with_random_parameters(lambda: LanguageModel(LLAMA, vocabulary=5, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="expected integer tokens, got float32"):
        model(normal(2, 5))
    with pytest.raises(ValueError, match="kinds=\\(\\) names no kind"):
        TransformerConfig(layers=1, features=8, heads=1, hidden=8, placement=LLAMA.placement, kinds=())
