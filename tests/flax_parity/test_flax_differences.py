"""The documented differences, row by row of docs/flax_differences.md: Flax measured against float64, and normjax."""

import contextlib
import functools
import json
import os
import pathlib

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj
from tests.flax_parity.parity import BF16, F32, exact_standardized, flax_rules, full_mask, normal

EPS = float(np.finfo(np.float32).eps)
KEY = jax.random.key(0)


def offset(mean, spread, shape=(16, 1024)):
    return jnp.asarray(mean + spread * np.random.default_rng(0).standard_normal(shape), F32)


def error(label, y, exact):
    """The largest absolute error; `pytest -s` shows what was measured, for the document to quote."""
    value = float(np.abs(np.asarray(y, np.float64) - exact).max())
    print(f"\n{os.environ['PYTEST_CURRENT_TEST'].split('::')[-1]} {label}: {value:.2g}", end="")
    return value


def flax_linen(name, x, mask=None, **keywords):
    with flax_rules():
        return in_linen(getattr(fnn, name)(**keywords), x, mask)


def flax_nnx(name, features, x, mask=None, **keywords):
    with flax_rules():
        return in_nnx(getattr(nnx, name)(features, **keywords, rngs=nnx.Rngs(0)), x, mask)


def ours(name, x, mask=None, **keywords):
    return in_linen(getattr(nj.linen, name)(**keywords), x, mask)


def ours_nnx(name, features, x, mask=None, **keywords):
    return in_nnx(getattr(nj.nnx, name)(features, **keywords, rngs=nnx.Rngs(0)), x, mask)


@functools.partial(jax.jit, static_argnums=0)
def in_linen(module, x, mask):
    return module.init_with_output(KEY, x, mask=mask)[0]


@nnx.jit
def in_nnx(module, x, mask):
    return module(x, mask=mask)


def test_1_fast_variance_of_offset_data():
    x = offset(1000.0, 0.1)
    exact = exact_standardized(x, -1, 1e-6)
    bound = 16 * EPS * np.abs(exact).max()
    assert error("flax linen", flax_linen("LayerNorm", x), exact) > 100
    assert error("flax nnx", flax_nnx("LayerNorm", 1024, x), exact) > 100
    assert error("flax linen", flax_linen("LayerNorm", x, use_fast_variance=False), exact) > 10 * bound
    for fast in (True, False):
        assert error("normjax linen", ours("LayerNorm", x, use_fast_variance=fast), exact) < bound
        assert error("normjax nnx", ours_nnx("LayerNorm", 1024, x, use_fast_variance=fast), exact) < bound


def test_1b_a_mean_in_float32_is_not_enough():
    # What Flax's own test_layer_norm4 and test_instance_norm3 compare with: slow variance, float32 mean.
    x = offset(1e6, 1.0, (2, 3, 4))
    exact = exact_standardized(x, -1, 1e-5)
    keywords = {"epsilon": 1e-5, "use_fast_variance": False, "use_scale": False, "use_bias": False}
    assert error("flax linen", flax_linen("LayerNorm", x, **keywords), exact) > 1e-2
    assert error("normjax linen", ours("LayerNorm", x, **keywords), exact) < 16 * EPS * np.abs(exact).max()


@pytest.mark.parametrize("width", [768, 1024])
def test_2_constant_rows(width):
    x = jnp.full((2, width), 1000.3, F32)
    assert error("flax nnx", flax_nnx("LayerNorm", width, x), 0.0) > 0.1
    assert error("flax linen", flax_linen("LayerNorm", x, use_fast_variance=False), 0.0) > 0.1
    assert error("normjax linen", ours("LayerNorm", x), 0.0) == 0
    assert error("normjax nnx", ours_nnx("LayerNorm", width, x), 0.0) == 0


def test_3_nnx_rounds_the_input_before_the_statistics():
    keywords = {"dtype": BF16, "use_fast_variance": False}
    x = offset(1000.0, 0.1)
    exact = exact_standardized(x, -1, 1e-6)
    half_ulp = float(jnp.finfo(BF16).eps) / 2 * 2.0 ** np.floor(np.log2(np.abs(exact).max()))
    assert error("flax nnx", flax_nnx("LayerNorm", 1024, x, **keywords), exact) > 3
    assert error("normjax nnx", ours_nnx("LayerNorm", 1024, x, **keywords), exact) <= half_ulp * (
        1 + 16 * EPS / float(jnp.finfo(BF16).eps)
    )


def test_3_nnx_rounds_running_statistics_in_evaluation():
    x = offset(100.3, 0.2, (64, 8))
    exact = (np.asarray(x, np.float64) - np.float32(100.3)) / np.sqrt(np.float64(np.float32(0.04)) + 1e-5)
    outputs = []
    for library in (nnx, nj.nnx):
        layer = library.BatchNorm(8, dtype=BF16, use_running_average=True, rngs=nnx.Rngs(0))
        layer.mean[...], layer.var[...] = jnp.full(8, 100.3, F32), jnp.full(8, 0.04, F32)
        with flax_rules():
            outputs.append(layer(x))
    half_ulp = float(jnp.finfo(BF16).eps) / 2 * 2.0 ** np.floor(np.log2(np.abs(exact).max()))
    assert error("flax nnx", outputs[0], exact) > 1
    assert error("normjax nnx", outputs[1], exact) <= half_ulp * 1.01


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "BatchNorm", "InstanceNorm"])
def test_4_an_empty_mask_is_not_nan(name):
    x, mask = normal((2, 3, 6)), np.ones((2, 3, 6), bool)
    empty = (0, ..., slice(None)) if name != "BatchNorm" else (..., 0)
    mask[empty] = False
    keywords = {"use_running_average": False} if name == "BatchNorm" else {}
    assert np.isnan(flax_linen(name, x, mask, **keywords)).any()
    assert np.isnan(flax_nnx(name, 6, x, mask, **keywords)).any()
    for y in (ours(name, x, mask, **keywords), ours_nnx(name, 6, x, mask, **keywords)):
        assert np.isfinite(y).all()
        # Statistics of nothing are (0, 1): the values pass through, up to epsilon.
        epsilon = 1e-5 if name == "BatchNorm" else 1e-6
        expected = np.asarray(x[empty], np.float64) / np.sqrt(1 + epsilon)
        assert error("normjax", y[empty], expected) < 4 * EPS * np.abs(expected).max()


def test_4_an_empty_mask_does_not_move_running_statistics():
    x, mask = normal((4, 3)), jnp.ones((4, 3), bool).at[:, 1].set(False)
    theirs, own = (m.BatchNorm(3, rngs=nnx.Rngs(0)) for m in (nnx, nj.nnx))
    with flax_rules():
        in_nnx(theirs, x, mask)
    in_nnx(own, x, mask)
    assert np.isnan(theirs.mean[...][1])
    assert (own.mean[...][1], own.var[...][1]) == (0.0, 1.0)
    assert own.mean[...][0] != 0


@pytest.mark.parametrize("name", ["LayerNorm", "GroupNorm"])
def test_4_masks_of_any_dtype_in_nnx(name):
    x, mask = normal((2, 3, 6)), full_mask((2, 3, 6))
    more = {"num_groups": 2} if name == "GroupNorm" else {}
    with pytest.raises((TypeError, ValueError)):
        flax_nnx(name, 6, x, mask.astype(jnp.int32), **more)
    for dtype in (jnp.int32, F32, jnp.uint8):
        y = ours_nnx(name, 6, x, mask.astype(dtype), **more)
        np.testing.assert_array_equal(y, ours_nnx(name, 6, x, mask, **more))


def test_4_values_behind_the_mask_do_not_matter_to_gradients():
    mask = full_mask((2, 6))
    x = jnp.where(mask, normal((2, 6)), jnp.nan)

    def loss(module):
        return lambda x: jnp.where(mask, module.init_with_output(KEY, x, mask=mask)[0] ** 2, 0).sum()

    with flax_rules():
        assert np.isnan(jax.jit(jax.grad(loss(fnn.LayerNorm())))(x)[mask]).any()
    gradient = jax.jit(jax.grad(loss(nj.linen.LayerNorm())))(x)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("ours", [True, False], ids=["normjax", "flax"])
def test_4_values_behind_the_mask_do_not_matter_in_evaluation(ours):
    mask = full_mask((2, 6))
    x = jnp.where(mask, normal((2, 6)), jnp.nan)

    def linen(params, module):
        variables = {"params": params, "batch_stats": {"mean": jnp.zeros(6), "var": jnp.ones(6)}}
        return jnp.where(mask, module.apply(variables, x, mask=mask), 0).sum()

    def in_nnx(module):
        return jnp.where(mask, module(x, mask=mask), 0).sum()

    params = {"scale": jnp.ones(6), "bias": jnp.zeros(6)}
    first, second = (nj.linen, nj.nnx) if ours else (fnn, nnx)
    with contextlib.nullcontext() if ours else flax_rules():
        gradients = jax.grad(linen)(params, first.BatchNorm(use_running_average=True))
        bn = second.BatchNorm(6, use_running_average=True, rngs=nnx.Rngs(0))
        also = nnx.grad(in_nnx)(bn)
    for gradient in (gradients["scale"], also["scale"][...]):
        assert np.isfinite(gradient).all() == ours


def test_5_group_norm_masks_only_have_to_broadcast():
    x, mask = normal((2, 4, 4, 6)), full_mask((2, 4, 4, 1))
    with pytest.raises((TypeError, ValueError)):
        flax_linen("GroupNorm", x, mask, num_groups=2)
    with pytest.raises((TypeError, ValueError)):
        flax_nnx("GroupNorm", 6, x, mask, num_groups=2)
    grouped = np.asarray(x).reshape(2, 4, 4, 2, 3)
    exact = exact_standardized(grouped, (1, 2, 4), 1e-6, np.asarray(mask)[..., None]).reshape(x.shape)
    for y in (ours("GroupNorm", x, mask, num_groups=2), ours_nnx("GroupNorm", 6, x, mask, num_groups=2)):
        assert error("normjax", y, exact) < x.size * EPS * np.abs(exact).max()


@pytest.mark.parametrize("axes", [(-1,), (2, 3)])
def test_6_nnx_group_norm_repeats_statistics_along_the_wrong_axis(axes):
    x = normal((2, 3, 4, 4))
    grouped = np.asarray(x).reshape(2, 3, 4, 2, 2)
    exact = exact_standardized(grouped, (4,) if axes == (-1,) else (2, 4), 1e-6).reshape(x.shape)
    keywords = {"num_groups": 2, "reduction_axes": axes}
    assert error("flax nnx", flax_nnx("GroupNorm", 4, x, use_fast_variance=False, **keywords), exact) > 1
    assert error("normjax nnx", ours_nnx("GroupNorm", 4, x, **keywords), exact) < x.size * EPS * 1e3
    assert (
        error("flax linen", flax_linen("GroupNorm", x, use_fast_variance=False, **keywords), exact) < x.size * EPS * 1e3
    )


def test_7_means_over_devices_are_weighted_by_their_counts():
    x = normal((2, 4, 3))
    mask = jnp.ones((2, 4, 1), bool).at[1, 1:].set(False)
    where = np.broadcast_to(np.asarray(mask), x.shape)
    exact = np.asarray(x, np.float64).mean((0, 1), where=where)
    means = []
    for library in (fnn, nj.linen):
        layer = library.BatchNorm(use_running_average=False, momentum=0.0, axis_name="d")
        with flax_rules():
            variables = jax.jit(layer.init)(KEY, x[0])
            run = jax.vmap(
                lambda e, m, v=variables, layer=layer: layer.apply(v, e, mask=m, mutable=["batch_stats"])[1],
                axis_name="d",
            )
            means.append(jax.jit(run)(x, mask)["batch_stats"]["mean"][0])
    assert error("flax linen", means[0], exact) > 0.1
    assert error("normjax linen", means[1], exact) < 8 * EPS


def test_8_no_spatial_axis_raises_instead_of_returning_the_bias():
    x = normal((4, 6))
    assert error("flax linen", flax_linen("InstanceNorm", x), 0.0) == 0
    with pytest.raises(ValueError, match="leave at least one axis of an input of rank 2"):
        ours("InstanceNorm", x)
    with pytest.raises(ValueError, match="leave at least one axis of an input of rank 2"):
        ours_nnx("InstanceNorm", 6, x)
    with pytest.raises(ValueError, match="leave no axis of an input of rank 1"):
        nj.nnx.BatchNorm(6, rngs=nnx.Rngs(0))(x[0])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64])
def test_9_integer_and_complex_inputs_raise(dtype):
    x = jnp.ones((4, 6), dtype)
    for call in (lambda: ours("LayerNorm", x), lambda: ours_nnx("BatchNorm", 6, x)):
        with pytest.raises(TypeError, match=f"got dtype {jnp.dtype(dtype).name}"):
            call()
    # Flax's running mean becomes complex with the first batch, so that the state changes dtype under scan.
    if dtype == jnp.complex64:
        layer = fnn.BatchNorm(use_running_average=False)
        with flax_rules():
            variables = layer.init(KEY, x)
            _, updates = layer.apply(variables, x, mutable=["batch_stats"])
        assert variables["batch_stats"]["mean"].dtype == jnp.float32
        assert updates["batch_stats"]["mean"].dtype == jnp.complex64


def test_10_running_statistics_keep_their_dtype():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)))
        dtypes = []
        for library in (fnn, nj.linen):
            layer = library.BatchNorm(use_running_average=False)
            with flax_rules():
                variables = jax.jit(layer.init)(KEY, x)
                y, updates = jax.jit(functools.partial(layer.apply, mutable=["batch_stats"]))(variables, x)
            assert y.dtype == jnp.float64
            dtypes.append((variables["batch_stats"]["mean"].dtype, updates["batch_stats"]["mean"].dtype))
            exact = exact_standardized(x, 0, 1e-5)
            assert error("normjax", y, exact) < 64 * np.finfo(np.float64).eps * np.abs(exact).max()
    assert dtypes == [(jnp.float32, jnp.float64), (jnp.float32, jnp.float32)]


def test_the_document_names_every_test_and_quotes_what_was_measured():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "flax_differences.md").read_text()
    own = [
        name for name, value in globals().items() if name.startswith("test_") and name[5].isdigit() and callable(value)
    ]
    missing = [name for name in own if name not in text]
    assert not missing, f"docs/flax_differences.md does not name {missing}"
    expected = pathlib.Path(__file__).with_name("expected_differences.json")
    for name in json.loads(expected.read_text()):
        assert name in text, f"docs/flax_differences.md does not name {name}"
