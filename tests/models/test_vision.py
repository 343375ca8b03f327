"""ResNet with every norm, ViT and MLP: gradients, modes, and all the forms Flax may run them in."""

import dataclasses
import functools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.nnx import bridge

import normjax as nj
from normjax.models import MLPClassifier, ResNet, ResNetConfig, ViT, presets, resnet_presets

EPS32 = float(np.finfo(np.float32).eps)
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
ONE_BLOCK = {"depths": (1,), "widths": (4,)}
SIZES = {"depths": (1, 1), "widths": (4, 8)}
GROUPS = {"num_groups": 2, **SIZES}
# By day the second of each pair of relatives has no second block, whose shortcut projects.
SHORT = SIZES if NIGHTLY else ONE_BLOCK
CONFIGS = {
    # Without epsilon kernels before a norm are exactly scale-invariant.
    "bn": resnet_presets.bn(**SIZES, norms=nj.batch_norm(epsilon=0.0)),
    "gn_ws": resnet_presets.gn_ws(**GROUPS, zero_last=True),
    "bcn_ws": resnet_presets.bcn_ws(**GROUPS),
    "bcn_ws_micro": resnet_presets.bcn_ws(**GROUPS | SHORT, batch=nj.estimated_batch_norm(moving_speed=0.1)),
    "ibn_a": resnet_presets.ibn_a(**SIZES),
    "ibn_b": resnet_presets.ibn_b(**SHORT),
    "evo_s": resnet_presets.evo_norm(**SIZES),
    "evo_b": resnet_presets.evo_norm(nj.evo_norm_b(), **SHORT),
    "nf": resnet_presets.nf(**SIZES, bottleneck=True),
    "bn_pre": ResNetConfig(nj.batch_norm(), **SIZES, preactivation=True),
}
VIT = presets.vit(layers=1, features=8, heads=2, hidden=12)
# What a training step moves.
STATEFUL = {"bn", "bcn_ws", "bcn_ws_micro", "ibn_a", "ibn_b", "evo_b", "bn_pre"}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


X = normal(4, 8, 8, 3)
LABELS = np.arange(4, dtype=np.int32) % 3


def resnet(config, seed=0):
    return initialized(lambda: ResNet(config, classes=3, rngs=nnx.Rngs(0)), seed)


def initialized(make, seed=0):
    """A new model whose kernels NumPy draws: to compile their initializers takes as long as to compile the network."""
    graph, state = nnx.split(nnx.eval_shape(make))
    is_drawn = lambda v: v.ndim > 1
    rest = jax.jit(lambda: {p: v[...] for p, v in nnx.to_flat_state(nnx.state(make())) if not is_drawn(v)})()
    rng, flat = np.random.default_rng(seed), dict(nnx.to_flat_state(state))
    for path, v in flat.items():
        draw = lambda v: (rng.standard_normal(v.shape) / np.sqrt(np.prod(v.shape[:-1]))).astype(v.dtype)
        flat[path] = v.replace(jnp.asarray(draw(v) if is_drawn(v) else rest[path]))
    return nnx.merge(graph, nnx.from_flat_state(flat))


@nnx.jit
def gradients(model, x=X):
    """Loss, gradients and logits; moves the model's state."""

    def loss(model):
        logits = model(x)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), LABELS[: len(x), None], 1)), logits

    (value, logits), grads = nnx.value_and_grad(loss, has_aux=True)(model)
    return value, grads, logits


@nnx.jit
def forward(model, x):
    return model(x)


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def close(a, b):
    # Sums of a few hundred products in another order.
    np.testing.assert_allclose(a, b, rtol=0, atol=64 * EPS32 * max(1.0, float(np.max(np.abs(b)))))


def kernels(params):
    """Kernels of convolutions by path."""
    flat = {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(params)}
    return {path: np.asarray(leaf) for path, leaf in flat.items() if leaf.ndim == 4}


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_norm_trains(name):
    model = resnet(CONFIGS[name])
    before = jax.tree.map(np.array, nnx.state(model, nnx.BatchStat))
    value, grads, logits = gradients(model)
    assert logits.shape == (4, 3)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in leaves(grads))
    # With the last scale of each branch at 0 nothing before it matters yet; every other kernel does.
    still = [path for path, g in kernels(grads).items() if not np.any(g)]
    assert not [path for path in still if name != "gn_ws" or "shortcut" in path or "stem" in path]
    assert equal(before, nnx.state(model, nnx.BatchStat)) == (name not in STATEFUL)


def test_evaluation_takes_each_example_by_itself_and_keeps_the_state():
    model = resnet(CONFIGS["bn"])
    gradients(model)
    trained = jax.tree.map(np.array, nnx.state(model, nnx.BatchStat))
    model.eval()
    logits = forward(model, X)
    close(logits[:1], forward(model, np.concatenate([X[:1], 9 * X[1:]]))[:1])
    assert equal(trained, nnx.state(model, nnx.BatchStat))
    model.train()
    assert np.any(forward(model, X) != logits)
    assert not equal(trained, nnx.state(model, nnx.BatchStat))


def test_names_are_those_that_masks_of_nap_know():
    params = nnx.state(resnet(CONFIGS["nf"]), nnx.Param)
    chosen = jax.tree.leaves(nj.hidden_weights()(params))
    flat = nnx.to_flat_state(params)
    paths = {"/".join(map(str, path)) for (path, _), wanted in zip(flat, chosen, strict=True) if wanted}
    assert paths == set(kernels(params))
    assert "stages/1/0/shortcut/layer_instance/kernel" in paths


def test_kernels_before_batch_norm_are_scale_invariant():
    # Without epsilon the loss does not change along a unit's kernel: its gradient is orthogonal to it.
    model = resnet(CONFIGS["bn"])
    _, grads, _ = gradients(model)
    weights = kernels(nnx.state(model, nnx.Param))
    for path, gradient in kernels(grads).items():
        kernel = weights[path]
        lengths = [np.sqrt(np.sum(a.astype(np.float64) ** 2, (0, 1, 2))) for a in (kernel, gradient)]
        cosine = np.sum(kernel.astype(np.float64) * gradient, (0, 1, 2)) / (lengths[0] * lengths[1])
        # Rounding of the gradient: sums of 4 x 64 positions per layer, over five layers.
        assert np.max(np.abs(cosine)) < 4096 * EPS32, path


def test_group_norm_sees_one_example_at_a_time():
    model = resnet(CONFIGS["gn_ws"])
    close(forward(model, X)[:1], forward(model, np.concatenate([X[:1], 9 * X[1:]]))[:1])


def test_without_norms_the_variance_follows_the_analytic_one():
    config = resnet_presets.nf(depths=(2, 2), widths=(32, 64), residual_scale=0.5)
    model = resnet(config)
    deviations = [plan.deviation for stage in config.plans() for plan in stage]
    np.testing.assert_allclose(deviations, np.sqrt([1, 1.25, 1.5, 1.25]), rtol=1e-12)
    streams = nnx.jit(lambda model, x: [jnp.var(y) for y in model.streams(x)])(model, normal(2, 16, 16, 3))
    relative = np.asarray(streams[:-1]) / np.square(deviations)
    # Zeros around the image take 8 % of a 3x3 sum at 16x16, 16 % at 8x8; a random stem spreads by as much again.
    assert np.all((relative > 0.6) & (relative < 1.4)), relative


def test_remat_is_equal_and_moves_the_state_once():
    config = resnet_presets.bn(**ONE_BLOCK, stem=nj.models.IMAGENET_STEM)
    plain, again = resnet(config), resnet(dataclasses.replace(config, remat=True))
    value, grads, _ = gradients(plain)
    other, recomputed, _ = gradients(again)
    close(other, value)
    jax.tree.map(close, recomputed, grads)
    jax.tree.map(close, nnx.state(again, nnx.BatchStat), nnx.state(plain, nnx.BatchStat))


def test_seeds_under_vmap():
    config = resnet_presets.bn(**ONE_BLOCK)
    make = nnx.vmap(lambda rngs: ResNet(config, classes=3, rngs=rngs))
    several = nnx.jit(lambda rngs: make(rngs))(nnx.Rngs(0).split(2))
    logits = nnx.jit(nnx.vmap(lambda model, x: model(x), in_axes=(0, None)))(several, X)
    assert logits.shape == (2, 4, 3)
    assert np.any(logits[0] != logits[1])
    assert several.stem_norm.mean.shape == (2, 4)


def test_from_linen():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train=True):
            model = bridge.to_linen(ResNet, config=resnet_presets.bn(**ONE_BLOCK), classes=3)
            return nn.tanh(model(x, use_running_average=not train))

    variables = jax.jit(Model().init)(jax.random.key(0), X)
    y, moved = jax.jit(functools.partial(Model().apply, mutable=["batch_stats"]))(variables, X)
    assert y.shape == (4, 3)
    assert not equal(variables["batch_stats"], moved["batch_stats"])
    evaluated = jax.jit(functools.partial(Model().apply, train=False))
    moved = {**variables, **moved}
    close(evaluated(moved, X[:1]), evaluated(moved, X)[:1])


def test_orbax_restores_what_was_saved(tmp_path):
    model = resnet(CONFIGS["bcn_ws"])
    gradients(model)
    model.eval()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", nnx.state(model))
        checkpointer.wait_until_finished()
        other = resnet(CONFIGS["bcn_ws"], seed=1)
        other.eval()
        assert np.any(forward(other, X) != forward(model, X))
        nnx.update(other, checkpointer.restore(tmp_path / "model", nnx.state(other)))
    np.testing.assert_array_equal(forward(other, X), forward(model, X))


def test_compute_in_bfloat16():
    model = resnet(dataclasses.replace(CONFIGS["gn_ws"], dtype=jnp.bfloat16))
    _, grads, logits = gradients(model)
    assert logits.dtype == jnp.float32
    assert {g.dtype for g in leaves(grads)} == {np.dtype(np.float32)}
    # Five layers of 8 bits each.
    exact = forward(resnet(CONFIGS["gn_ws"]), X)
    np.testing.assert_allclose(logits, exact, rtol=0, atol=5 * 2**-8 * float(np.max(np.abs(exact))))


def test_vision_transformer():
    def make(config, pool):
        options = {"image_size": 8, "patch_size": 4, "classes": 3, "pool": pool}
        return initialized(lambda: ViT(config, **options, rngs=nnx.Rngs(0)))

    model = make(VIT, "class")
    logits = forward(model, X)
    # Attention sees patches as a set: only the positions tell two orders of them apart.
    swapped = np.concatenate([X[:, 4:], X[:, :4]], axis=1)
    assert np.any(np.abs(forward(model, swapped) - logits) > 1e-4)
    model.position_embedding[...] = np.zeros_like(model.position_embedding[...])
    close(forward(model, swapped), forward(model, X))
    # JAX's own softmax of attention mixes dtypes.
    with jax.numpy_dtype_promotion("standard"):
        scanned = make(dataclasses.replace(VIT, scan=True, remat=True, dtype=jnp.bfloat16), "mean")
        _, grads, logits = gradients(scanned)
    assert logits.dtype == jnp.float32
    assert all(np.all(np.isfinite(g)) and np.any(g) for g in leaves(grads))


def test_mlp_with_batch_norm_and_without_norm():
    x = X.reshape(4, -1)
    options = {"classes": 3, "norm": nj.batch_norm()}
    model, again = (
        initialized(lambda remat=remat: MLPClassifier(x.shape[1], (6, 5), remat=remat, **options, rngs=nnx.Rngs(0)))
        for remat in (False, True)
    )
    _, grads, logits = gradients(model, x)
    jax.tree.map(close, gradients(again, x)[1], grads)
    jax.tree.map(close, nnx.state(again, nnx.BatchStat), nnx.state(model, nnx.BatchStat))
    assert set(grads["hidden"][0]) == {"kernel"}
    assert np.any(model.norms[1].mean[...])
    model.eval()
    close(forward(model, x)[:1], forward(model, x[:1]))
    assert np.any(forward(model, x) != logits)
    plain = nnx.eval_shape(lambda: MLPClassifier(4, (6,), classes=3, norm=None, rngs=nnx.Rngs(0)))
    assert set(nnx.state(plain, nnx.Param)["hidden"][0]) == {"kernel", "bias"}


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"depths=\(1, 1\) and widths=\(4,\); expected one of each per stage"):
        resnet_presets.bn(depths=(1, 1), widths=(4,))
    with pytest.raises(ValueError, match="widths"):
        resnet_presets.bn(depths=(1,), widths=(0,))
    with pytest.raises(ValueError, match=r"residual_scale=0.2 .* needs preactivation=True"):
        ResNetConfig(nj.batch_norm(), residual_scale=0.2)
    with pytest.raises(ValueError, match=r"expected images \(batch, height, width, 3\), got x of shape \(4, 8, 8, 1\)"):
        nnx.eval_shape(lambda: ResNet(CONFIGS["bn"], classes=3, rngs=nnx.Rngs(0)))(X[..., :1])
    with pytest.raises(ValueError, match="num_groups=32 does not divide the 4 features"):
        resnet(resnet_presets.gn_ws(**SIZES))
    with pytest.raises(ValueError, match="patch_size=3 does not divide image_size=8"):
        ViT(VIT, image_size=8, patch_size=3, classes=3, rngs=nnx.Rngs(0))
    causal = presets.gpt2(layers=1, features=8, heads=2, hidden=8)
    with pytest.raises(ValueError, match="patches have no order"):
        ViT(causal, image_size=8, patch_size=4, classes=3, rngs=nnx.Rngs(0))
    model = nnx.eval_shape(lambda: ViT(VIT, image_size=8, patch_size=4, classes=3, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"expected images \(batch, 8, 8, 3\), got x of shape \(4, 4, 4, 3\)"):
        model(X[:, :4, :4])
    with pytest.raises(ValueError, match="widths"):
        MLPClassifier(4, (0,), classes=3, norm=None, rngs=nnx.Rngs(0))
