"""Norms modulated for each sample against float64 NumPy, forward and backward; on a mesh; with races looked for."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import pallas_kernels
from pallas_kernels import _gpu_tiling
from pallas_kernels._dispatch import IMPLEMENTATIONS
from pallas_kernels.modulated_norm import shapes
from pallas_kernels.modulated_norm.api import KINDS
from pallas_kernels.row_norm import gpu, reference, tpu
from pallas_kernels.row_norm.formula import RowNorm
from tests.pallas_kernels import oracle
from tests.pallas_kernels.test_placement import mesh_of
from tests.pallas_kernels.test_tpu_interpreter import PARAMS, races_found

EPSILON = 1e-5


def inputs(rng, shape, parameter_dtype=None):
    """`(x, shift, scale, dy)`."""
    draw = lambda s, dtype: (rng.normal(size=s) + 0.5).astype(np.float32).astype(jnp.dtype(dtype))
    parameter = lambda: draw((shape.shape[0], shape.shape[-1]), parameter_dtype or shape.dtype)
    return draw(shape.shape, shape.dtype), parameter(), parameter(), draw(shape.shape, shape.dtype)


def expected(arrays, kind):
    """The oracle's answers, sample by sample: `{"y": (value, tolerance), "x": ..., "scale": ..., "bias": ...}`."""
    x, shift, scale, dy = arrays
    options = {"axis": -1, "epsilon": EPSILON, "scale_offset": 1.0}
    found = []
    for i in range(len(x)):
        of = {"y": oracle.forward(kind, x[i], scale[i], shift[i], **options)}
        found.append(of | oracle.backward(kind, x[i], scale[i], shift[i], dy[i], **options))
    return {name: tuple(np.stack([of[name][j] for of in found]) for j in range(2)) for name in found[0]}


def check(arrays, kind, call):
    *primals, dy = arrays

    def both(dy, *primals):
        y, vjp = jax.vjp(call, *primals)
        return y, *vjp(dy)

    found = jax.jit(both)(dy, *primals)
    of = expected(arrays, kind)
    for name, value, like in zip(("y", "x", "bias", "scale"), found, (primals[0], *primals), strict=True):
        assert (value.dtype, value.shape) == (like.dtype, like.shape)
        oracle.assert_close(value, *of[name], name)


def norm(kind, implementation, **options):
    options |= {"implementation": implementation, "interpret": implementation != "xla", "epsilon": EPSILON}
    return functools.partial(pallas_kernels.modulate_layer_norm, kind=kind, **options)


# Every shape by one implementation in turn, one of three times as rms norm, whose lines are fewer.
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
CASES = [
    pytest.param(name, implementation, kind, id=f"{name}-{implementation}-{kind}")
    for i, name in enumerate(shapes.SMALL)
    for j, implementation in enumerate(IMPLEMENTATIONS)
    for k, kind in enumerate(KINDS)
    if NIGHTLY or (i % 3 == j and (i // 3 % 3 == 2) == bool(k))
]


@pytest.mark.parametrize(("name", "implementation", "kind"), CASES)
def test_agrees_with_float64(rng, name, implementation, kind):
    check(inputs(rng, shapes.SMALL[name]), kind, norm(kind, implementation))


def test_samples_of_several_programs_and_wide_parameters(rng, monkeypatch):
    # Few tiles a program, few features a tile: every loop of the GPU kernel, and a sample's last tile is partial.
    monkeypatch.setattr(gpu, "PROGRAMS", 8)
    monkeypatch.setattr(_gpu_tiling, "FEATURES", 64)
    monkeypatch.setattr(_gpu_tiling, "TILE", 64)
    jax.clear_caches()
    check(inputs(rng, shapes.Samples((3, 13, 100)), "float32"), "layer", norm("layer", "triton"))
    jax.clear_caches()


@pytest.mark.parametrize("implementation", ["mosaic_tpu", "triton"])
def test_vmap_and_remat(rng, implementation):
    arrays = inputs(rng, shapes.Samples((4, 6, 20), "float32"))
    stacked = [a.reshape(2, 2, *a.shape[1:]) for a in arrays]
    mapped = jax.checkpoint(jax.vmap(norm("layer", implementation)))
    gradients = jax.jit(lambda x, shift, scale, dy: jax.vjp(mapped, x, shift, scale)[1](dy))(*stacked)
    of = expected(arrays, "layer")
    for name, gradient in zip(("x", "bias", "scale"), gradients, strict=True):
        oracle.assert_close(gradient.reshape(of[name][0].shape), *of[name], name)


@pytest.mark.parametrize(
    ("implementation", "spec", "forward", "both"),
    [
        # Samples keep their parameters; tokens on two devices add up to one gradient; features share statistics.
        ("mosaic_tpu", P(("data", "model")), {}, {}),
        ("triton", P("data", "model"), {}, {"all-reduce": 1}),
        (None, P("data", None, "model"), {"all-reduce": 1}, {"all-reduce": 2}),
    ],
    ids=["samples", "tokens", "features"],
)
def test_collectives(rng, implementation, spec, forward, both):
    mesh = mesh_of("Auto")
    arrays = inputs(rng, shapes.Samples((8, 4, 16), "float32"))
    parameters = P(spec[0], spec[2] if len(spec) > 2 else None)
    placed = [jax.device_put(a, NamedSharding(mesh, spec if a.ndim == 3 else parameters)) for a in arrays]
    call = norm("layer", implementation, mesh=mesh, spec=spec, **({} if implementation else {"interpret": False}))
    assert pallas_kernels.count_collectives(jax.jit(call).lower(*placed[:3]).compile()) == forward
    backward = jax.jit(lambda x, shift, scale, dy: jax.vjp(call, x, shift, scale)[1](dy)).lower(*placed).compile()
    assert pallas_kernels.count_collectives(backward) == both
    of = expected(arrays, "layer")
    for name, gradient in zip(("x", "bias", "scale"), backward(*placed), strict=True):
        oracle.assert_close(gradient, *of[name], name)


def test_no_races_and_nothing_out_of_bounds(rng):
    settings = RowNorm("rms", (2,), 1e-6, scale_offset=1.0, samples=True, interpret=PARAMS)
    x, shift, scale, dy = inputs(rng, shapes.Samples((2, 66, 20), "float32"))

    def passes(room, *block):
        outputs, saved = room.forward(settings, (x, scale, shift), True, *block)
        return *outputs, *room.backward(settings, (scale, shift), saved, (dy,), *block)

    found, wanted = jax.block_until_ready(jax.jit(lambda: passes(tpu, 64))()), jax.jit(lambda: passes(reference))()
    assert not races_found()
    pltpu.reset_tpu_interpret_mode_state()
    for a, b in zip(found, wanted, strict=True):
        # Both are float32 and sum in their own order: a few eps of the largest terms, over 66 rows.
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * np.finfo(np.float32).eps * np.abs(b).max())


def test_errors_say_what_came_and_the_way_out():
    x, parameter = jnp.ones((2, 3, 4)), jnp.ones((2, 4))
    with pytest.raises(ValueError, match="kind='crms' is unknown; expected one of"):
        pallas_kernels.modulate_layer_norm(x, parameter, parameter, kind="crms")
    with pytest.raises(ValueError, match=r"expected x of shape \(samples, ..., features\), got \(4,\)"):
        pallas_kernels.modulate_layer_norm(x[0, 0], parameter, parameter)
    with pytest.raises(ValueError, match=r"scale must have the shape \(2, 4\) of samples and features, got \(4,\)"):
        pallas_kernels.modulate_layer_norm(x, parameter, parameter[0])
    with pytest.raises(TypeError, match="shift must be a real floating array, got NoneType"):
        pallas_kernels.modulate_layer_norm(x, None, parameter)
