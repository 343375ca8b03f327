"""Group and instance norm, every shape and implementation, against float64 NumPy, forward and backward.

The interpreter fills outputs and what lies beyond an array with NaN, so that a value that was not written or not
masked is seen.
"""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels._dispatch import IMPLEMENTATIONS
from pallas_kernels.group_norm import gpu, shapes, tpu, tpu_tiling
from tests.pallas_kernels import group_oracle, oracle

EPSILON = 1e-5
# By default a shape is for one kernel, the next for the other, and every fifth for XLA.
ALL = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
CASES = [
    pytest.param(name, implementation, id=f"{name}-{implementation}")
    for i, name in enumerate(shapes.SMALL)
    for k, implementation in enumerate(IMPLEMENTATIONS)
    if ALL or i % (5 if implementation == "xla" else 2) == k % 2
]


def inputs(rng, shape):
    """x with an offset, parameters and dy."""
    draw = lambda s, dtype: rng.normal(size=s).astype(jnp.dtype(dtype))
    channels = shape.shape[-1:]
    x = (draw(shape.shape, "float32") + 1).astype(jnp.dtype(shape.dtype))
    return x, draw(channels, "float32"), draw(channels, "float32"), draw(shape.shape, shape.dtype)


def norm(implementation, num_groups, **options):
    """The public call of `(x, scale, bias)`."""
    options |= {"implementation": implementation, "interpret": implementation != "xla", "epsilon": EPSILON}
    return functools.partial(pallas_kernels.group_norm, num_groups=num_groups, **options)


def check(call, arrays, num_groups):
    x, scale, bias, dy = arrays

    def both(x, scale, bias, dy):
        y, vjp = jax.vjp(call, x, scale, bias)
        return y, vjp(dy)

    y, gradients = jax.jit(both)(*arrays)
    options = {"num_groups": num_groups, "epsilon": EPSILON}
    assert y.dtype == x.dtype
    oracle.assert_close(y, *group_oracle.forward(x, scale, bias, **options), "y")
    expected = group_oracle.backward(x, scale, bias, dy, **options)
    for name, array, gradient in zip(("x", "scale", "bias"), (x, scale, bias), gradients, strict=True):
        if array is None:
            assert gradient is None
        else:
            assert (gradient.dtype, gradient.shape) == (array.dtype, array.shape)
            oracle.assert_close(gradient, *expected[name], f"gradient of {name}")


@pytest.mark.parametrize(("name", "implementation"), CASES)
def test_agrees_with_float64(rng, name, implementation):
    shape = shapes.SMALL[name]
    check(norm(implementation, shape.num_groups), inputs(rng, shape), shape.num_groups)


@pytest.mark.parametrize(
    ("implementation", "present"),
    [
        ("mosaic_tpu", "neither"),
        ("mosaic_tpu", "scale"),
        ("mosaic_tpu", "bias"),
        ("triton", "scale"),
        ("xla", "neither"),
    ],
)
def test_parameters_of_another_dtype_or_absent(rng, implementation, present):
    shape = shapes.SMALL["rows_above_bf16_register"]
    x, scale, bias, dy = inputs(rng, shape)
    scale = scale.astype(jnp.bfloat16) if present == "scale" else None
    bias = bias.astype(jnp.bfloat16) if present == "bias" else None
    check(norm(implementation, shape.num_groups), (x, scale, bias, dy), shape.num_groups)


def test_float16_with_triton(rng):
    shape = shapes.SMALL["odd"]._replace(dtype="float16")
    check(norm("triton", shape.num_groups), inputs(rng, shape), shape.num_groups)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_instance_norm_has_a_group_for_each_channel(rng, implementation):
    shape = shapes.SMALL["sequence"]
    options = {"implementation": implementation, "interpret": implementation != "xla", "epsilon": EPSILON}
    call = functools.partial(pallas_kernels.instance_norm, **options)
    check(call, inputs(rng, shape), shape.shape[-1])


# A sample in several blocks, as large maps are cut: mode, planes of a block and channels of a tile. No two shapes are
# alike, so that each is compiled for its own cut.
LARGE = [
    pytest.param(shapes.Shape((2, 7, 7, 20), "float32", 4), "kept", 3, 20, id="kept-partial"),
    pytest.param(shapes.Shape((2, 7, 5, 20), "float32", 4), "twice", 3, 20, id="twice-partial"),
    pytest.param(shapes.Shape((2, 6, 8, 256), "float32", 64), "twice", 1, 128, id="twice-tiles"),
    pytest.param(shapes.Shape((2, 5, 16, 130), "bfloat16", 10), "kept", 2, 130, id="kept-partial-bf16"),
    pytest.param(shapes.Shape((2, 3, 129, 6), "float32", 3), "twice", 2, 6, id="twice-partial-sublanes"),
]


def cut_as(monkeypatch, **cut):
    maps = tpu_tiling.maps
    monkeypatch.setattr(tpu, "maps", lambda *a: dataclasses.replace(maps(*a), **cut))


@pytest.mark.parametrize(("shape", "mode", "block", "channels"), LARGE)
def test_a_sample_in_several_blocks(rng, monkeypatch, shape, mode, block, channels):
    cut_as(monkeypatch, mode=mode, block=block, channels=channels)
    check(norm("mosaic_tpu", shape.num_groups), inputs(rng, shape), shape.num_groups)


def test_a_sample_in_several_chunks(rng, monkeypatch):
    monkeypatch.setattr(gpu, "ELEMENTS", 64)
    monkeypatch.setattr(gpu, "TILES", 3)
    shape = shapes.Shape((2, 7, 6, 20), "float32", 4)
    check(norm("triton", shape.num_groups), inputs(rng, shape), shape.num_groups)


def test_cuts_of_maps():
    def cut(*shape, groups=32, dtype=jnp.bfloat16):
        return tpu_tiling.maps(shape, groups, (dtype,), (dtype,))

    assert cut(32, 32, 32, 512).mode == "whole"
    assert (cut(32, 64, 64, 512).channels, cut(32, 64, 64, 512).mode) == (256, "whole")
    assert cut(16, 64, 64, 320).mode == "kept"
    assert (cut(1, 1024, 1024, 64).mode, cut(1, 1024, 1024, 64).blocks) == ("twice", 16)
    assert cut(2, 7, 9, 24, groups=3).shape == (2, 7, 9, 24)
    assert cut(2, 28, 28, 512).shape == (2, 28, 28, 512)
    assert cut(2, 56, 56, 512).shape == (2, 49, 64, 512)
    assert (cut(8, 256, 256, 64).shape, cut(8, 256, 256, 64).axis) == ((8, 256, 64, 256), 0)
    with pytest.raises(
        NotImplementedError, match=r"takes rows of a map whole: 100001 x 512 of bfloat16 need more than"
    ):
        cut(1, 100001, 512)


@pytest.mark.parametrize(
    ("implementation", "width", "cut"),
    [("xla", 5, {}), ("triton", 5, {}), ("mosaic_tpu", 5, {}), ("mosaic_tpu", 7, {"mode": "kept", "block": 1})],
)
def test_variance_of_a_distant_map(rng, monkeypatch, implementation, width, cut):
    # E[x²] − E[x]² would be off by 1e4² eps = 12 times the variance.
    cut_as(monkeypatch, **cut)
    x = jnp.asarray(1e4 + rng.normal(size=(2, 4, width, 8)), jnp.float32)
    y = jax.jit(norm(implementation, 2))(x)
    oracle.assert_close(y, *group_oracle.forward(x, None, None, num_groups=2, epsilon=EPSILON), "y")


@pytest.mark.parametrize("implementation", ["mosaic_tpu", "triton"])
def test_a_sample_has_the_same_bits_in_any_batch(rng, implementation):
    x, dy = (rng.normal(size=(6, 5, 7, 12)).astype(np.float32) for _ in range(2))

    @jax.jit
    def value_and_gradient(x, dy):
        y, vjp = jax.vjp(norm(implementation, 3), x)
        return y, *vjp(dy)

    part = value_and_gradient(x[2:5], dy[2:5])
    for few, all_samples in zip(part, value_and_gradient(x, dy), strict=True):
        np.testing.assert_array_equal(few, all_samples[2:5])


@pytest.mark.parametrize("implementation", ["mosaic_tpu", "triton"])
def test_vmap_of_the_gradient_keeps_examples_apart(rng, implementation):
    x, dy = (rng.normal(size=(3, 2, 3, 3, 8)).astype(np.float32) for _ in range(2))
    scale, bias = (rng.normal(size=8).astype(np.float32) for _ in range(2))
    call = norm(implementation, 2)
    found = jax.jit(jax.vmap(lambda x, dy: jax.vjp(call, x, scale, bias)[1](dy)))(x, dy)
    for i in range(len(x)):
        expected = group_oracle.backward(x[i], scale, bias, dy[i], num_groups=2, epsilon=EPSILON)
        for name, array in zip(expected, found, strict=True):
            oracle.assert_close(array[i], *expected[name], name)


@pytest.mark.parametrize("implementation", ["mosaic_tpu", "triton"])
def test_remat_and_donation(rng, implementation):
    x, scale, bias, dy = inputs(rng, shapes.SMALL["one_pixel"])
    call = norm(implementation, 3)

    def step(x, call):
        return jax.grad(lambda x: jnp.sum(jnp.cos(call(x, scale, bias)) * dy))(x)

    plain = jax.jit(functools.partial(step, call=call))(x)
    remat = jax.jit(functools.partial(step, call=jax.checkpoint(call)), donate_argnums=0)
    donated = jnp.array(x, copy=True)
    np.testing.assert_array_equal(remat(donated), plain)
    assert donated.is_deleted()


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_the_automatic_choice_and_xla_keep_every_derivative(rng, implementation):
    x = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
    call = functools.partial(pallas_kernels.group_norm, num_groups=2, epsilon=0.0, implementation=implementation)
    # Nothing changes in the direction of x: two terms of |x r| cancel, each after a few roundings.
    assert np.abs(jax.jvp(call, (x,), (x,))[1]).max() < 64 * np.finfo(np.float32).eps


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((jnp.ones((2, 4), jnp.int32),), {}, TypeError, "expected a real floating array, got int32; cast it first"),
        ((jnp.ones(4),), {}, ValueError, r"expected an array \(batch, \*space, channels\), got the shape \(4,\)"),
        ((jnp.ones((0, 4)),), {}, ValueError, r"shape \(0, 4\) has no elements to normalize"),
        ((jnp.ones((2, 4)),), {"num_groups": 3}, ValueError, "num_groups=3 does not divide the 4 channels"),
        ((jnp.ones((2, 4)),), {"num_groups": 0}, ValueError, "num_groups=0 does not divide the 4 channels"),
        ((jnp.ones((2, 4)), jnp.ones(3)), {}, ValueError, r"scale must have the shape \(4,\) .* got \(3,\)"),
        ((jnp.ones((2, 4)),), {"epsilon": -1.0}, ValueError, "epsilon must not be negative, got -1.0"),
        ((jnp.ones((2, 4)),), {"implementation": "cuda"}, ValueError, "'cuda' is unknown; expected one of"),
        (
            (jnp.ones((2, 4), jnp.float16),),
            {"implementation": "mosaic_tpu"},
            NotImplementedError,
            "takes float32, bfloat16 and computes in float32, got float16; use implementation='xla'",
        ),
    ],
)
def test_errors_say_what_came_and_the_way_out(arguments, options, error, message):
    with pytest.raises(error, match=message):
        pallas_kernels.group_norm(*arguments, **({"num_groups": 2} | options))
