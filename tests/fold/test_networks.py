"""Folding ResNets and MLP classifiers: what goes into the layer before it, what stays and why, effective kernels."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import normjax as nj
from normjax import fold
from normjax.models import MLPClassifier, ResNet, ResNetConfig, resnet_presets

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
WIDE = nj.Precision(parameters=jnp.float64)
BATCH = nj.batch_norm(precision=WIDE)
SIZES = {"depths": (1, 1), "widths": (4, 8), "param_dtype": jnp.float64}
# What docs/folding.md promises in float64, where running statistics are float64 as well.
PROMISED = 1e-10


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


def randomized(make, seed=0):
    """A model with random gains, biases and statistics, negative gains and small variances among them."""
    rng, (graph, state) = np.random.default_rng(seed), nnx.split(nnx.eval_shape(make))

    def draw(path, leaf):
        name, z = jax.tree_util.keystr(path), rng.standard_normal(leaf.shape)
        return jnp.asarray(np.exp(2 * z) if "'var'" in name else 0.5 * z + 0.5 * ("'scale'" in name), leaf.dtype)

    model = nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))
    model.eval()
    return model


def resnet(config, **changes):
    config = dataclasses.replace(config, **SIZES | changes)
    return lambda: ResNet(config, classes=3, channels=2, rngs=nnx.Rngs(0))


@nnx.jit
def run(model, x):
    return model(x)


X = np.random.default_rng(1).standard_normal((2, 4, 4, 2))


ESTIMATED = nj.estimated_batch_norm(precision=WIDE)
GROUPS = {"num_groups": 2}
OWN, SUM, STREAM = "from each input", "follows the addition", "reads the residual stream"
MIXED = {"first": nj.instance_batch_norm(), "inner": nj.batch_channel_norm(num_groups=2), "joined": None}
ONE_BLOCK = {"depths": (1,), "widths": (4,)}
POOLED = nj.models.Stem(3, 1, True)
# Configuration, number of edges, words of the reasons of refusals.
CONFIGS = {
    "bn": (ResNetConfig(BATCH), 6, ()),
    "bottleneck": (ResNetConfig(BATCH, bottleneck=True), 9, ()),
    "biases": (ResNetConfig(BATCH, use_bias=True), 6, ()),
    "preactivation": (ResNetConfig(BATCH, preactivation=True), 2, (STREAM,) * 3),
    # The first block projects: nothing but its norm reads the stem.
    "after the stem": (ResNetConfig(BATCH, preactivation=True, bottleneck=True), 5, (STREAM,) * 2),
    "pooled stem": (ResNetConfig(BATCH, preactivation=True, bottleneck=True, stem=POOLED), 4, (STREAM,) * 3),
    "after the sum": (ResNetConfig(lambda site: BATCH if site.kind == "joined" else None), 0, (SUM,) * 2),
    "gn_ws": (resnet_presets.gn_ws(**GROUPS), 0, (OWN,) * 6),
    "bcn_ws": (resnet_presets.bcn_ws(**GROUPS), 6, (OWN,) * 6),
    "bcn_ws_micro": (resnet_presets.bcn_ws(**GROUPS, batch=ESTIMATED), 6, (OWN,) * 6),
    "bcn_of_another": (
        resnet_presets.bcn_ws(**GROUPS, batch=nj.instance_norm()), 0, (OWN,) * 6 + ("no running statistics that",) * 6,
    ),
    "ibn_a": (resnet_presets.ibn_a(), 6, ("instance half",) * 2),
    "ibn_b": (resnet_presets.ibn_b(), 5, (OWN, SUM, SUM)),
    "evo_s": (resnet_presets.evo_norm(), 0, ("activation inside",) * 2 + (STREAM,) * 3),
    "evo_b": (resnet_presets.evo_norm(nj.evo_norm_b()), 0, ("activation inside",) * 2 + (STREAM,) * 3),
    "nf": (resnet_presets.nf(), 0, ()),
    "mixed": (
        ResNetConfig(lambda site: MIXED.get(site.kind, BATCH), bottleneck=True, weights=nj.weight_standardization()),
        9, ("instance half",) * 2 + ("BCN's group norm",) * 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_every_norm_of_a_residual_network_folds_or_has_its_reason(name):
    config, edges, reasons = CONFIGS[name]
    plan = fold.plan_for(nnx.eval_shape(resnet(config)))
    assert len(plan.edges) == edges
    assert len(plan.refusals) == len(reasons)
    for words in set(reasons):
        assert sum(words in r.reason for r in plan.refusals) == reasons.count(words)


FOLDED = [n for n in CONFIGS if CONFIGS[n][1] or n == "nf"] if NIGHTLY else ["mixed", "after the stem"]


@pytest.mark.parametrize("name", FOLDED)
def test_folded_networks_compute_the_same(name):
    config, edges, _ = CONFIGS[name]
    model = randomized(resnet(config, **{} if NIGHTLY else ONE_BLOCK))
    folded, report = fold.fold_model(model)
    small, _ = fold.fold_model(model, drop=True)
    assert len(report.needs_bias) == len(report.applied) * (not config.use_bias)
    assert bool(report.applied) == (edges > 0)
    for new in (folded, small):
        result = fold.verify(lambda: run(model, X), lambda new=new: run(new, X), tolerance=PROMISED)
        assert result.passed, result
    size = lambda m: len(jax.tree.leaves(nnx.state(m)))
    # A folded norm leaves nothing behind, unless another half of it stays.
    assert (size(small) < size(folded)) == (edges > 0 and "bcn" not in name)
    if name == "mixed":
        assert small.stem_norm is None
        assert small.stages[0][0].norm1 is not None


def test_a_second_fold_changes_nothing_and_optimizers_refuse_the_first():
    model = randomized(resnet(ResNetConfig(BATCH)))
    folded, _ = fold.fold_model(model)
    again, report = fold.fold_model(folded)
    assert not report.needs_bias
    # 1 / sqrt(1 - epsilon + epsilon) is 1 up to one rounding.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-14)
    jax.tree.map(close, nnx.to_pure_dict(nnx.state(again)), nnx.to_pure_dict(nnx.state(folded)))
    tx = nj.nap(optax.sgd(0.1), mask=nj.hidden_weights(readout=("head",)))
    nnx.eval_shape(lambda model: nnx.Optimizer(model, tx, wrt=nnx.Param), model)
    for inference_only in (folded, fold.bake_model(randomized(resnet(resnet_presets.nf())))):
        with pytest.raises(ValueError, match="folded \\(or baked\\) for inference"):
            nnx.Optimizer(inference_only, tx, wrt=nnx.Param)


REPARAMETRIZATIONS = {
    "nf": nj.scaled_weight_standardization(epsilon_rule="max"),
    "ws": nj.weight_standardization(),
    "weight_norm": nj.weight_norm(),
    "spectral": nj.spectral_norm(),
    "centred": nj.centred_weight_norm(),
}


@pytest.mark.parametrize("name", REPARAMETRIZATIONS if NIGHTLY else ["nf"])
def test_effective_kernels_are_computed_in_float64(name):
    """From float32 parameters, without float64 in JAX: the rounding of what float64 arithmetic gives."""
    weights = REPARAMETRIZATIONS[name]
    config = ResNetConfig(nj.batch_norm(), depths=(1,), widths=(4,), weights=weights)
    with jax.enable_x64(False):
        model = randomized(lambda: ResNet(config, classes=3, channels=2, rngs=nnx.Rngs(0)))
        kernel = fold.bake_model(model).stem.kernel
        assert kernel.dtype == jnp.float32
        assert kernel.get_metadata()["inference_only"]
        own = {n.removeprefix("kernel/"): v[...] for n, v in model.stem.scales.items()}
        state = {n.removeprefix("kernel/"): v[...] for n, v in model.stem.batch_stats.items()}
        given = jax.tree.map(np.asarray, (own, state, model.stem.layer_instance.kernel[...]))
        narrow = fold.bake_model(model, dtype="float32").stem.kernel[...]
    exact, _ = weights.apply(*jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), given), train=False)
    np.testing.assert_array_equal(kernel[...], np.asarray(exact).astype(np.float32))
    np.testing.assert_allclose(narrow, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_a_gain_goes_into_the_effective_kernel():
    """Folded into the stored kernel it would be divided out again; the plan names no leaf of the stored one."""
    config = ResNetConfig(BATCH, weights=nj.weight_standardization())
    model = randomized(resnet(config, depths=(1,), widths=(4,)))
    with pytest.raises(ValueError, match="the tree has no"):
        fold.apply(nnx.state(model), fold.plan_for(model))
    baked = fold.bake_model(model)
    assert fold.bake_model(baked) is baked
    with pytest.raises(TypeError, match="expected a ResNet"):
        fold.bake_model(model.head)


@pytest.mark.parametrize(
    ("norm", "edges", "reason"),
    [(BATCH, 2, None), (nj.layer_norm(), 0, OWN), (None, 0, None)],
    ids=["batch", "layer", "none"],
)
def test_classifiers(norm, edges, reason):
    options = {"classes": 3, "norm": norm, "param_dtype": jnp.float64}
    model = randomized(lambda: MLPClassifier(4, (5, 6), **options, rngs=nnx.Rngs(0)))
    folded, report = fold.fold_model(model)
    assert len(report.applied) == edges
    assert len(report.refusals) == 2 * (reason is not None)
    assert all(reason in refusal.reason for refusal in report.refusals)
    if reason is not None:
        with pytest.raises(ValueError, match="drop=True needs every norm folded"):
            fold.fold_model(model, drop=True)
        return
    x = jnp.asarray(X.reshape(-1, 4))
    small, _ = fold.fold_model(model, drop=True)
    assert len(small.norms) == 0
    for new in (folded, small):
        assert fold.verify(lambda: run(model, x), lambda new=new: run(new, x), tolerance=PROMISED).passed
