"""Folding and converting the library's transformers, in every placement."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import normjax as nj
from normjax import fold, placements
from normjax.models import AttentionKind, LanguageModel, Rope, Transformer, TransformerConfig

TOKENS = jnp.array([[1, 2, 3, 4], [4, 0, 1, 3]])
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
WIDE = nj.Precision(parameters=jnp.float64)
# Two blocks of some dozens of roundings each, of logits of size 1 to 10.
FLOAT64 = 1e-12


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def language_model(place, seed=0, **options):
    """A language model with random gains, biases and statistics, ready for evaluation."""
    head = {n: options.pop(n) for n in ("tied", "max_tokens", "embedding_scale") if n in options}
    fields = {"layers": 2, "features": 8, "heads": 4, "kv_heads": 2, "hidden": 12, "gated": True}
    fields |= {"placement": place, "param_dtype": jnp.float64} | options
    config, options = TransformerConfig(**fields), {"tied": False} | head
    return randomized(lambda: LanguageModel(config, vocabulary=7, **options, rngs=nnx.Rngs(0)), seed)


def randomized(make, seed=0):
    """A model ready for evaluation in which all is random; nothing is compiled to initialize it."""
    rng, (graph, state) = np.random.default_rng(seed), nnx.split(nnx.eval_shape(make))

    def draw(path, leaf):
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.zeros(leaf.shape, leaf.dtype)
        name, z = jax.tree_util.keystr(path), rng.standard_normal(leaf.shape)
        return jnp.asarray(np.exp(z) if "'var'" in name else 0.5 * z + ("'scale'" in name), leaf.dtype)

    model = nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))
    model.eval()
    return model


@nnx.jit
def run(model, x):
    """For shapes that no other test has: one program is compiled in less time than its operations one by one."""
    return model(x)


def layer_norm(**options):
    return nj.layer_norm(precision=WIDE, **options)


def rms_norm(**options):
    return nj.rms_norm(precision=WIDE, **options)


def values_and_inner(kind, depth, layers):
    return placements.Step(before=True, qkv=kind == "attention", inner=True)


# Placement: number of edges, number of refusals, words of their reasons.
PLACEMENTS = {
    "pre": (placements.pre(layer_norm()), 5, ()),
    "gemma": (placements.pre(rms_norm(scale_offset=1.0)), 5, ()),
    "layer_norm_scaling": (placements.layer_norm_scaling(layer_norm()), 5, ()),
    "layer_scale": (placements.layer_scale(layer_norm()), 9, ()),
    "parallel": (placements.parallel(layer_norm()), 3, ()),
    "sub": (placements.sub(layer_norm()), 9, ()),
    "values": (placements.Placement(rms_norm(), values_and_inner), 11, ("another norm stands",) * 2),
    "mix": (placements.mix(rms_norm(), num_post=1), 3, ("Post-LN",) * 2),
    "post": (placements.post(layer_norm(), embedding=True), 0, ("Post-LN",) * 4 + ("stream itself",)),
    "peri": (placements.peri(rms_norm()), 5, ("Peri-LN",) * 4),
    "reordered": (placements.reordered(layer_norm()), 1, ("Peri-LN",) * 4),
    "deep": (placements.deep(layer_norm()), 0, ("Post-LN",) * 4),
    "keel": (placements.keel(rms_norm()), 4, ("Post-LN",) * 4),
    "hybrid": (placements.hybrid(rms_norm()), 5, ("residual too",) * 2),
    "normalized_residual": (placements.normalized_residual(layer_norm()), 1, ("residual too",) * 4),
    "gated_residual": (placements.gated_residual(rms_norm()), 5, ("Peri-LN",) * 4 + ("weighs the residual",) * 4),
    "resi_dual": (placements.resi_dual(layer_norm()), 0, ("Post-LN",) * 4 + ("another stream",)),
    "siamese": (placements.siamese(layer_norm()), 0, ("Post-LN", "another norm") * 4 + ("another stream",) * 2),
    "batch_norm": (placements.pre(nj.batch_norm(precision=WIDE)), 5, ()),
    "unified_norm": (placements.pre(nj.unified_norm(precision=WIDE)), 5, ()),
    "rep_batch_norm": (placements.pre(nj.rep_batch_norm(precision=WIDE)), 5, ()),
    "prep_batch_norm": (placements.pre(nj.prep_batch_norm(token_norm=layer_norm(), precision=WIDE)), 5, ()),
    "batch_renorm": (placements.pre(nj.batch_renorm(precision=WIDE)), 5, ()),
    "scale_norm": (placements.pre(nj.scale_norm(precision=WIDE)), 5, ()),
    "dyt": (placements.pre(nj.dyt(precision=WIDE)), 5, ()),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_placement(name):
    place, edges, reasons = PLACEMENTS[name]
    model = language_model(place)
    folded, report = fold.fold_model(model)
    folded.eval()
    assert len(report.applied) == edges
    assert len(report.refusals) == len(reasons)
    for words in set(reasons):
        assert sum(words in r.reason for r in report.refusals) == reasons.count(words)
    if not edges:
        jax.tree.map(np.testing.assert_array_equal, nnx.state(folded), nnx.state(model))
        return
    expected, found = model(TOKENS), folded(TOKENS)
    result = fold.verify(lambda: expected, lambda: found, tolerance=FLOAT64)
    assert result.passed, result
    assert bool(report.needs_bias) == (place.norm.apply.made.name not in ("rms_norm", "scale_norm"))
    # A second fold finds gains of one.
    again, _ = fold.fold_model(folded)
    again.eval()
    assert fold.verify(lambda: found, lambda: again(TOKENS), tolerance=FLOAT64).passed
    if name in ("scale_norm", "batch_renorm"):
        with pytest.raises(ValueError, match="cannot be made without its parameters"):
            fold.fold_model(model, drop=True)
    elif not reasons:
        small, _ = fold.fold_model(model, drop=True)
        small.eval()
        assert fold.verify(lambda: expected, lambda: small(TOKENS), tolerance=FLOAT64).passed
        assert len(jax.tree.leaves(nnx.state(small))) < len(jax.tree.leaves(nnx.state(folded)))
    else:
        with pytest.raises(ValueError, match="drop=True needs every norm folded"):
            fold.fold_model(model, drop=True)


@pytest.mark.parametrize("name", ["batch_norm", "unified_norm", "rep_batch_norm"])
def test_nothing_is_left_of_a_dropped_norm(name):
    """No root is taken any more: XLA itself cannot fold what are arguments to it."""
    model = language_model(PLACEMENTS[name][0], layers=1)
    folded, _ = fold.fold_model(model, drop=True)
    folded.eval()
    text = [jax.jit(lambda t, m=m: m(t)).lower(TOKENS).as_text() for m in (model, folded)]
    assert "rsqrt" in text[0]
    assert "rsqrt" not in text[1]
    assert "batch_stats" not in fold.nnx_to_linen(nnx.state(folded))


@pytest.mark.parametrize("name", ["layer_scale", "hybrid"] if NIGHTLY else ["layer_scale"])
def test_scanned_blocks(name):
    model = language_model(PLACEMENTS[name][0], scan=True)
    folded, report = fold.fold_model(model)
    folded.eval()
    assert any(edge.stacked for edge in report.applied)
    assert fold.verify(model, folded, TOKENS, tolerance=FLOAT64).passed


ROPE = (AttentionKind(rope=Rope()),)


# A norm of the whole projection cannot follow the rotation of heads.
@pytest.mark.parametrize(
    ("over", "kind"),
    [(o, k) for o in ("head", "projection") for k in ("none", "equal", "unequal")] + [("head", "after")],
)
def test_norms_of_queries_and_keys(over, kind):
    options = {"qk_norm": rms_norm(scale_offset=1.0), "qk_norm_over": over, "qk_norm_after_rope": kind == "after"}
    options |= {"head_features": 4} | ({} if kind == "none" else {"kinds": ROPE})
    model = language_model(placements.pre(rms_norm()), layers=1, **options)
    gain = model.stack.blocks[0].attention.branch.key_norm.scale
    if kind == "equal":
        gain[...] = np.tile(np.asarray(gain[...]).reshape(-1, 4)[:, :2], 2).reshape(-1)
    folded, report = fold.fold_model(model)
    merged = [edge for edge in report.applied if edge.rule == "query-key"]
    assert len(merged) == (kind != "unequal")
    assert [("rotated pairs" in r.reason) for r in report.refusals] == [True] * (kind == "unequal")
    assert fold.verify(model, folded, TOKENS, tolerance=FLOAT64).passed
    if merged:
        np.testing.assert_array_equal(folded.stack.blocks[0].attention.branch.key_norm.scale[...], 0)


@pytest.mark.parametrize(
    ("norm", "reason"), [(nj.l2_norm(), "neither a gain"), (layer_norm(), "have a bias, which does not go")]
)
def test_norms_of_queries_and_keys_that_stay(norm, reason):
    model = language_model(placements.pre(rms_norm()), layers=1, qk_norm=norm)
    assert all(reason in r.reason for r in fold.plan_for(model).refusals if "_norm" in r.path.rpartition("/")[2])
    assert any("key_norm" in r.path for r in fold.plan_for(model).refusals)


def test_tied_heads():
    model = language_model(placements.pre(layer_norm()), tied=True)
    assert "untie=True" in fold.plan_for(model).refusals[0].reason
    folded, _ = fold.fold_model(model, untie=True)
    assert fold.verify(model, folded, TOKENS, tolerance=FLOAT64).passed
    assert folded.head is not None
    np.testing.assert_array_equal(folded.embedding.embedding[...], model.embedding.embedding[...])


@pytest.mark.parametrize(
    ("norm", "reason"),
    [
        (nj.chain(nj.rms_norm(), nj.dyt()), "composed or hand-written"),
        (nj.l2_norm(), "neither a gain"),
        (nj.layer_norm(use_scale=False, use_bias=False), "no gain and no bias"),
        (nj.time_dependent_rms_norm(), "from a condition"),
        (nj.batch_norm(debias=True), "debias"),
        (nj.batch_norm(feature_axes=-2), "other feature axes"),
        (nj.layer_norm(axis=(-2, -1)), "other axes"),
    ],
)
def test_norms_that_do_not_fold(norm, reason):
    make = lambda: nj.nnx.Norm(norm, 8, rngs=nnx.Rngs(0), time=jnp.zeros(1))
    edge = fold._sites.before(make(), "norm", (fold.Layer("dense"),))
    assert reason in edge.reason


def test_a_schedule_that_runs_is_refused():
    model = language_model(PLACEMENTS["prep_batch_norm"][0])
    model.stack.final_norm.weights_state["iter"][...] = jnp.asarray(5, jnp.int32)
    assert "schedule" in fold.plan_for(model).refusals[0].reason


def test_a_stack_alone_has_no_reader_of_its_final_norm():
    model = language_model(placements.pre(layer_norm()), layers=1).stack
    folded, report = fold.fold_model(model)
    assert [r.path for r in report.refusals] == ["final_norm"]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 8)))
    assert fold.verify(model, folded, x, tolerance=FLOAT64).passed
    assert isinstance(folded, Transformer)
    with pytest.raises(TypeError, match="write a Plan by hand"):
        fold.plan_for(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="expected a LanguageModel"):
        fold.to_pre_rms(model)


@pytest.mark.parametrize("pool", ["class", "mean"] if NIGHTLY else ["class"])
def test_vision_transformers(pool):
    """The final norm folds into the head behind the class token, and behind a mean, which is linear."""
    config = nj.models.presets.vit(layers=1, features=8, heads=2, hidden=16, param_dtype=jnp.float64)
    config = dataclasses.replace(config, placement=placements.pre(layer_norm()))
    options = {"image_size": 4, "patch_size": 2, "classes": 3, "pool": pool}
    model = randomized(lambda: nj.models.ViT(config, **options, rngs=nnx.Rngs(0)))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 3)))
    folded, report = fold.fold_model(model, drop=True)
    assert len(report.applied) == 3
    assert not report.refusals
    rms, crms = fold.to_pre_rms(model), fold.to_pre_crms(model)
    assert rms.stack.config.placement.norm.apply.made.name == "rms_norm"
    assert crms.position_embedding.shape == (5 if pool == "class" else 4, 7)
    np.testing.assert_allclose(np.mean(nnx.jit(lambda m, x: m.embedded(x))(rms, x), -1), 0, atol=1e-12)
    for new in (folded, rms, crms):
        result = fold.verify(lambda: run(model, x), lambda new=new: run(new, x), tolerance=FLOAT64)
        assert result.passed, result


def encoder(place, layers=1, **heads):
    fields = {"features": 8, "heads": 2, "hidden": 12, "use_bias": True, "param_dtype": jnp.float64}
    config = TransformerConfig(**fields, layers=layers, placement=place, kinds=(AttentionKind(causal=False),))
    options = {"vocabulary": 7, "max_tokens": 4, "types": 2} | heads
    return randomized(lambda: nj.models.Encoder(config, **options, rngs=nnx.Rngs(0)))


def test_encoders():
    """The final norm's readers are outside of the model; the stream may be centred all the same."""
    model = encoder(placements.pre(layer_norm()), pooler=True)
    folded, report = fold.fold_model(model)
    assert len(report.applied) == 2
    assert ["who reads it is not known" in r.reason for r in report.refusals] == [True]
    rms = fold.to_pre_rms(model)

    @nnx.jit
    def both(m):
        y = m(TOKENS)
        return {"y": y, "pooled": m.pooled(y)}

    for new in (folded, rms):
        assert fold.verify(lambda: both(model), lambda m=new: both(m), tolerance=FLOAT64).passed
    with pytest.raises(ValueError, match="stack/final_norm stay"):
        fold.to_pre_crms(model)
    for place, heads, reason in (
        (placements.post(layer_norm(), embedding=True), {}, "Post-LN"),
        (placements.pre(layer_norm()), {"masked_head": True}, "head for masked tokens"),
    ):
        other = encoder(place, **heads)
        with pytest.raises(ValueError, match=reason):
            fold.to_pre_rms(other)
        assert any(r.path == "head/norm" for r in fold.plan_for(other).refusals) == bool(heads)


def test_optimizers_refuse_folded_models():
    model = language_model(placements.pre(layer_norm()), layers=1)
    folded, _ = fold.fold_model(model)
    tx = nj.nap(optax.sgd(0.1), mask=nj.hidden_weights(readout=("head",)))
    for changed in (folded, nnx.clone(folded), nnx.merge(*nnx.split(folded))):
        with pytest.raises(ValueError, match="folded"):
            nnx.Optimizer(changed, tx, wrt=nnx.Param)
    for trainable in (model, fold.to_pre_rms(model)):
        nnx.eval_shape(lambda m: nnx.Optimizer(m, tx, wrt=nnx.Param), trainable)


@pytest.mark.parametrize(
    ("place", "options"),
    [
        (placements.parallel(layer_norm(use_bias=False)), {"kinds": ROPE, "layers": 1}),
        (placements.layer_norm_scaling(layer_norm(scale_offset=1.0)), {"scan": True}),
    ],
    ids=["parallel", "scaled"],
)
@pytest.mark.skipif(not NIGHTLY, reason="a trained Pre-LN model and a ViT are converted by day")
def test_the_three_forms_agree(place, options):
    model = language_model(place, **options)
    rms, crms = fold.to_pre_rms(model), fold.to_pre_crms(model)
    assert rms.stack.config.placement.norm.apply.made.name == "rms_norm"
    assert crms.stack.config.features == model.stack.config.features - 1
    for converted in (rms, crms):
        result = fold.verify(model, converted, TOKENS, tolerance=FLOAT64)
        assert result.passed, result
    stream = list(rms.stack.carries(rms.embedded(TOKENS)))[-1]
    np.testing.assert_allclose(np.mean(stream, -1), 0, atol=1e-12)


@pytest.mark.skipif(not NIGHTLY, reason="the notebook has a trained model in float32; these run at night")
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
def test_the_three_forms_agree_in_narrow_dtypes(dtype, tolerance):
    """What docs/folding.md promises."""
    norm = nj.layer_norm(precision=nj.Precision(parameters=dtype))
    model = language_model(placements.pre(norm), layers=1, param_dtype=dtype)
    with jax.numpy_dtype_promotion("standard"):
        for converted in (fold.to_pre_rms(model), fold.to_pre_crms(model)):
            assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(converted))} == {jnp.dtype(dtype)}
            result = fold.verify(model, converted, TOKENS, tolerance=tolerance)
            assert result.passed, result


def same_gradients(a, b):
    a, b = jax.device_get((a, b))
    largest = max(1.0, *(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(b)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * largest), a, b)


def test_training_as_pre_rms_has_pre_ln_gradients_and_the_forms_of_what_was_trained_agree():
    options = {"layers": 1, "max_tokens": 4, "use_bias": True, "embedding_scale": 2.0}
    model = language_model(placements.pre(layer_norm()), **options)
    build, (graph, state) = fold.rms_reparametrization(model), nnx.split(model)

    def loss(m):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(m(TOKENS[:, :-1])), TOKENS[:, 1:, None], -1))

    plain, centred = (jax.value_and_grad(f) for f in (lambda s: loss(nnx.merge(graph, s)), lambda s: loss(build(s))))

    @jax.jit
    def step(s):
        value, gradients = plain(s)
        return value, gradients, centred(s)[1], jax.tree.map(lambda p, g: p - 0.1 * g, s, gradients)

    losses = []
    for _ in range(30):
        value, expected, gradients, state = step(state)
        same_gradients(gradients, expected)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    trained = nnx.merge(graph, state)
    rms, crms = fold.to_pre_rms(trained), fold.to_pre_crms(trained)
    folded, _ = fold.fold_model(rms, drop=True)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))
    turned = fold.rotate_model(folded, rotation)
    assert np.abs(turned.embedding.embedding[...] - folded.embedding.embedding[...]).max() > 0.1
    for form in (rms, crms, folded, turned):
        # The promise of docs/folding.md is 1e-10.
        result = fold.verify(lambda: run(trained, TOKENS), lambda form=form: run(form, TOKENS), tolerance=FLOAT64)
        assert result.passed, result
    np.testing.assert_allclose(np.mean(rms.embedded(TOKENS), -1), 0, atol=1e-12)


def test_conversions_keep_the_mark_of_what_was_folded():
    """A fold, then a conversion: the gains are in the kernels still."""
    model = language_model(placements.pre(layer_norm()), layers=1)
    folded, _ = fold.fold_model(model)
    tx = nj.nap(optax.sgd(0.1), mask=nj.hidden_weights(readout=("head",)))
    for converted in (fold.to_pre_rms(folded), fold.rotate_model(fold.to_pre_rms(folded), np.eye(8))):
        with pytest.raises(ValueError, match="folded"):
            nnx.Optimizer(converted, tx, wrt=nnx.Param)


SHEAR = np.eye(8) + np.eye(8, k=1)


@pytest.mark.parametrize(
    ("place", "options", "rotation", "reason"),
    [
        (placements.pre(layer_norm()), {}, np.eye(8), "only that commutes"),
        (placements.pre(rms_norm()), {}, np.eye(8), "fold_model first"),
        (placements.pre(rms_norm(use_scale=False)), {}, SHEAR, "expected an orthogonal matrix"),
        (placements.pre(rms_norm(use_scale=False)), {}, np.eye(7), r"expected \(8, 8\)"),
        (placements.pre(rms_norm(use_scale=False)), {"tied": True}, np.eye(8), "embedding's transpose"),
        (placements.layer_scale(rms_norm(use_scale=False)), {}, np.eye(8), "weighs single features"),
    ],
)
def test_models_that_do_not_rotate(place, options, rotation, reason):
    with pytest.raises(ValueError, match=reason):
        fold.rotate_model(language_model(place, layers=1, **options), rotation)


@pytest.mark.parametrize(
    ("place", "options", "reason"),
    [
        (placements.pre(nj.rms_norm()), {}, "only that ignores the mean"),
        (placements.pre(nj.layer_norm()), {"tied": True}, "embedding's transpose"),
        (placements.post(nj.layer_norm(), embedding=True), {}, "Post-LN"),
        (dataclasses.replace(placements.pre(nj.layer_norm()), embedding=True), {}, "starts at the embedding"),
        (placements.peri(nj.layer_norm()), {}, "a norm writes to the stream"),
        (placements.layer_scale(nj.layer_norm()), {}, "a gate follows the branch"),
        (placements.sub(nj.layer_norm()), {}, "norms inside its sublayers"),
        (placements.Placement(nj.layer_norm(), lambda kind, depth, layers: placements.Step()), {}, "without a norm"),
    ],
)
def test_models_that_do_not_convert(place, options, reason):
    with pytest.raises(ValueError, match=reason):
        fold.to_pre_rms(language_model(place, layers=1, **options))


def test_layer_scale_folds_first_and_converts_then():
    model = language_model(placements.layer_scale(layer_norm()))
    plan = fold.plan_for(model)
    gates = fold.Plan(tuple(edge for edge in plan.edges if edge.rule == "after"))
    plain, _ = fold.fold_model(model, gates)
    assert fold.verify(model, fold.to_pre_rms(plain), TOKENS, tolerance=FLOAT64).passed
    some, _ = fold.fold_model(model, fold.Plan(gates.edges[:1]))
    assert fold.verify(model, some, TOKENS, tolerance=FLOAT64).passed


def test_dropping_never_loses_what_is_left():
    """HybridNorm's merged gain of queries and keys stays with the norm that it has in common with the others."""
    place = placements.Placement(rms_norm(), lambda kind, depth, layers: placements.Step(before=True, qkv=True))
    place = dataclasses.replace(place, rule=lambda kind, d, n: placements.Step(before=True, qkv=kind == "attention"))
    with pytest.raises(ValueError, match="has no place for"):
        fold.fold_model(language_model(place, layers=1), drop=True)
