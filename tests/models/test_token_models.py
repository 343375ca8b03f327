"""Language model, encoder, DiT and nGPT: in linen, over seeds, rematerialized, in checkpoints, with bad input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.core import meta
from flax.nnx import bridge

import normjax as nj
from normjax import models

EPS32 = float(np.finfo(np.float32).eps)
LLAMA = models.presets.llama(layers=2, features=8, heads=2, hidden=12)
BERT = models.presets.bert(layers=1, features=8, heads=2, hidden=12)
TOKENS = np.array([[1, 4, 2, 0], [3, 3, 6, 5]], np.int32)
NGPT = {"layers": 2, "features": 8, "heads": 2, "hidden": 12, "vocabulary": 7}
DIT = {"shape": (4, 6, 2), "patch": 2, "layers": 1, "features": 8, "heads": 2, "classes": 3, "time_features": 8}
IMAGES = np.random.default_rng(0).standard_normal((2, 4, 6, 2)).astype(np.float32)
TIMES, LABELS = np.array([10.0, 700.0], np.float32), np.array([0, 3], np.int32)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=64 * EPS32 * max(1.0, float(np.max(np.abs(b)))))


def filled(make, seed=0):
    """A module with random parameters; its own initializers, compiled one by one, would take seconds."""
    graph, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape), leaf.dtype)
    return nnx.merge(graph, jax.tree.map(draw, state))


def loss_of(model, tokens):
    return jnp.sum(jnp.sin(model(tokens)))


def test_a_language_model_in_linen_is_the_same():
    config = dataclasses.replace(LLAMA, layers=1)
    model = filled(lambda: models.LanguageModel(config, vocabulary=7, rngs=nnx.Rngs(0)))
    linen = bridge.to_linen(models.LanguageModel, config, vocabulary=7)
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    # Same names, so that a checkpoint of one is one of the other; boxes name axes.
    made = meta.unbox(jax.eval_shape(linen.init, jax.random.key(0), TOKENS))
    assert shapes(made) == {"params": shapes(params)}
    loss = lambda params: jnp.sum(jnp.sin(linen.apply({"params": params}, TOKENS)))
    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    expected, own = nnx.jit(nnx.value_and_grad(loss_of))(model, TOKENS)
    close(value, expected)
    jax.tree.map(close, gradients, nnx.to_pure_dict(own))


def test_seeds_are_a_mapped_axis():
    make = nnx.vmap(lambda rngs: models.NGPT(**NGPT | {"layers": 1}, rngs=rngs))
    several = nnx.jit(lambda rngs: make(rngs))(nnx.Rngs(0).split(2))
    mapped = nnx.jit(nnx.vmap(lambda model, x: model(x), in_axes=(0, None)))(several, TOKENS)
    graph, state = nnx.split(several)
    state, run = jax.device_get(state), jax.jit(lambda state: nnx.merge(graph, state)(TOKENS))
    for seed in range(2):
        close(mapped[seed], run(jax.tree.map(lambda leaf, seed=seed: leaf[seed], state)))
    assert not np.allclose(mapped[0], mapped[1])


def test_a_rematerialized_block_has_the_same_gradient():
    graph, state = nnx.split(filled(lambda: models.DiTBlock(8, 2, 12, rngs=nnx.Rngs(0))))
    x = IMAGES.reshape(2, -1, 8)

    def run(state, x):
        return jnp.sum(jnp.sin(nnx.merge(graph, state)(x, condition=x[:, 0], time=TIMES)))

    plain, again = (jax.jit(jax.grad(f, argnums=(0, 1)))(state, x) for f in (run, jax.checkpoint(run)))
    jax.tree.map(close, again, plain)


@pytest.mark.parametrize("scan", [False, True], ids=["unrolled", "scanned"])
def test_parameters_survive_a_checkpoint(scan, tmp_path):
    make = functools.partial(models.LanguageModel, dataclasses.replace(LLAMA, scan=scan), vocabulary=7)
    model = filled(lambda: make(rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", nnx.to_pure_dict(state))
        checkpointer.wait_until_finished()
        template = nnx.state(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(1))))
        restored = checkpointer.restore(tmp_path / "model", nnx.to_pure_dict(template))
    nnx.replace_by_pure_dict(template, restored)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(nnx.merge(graph, template)), state)


# In a loop, which needs a stream of one dtype.
NARROW = {"dtype": jnp.bfloat16, "scan": True, "remat": True}
MADE = {
    "nGPT": (functools.partial(models.NGPT, **NGPT, **NARROW), (TOKENS,)),
    "DiT": (functools.partial(models.DiT, **DIT, **NARROW), (IMAGES, TIMES, LABELS)),
    "TD DiT": (
        functools.partial(models.DiT, **DIT, **NARROW, conditioning=models.time_dependent_norms(layer_norm=True)),
        (IMAGES, TIMES, LABELS),
    ),
    "encoder": (
        functools.partial(models.Encoder, dataclasses.replace(BERT, **NARROW), vocabulary=7, max_tokens=4, types=2),
        (TOKENS,),
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_compute_in_bfloat16_leaves_parameters_wide(name):
    make, inputs = MADE[name]
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    # JAX's own attention mixes dtypes.
    with jax.numpy_dtype_promotion("standard"):
        assert nnx.eval_shape(lambda model: model(*inputs), model).dtype == jnp.bfloat16
    assert {v.dtype for v in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype(jnp.float32)}


def norms_of(model, axes):
    params = {"/".join(map(str, path)): v[...] for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    return np.concatenate([np.linalg.norm(params[path], axis=axis).ravel() for path, axis in axes.items()])


def test_ngpt_stays_on_the_sphere_and_learns():
    make = lambda: models.NGPT(**NGPT, scan=True, rngs=nnx.Rngs(0))
    projection = nj.models.ngpt_projection(nnx.state(nnx.eval_shape(make), nnx.Param))
    # One of each kind: blocks are stacked.
    assert len(projection["axes"]) == 2 + 7
    assert projection["axes"]["blocks/0/query/kernel"] == 1

    @nnx.jit
    def start():
        model = make()
        tx = optax.chain(optax.adam(3e-2), nj.project_weights(**projection))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            logits, labels = model(TOKENS[:, :-1]), TOKENS[:, 1:]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model, optimizer = start()
        np.testing.assert_allclose(norms_of(model, projection["axes"]), 1, atol=8 * EPS32)
        losses = [float(step(model, optimizer)) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    # What adding the projected update rounds.
    np.testing.assert_allclose(norms_of(model, projection["axes"]), 1, atol=8 * EPS32)


def test_ngpt_sees_only_what_came_before():
    model = filled(lambda: models.NGPT(**NGPT, rngs=nnx.Rngs(0)))
    run = nnx.jit(lambda model, tokens: model(tokens))
    y, other = (np.asarray(run(model, t)) for t in (TOKENS, np.where(np.arange(4) < 2, TOKENS, 1)))
    np.testing.assert_array_equal(y[:, :2], other[:, :2])
    assert np.any(y[:, 2:] != other[:, 2:])


@pytest.mark.parametrize(
    "conditioning", [models.ada_layer_norm_zero, models.time_dependent_norms], ids=lambda f: f.__name__
)
def test_dit_hears_of_time_and_label(conditioning):
    model = filled(lambda: models.DiT(**DIT, conditioning=conditioning(), out_channels=4, rngs=nnx.Rngs(0)))
    compiled = nnx.jit(lambda model, *inputs: model(*inputs))
    run = lambda *inputs: np.asarray(compiled(model, *inputs))
    y, others = run(IMAGES, TIMES, LABELS), np.array([0, 1], np.int32)
    assert y.shape == (2, 4, 6, 4)
    for other in (run(IMAGES, TIMES + 100, LABELS), run(IMAGES, TIMES, others)):
        assert not np.allclose(y[1], other[1])
    np.testing.assert_array_equal(y[0], run(IMAGES, TIMES, others)[0])


def test_dit_begins_as_a_linear_map_of_patches_in_their_places():
    block = nnx.jit(lambda: models.DiTBlock(8, 2, 12, rngs=nnx.Rngs(0)))()
    x = IMAGES.reshape(2, -1, 8)
    np.testing.assert_array_equal(nnx.jit(lambda block: block(x, condition=x[:, 0], time=TIMES))(block), x)
    images = np.arange(2 * 4 * 6 * 2, dtype=np.int32).reshape(2, 4, 6, 2)
    patches = models.patchify(images, 2)
    np.testing.assert_array_equal(np.asarray(patches)[0, 1].reshape(2, 2, 2), images[0, :2, 2:4])
    np.testing.assert_array_equal(models.unpatchify(patches, 4, 6, 2), images)


def test_padding_and_types_of_an_encoder():
    options = {"vocabulary": 7, "max_tokens": 6, "types": 2, "pooler": True, "masked_head": True}
    model = filled(lambda: models.Encoder(BERT, **options, rngs=nnx.Rngs(0)))

    @nnx.jit
    def run(model, tokens, types, mask):
        y = model(tokens, types=types, mask=mask)
        return y, model.pooled(y), model.logits(y)

    mask, types = (np.array(a, np.int32) for a in ([[1, 1, 1, 0], [1, 1, 0, 0]], [[0, 0, 1, 1], [0, 1, 1, 1]]))
    y, pooled, logits = map(np.asarray, run(model, TOKENS, types, mask))
    assert (pooled.shape, logits.shape) == ((2, 8), (2, 4, 7))
    other = run(model, np.where(mask == 1, TOKENS, 6), types, mask)
    np.testing.assert_array_equal(pooled, other[1])
    np.testing.assert_array_equal(logits[mask == 1], np.asarray(other[2])[mask == 1])
    assert np.any(y != np.asarray(run(model, TOKENS, 1 - types, mask)[0]))
    assert np.all(np.abs(pooled) <= 1)


def of(make, *inputs, **options):
    """Makes a module, shapes only, and calls it."""
    nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))(*inputs, **options))


def bert(**options):
    return functools.partial(models.Encoder, BERT, vocabulary=7, **options)


def with_head(call):
    nnx.eval_shape(lambda: call(bert()(rngs=nnx.Rngs(0))))


DITS = functools.partial(models.DiT, **DIT)
BAD = {
    "features of a DiT": (lambda: of(functools.partial(models.DiT, **DIT | {"features": 6})), "got features=6"),
    "patches": (lambda: of(functools.partial(models.DiT, **DIT | {"patch": 4})), "divisible by patch=4"),
    "images": (lambda: of(DITS, IMAGES[:, :2], TIMES, LABELS), r"4, 6, 2\) with one time.*got \(2, 2, 6, 2\)"),
    "labels": (lambda: of(DITS, IMAGES, TIMES, TIMES), "expected integer labels, got float32"),
    "cut": (lambda: models.patchify(IMAGES, 4), r"patch=4, got \(2, 4, 6, 2\)"),
    "heads of nGPT": (lambda: of(functools.partial(models.NGPT, **NGPT | {"heads": 3})), "heads=3 does not divide"),
    "tokens of nGPT": (lambda: of(functools.partial(models.NGPT, **NGPT), IMAGES), "integer tokens, got float32"),
    "projection": (lambda: models.ngpt_projection({"a": {"kernel": TIMES}}), "parameters of an NGPT.*'a/kernel'"),
    "tokens": (lambda: of(bert(), IMAGES[..., 0, 0]), "expected integer tokens, got float32"),
    "float types": (lambda: of(bert(types=2), TOKENS, types=IMAGES[..., 0, 0]), "expected integer types, got float32"),
    "no types": (lambda: of(bert(), TOKENS, types=TOKENS), "make it with types=2"),
    "too long for a language model": (
        lambda: of(functools.partial(models.LanguageModel, LLAMA, vocabulary=7, max_tokens=3), TOKENS),
        "got 4 tokens, expected at most max_tokens=3",
    ),
    "too long": (lambda: of(bert(max_tokens=3), TOKENS), "got 4 tokens, expected at most max_tokens=3"),
    "no pooler": (lambda: with_head(lambda m: m.pooled(IMAGES)), "make it with pooler=True"),
    "no head": (lambda: with_head(lambda m: m.logits(IMAGES)), "make it with masked_head=True"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_say_what_came_and_what_was_expected(name):
    call, message = BAD[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
