"""Models drawn at random from every class that has a plan, against the promise of docs/folding.md for float32."""

import os

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj
from normjax import fold, models, placements
from normjax.fold.__main__ import PROMISED

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
NORMS = {
    "layer": nj.layer_norm(),
    "rms": nj.rms_norm(),
    "gemma": nj.rms_norm(scale_offset=1.0),
    "batch": nj.batch_norm(),
    "rep": nj.rep_batch_norm(),
    "dyt": nj.dyt(),
}
PLACES = [
    placements.pre, placements.parallel, placements.sub, placements.layer_scale, placements.peri, placements.hybrid,
    placements.post, placements.layer_norm_scaling,
]  # fmt: skip
IMAGE_NORMS = {
    "batch": nj.batch_norm(),
    "group": nj.group_norm(num_groups=2),
    "ibn": nj.instance_batch_norm(),
    "bcn": nj.batch_channel_norm(num_groups=2),
    "none": None,
}
WEIGHTS = {"none": None, "ws": nj.weight_standardization(), "weight_norm": nj.weight_norm()}
TOKENS = jnp.array([[1, 2, 3, 0], [4, 0, 1, 3]])
RNG = np.random.default_rng(0)
IMAGES, VECTORS, STREAM = (
    jnp.asarray(RNG.standard_normal(shape), jnp.float32) for shape in ((2, 4, 4, 3), (3, 4), (2, 4, 8))
)


def transformer(draw, kind):
    place, norm = draw(st.sampled_from(PLACES)), NORMS[draw(st.sampled_from(sorted(NORMS)))]
    flag = lambda: draw(st.booleans())
    config = models.TransformerConfig(
        layers=draw(st.integers(1, 2)), features=8, heads=2, hidden=8, placement=place(norm), gated=flag(),
        use_bias=flag(), kv_heads=draw(st.sampled_from([None, 1])), qk_norm=nj.rms_norm() if flag() else None,
        qk_norm_over=draw(st.sampled_from(["head", "projection"])), scan=flag(),
        kinds=(models.AttentionKind(causal=kind == "lm", rope=models.Rope() if flag() else None),),
    )  # fmt: skip
    if config.qk_norm is not None and config.qk_norm_over == "projection":
        # A norm over the whole projection cannot follow a rotation, nor serve shared heads of another number.
        hypothesis.assume(config.kinds[0].rope is None)
    if kind == "lm":
        options = {"vocabulary": 5, "tied": flag(), "max_tokens": draw(st.sampled_from([None, 4]))}
        return lambda: models.LanguageModel(config, **options, rngs=nnx.Rngs(0)), TOKENS
    if kind == "vit":
        options = {"image_size": 4, "patch_size": 2, "classes": 3, "pool": draw(st.sampled_from(["class", "mean"]))}
        return lambda: models.ViT(config, **options, rngs=nnx.Rngs(0)), IMAGES
    if kind == "encoder":
        return lambda: models.Encoder(config, vocabulary=5, types=2, pooler=flag(), rngs=nnx.Rngs(0)), TOKENS
    return lambda: models.Transformer(config, rngs=nnx.Rngs(0)), STREAM


def residual_network(draw, kind):
    del kind
    kinds, flags = ("stem", "first", "inner", "last", "shortcut", "joined", "final"), ("bottleneck", "preactivation")
    named = {name: draw(st.sampled_from(sorted(IMAGE_NORMS))) for name in kinds}
    depths = draw(st.sampled_from([(1,), (1, 1)]))
    config = models.ResNetConfig(
        lambda site: IMAGE_NORMS[named[site.kind]], depths=depths, widths=(4, 8)[: len(depths)],
        weights=WEIGHTS[draw(st.sampled_from(sorted(WEIGHTS)))], stem=models.Stem(3, 1, draw(st.booleans())),
        **{name: draw(st.booleans()) for name in (*flags, "use_bias")},
    )  # fmt: skip
    return lambda: models.ResNet(config, classes=3, rngs=nnx.Rngs(0)), IMAGES


def classifier(draw, kind):
    del kind
    norm = NORMS[draw(st.sampled_from(["batch", "layer", "rep"]))] if draw(st.booleans()) else None
    widths = tuple(draw(st.lists(st.integers(1, 4), min_size=0, max_size=2)))
    use_bias = draw(st.sampled_from([None, True, False]))
    make = lambda: models.MLPClassifier(4, widths, classes=3, norm=norm, use_bias=use_bias, rngs=nnx.Rngs(0))
    return make, VECTORS


KINDS = {
    "lm": transformer, "vit": transformer, "encoder": transformer, "stack": transformer, "resnet": residual_network,
    "mlp": classifier,
}  # fmt: skip


@st.composite
def drawn(draw):
    kind = draw(st.sampled_from(sorted(KINDS)))
    return KINDS[kind](draw, kind)


def randomized(make, rng):
    """A model in which every leaf is random; variances are positive, and PRepBN's schedules have ended."""
    graph, state = nnx.split(nnx.eval_shape(make))

    def draw(path, leaf):
        name, z = jax.tree_util.keystr(path), rng.standard_normal(leaf.shape)
        return jnp.asarray(np.exp(z) if "'var'" in name else 0.5 * z + ("'scale'" in name), leaf.dtype)

    model = nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))
    model.eval()
    return model


@pytest.mark.skipif(not NIGHTLY, reason="models are drawn at night; each compiles some dozens of operations anew")
@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(drawn(), st.integers(0, 99))
def test_what_folds_computes_the_same(given, seed):
    make, x = given
    model = randomized(make, np.random.default_rng(seed))
    untie = isinstance(model, models.LanguageModel) and model.head is None
    folded, report = fold.fold_model(model, untie=untie)
    again, _ = fold.fold_model(folded)
    forms = [folded, again]
    if isinstance(model, models.ResNet):
        forms.append(fold.fold_model(model, drop=True)[0])
    for form in forms:
        result = fold.verify(model, form, x, tolerance=PROMISED["float32"])
        assert result.passed, (result, report)
