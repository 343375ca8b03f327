"""Public kernels are found with their named shapes, and a pass alone moves what it must."""

import math

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels
from pallas_kernels.analysis import cases, stack


def test_kernels_are_the_public_calls_with_implementations():
    assert cases.kernels()["rms_norm"] is pallas_kernels.rms_norm
    assert "count_collectives" not in cases.kernels()
    assert cases.directions("rms_norm") == ("forward", "backward")
    assert cases.directions("update_and_project") == ("forward",)


# Reads and writes of tensors that differ from those of a norm, or of an addition and a norm.
PASSES = {
    "gated_rms_norm": {"forward": 3, "backward": 5},
    "quantized_rms_norm": {"forward": 1.5},
    "norm_add": {"forward": 3, "backward": 3},
    "norm_add_norm": {"forward": 4, "backward": 6},
    "project": {"forward": 2},
    "update_and_project": {"forward": 3},
}


# A shape and the bytes of a tensor, or of those that are one.
SEVERAL = {"qk_norm": ("8192x32+8x128_bf16", 80 * 2**20), "modulate_layer_norm": ("8x4096x3072_bf16", 192 * 2**20)}


def _first(kernel):
    if kernel in SEVERAL:
        return SEVERAL[kernel]
    shapes = cases.shapes(kernel)
    name = "8192x4096_bf16" if "8192x4096_bf16" in shapes else next(iter(shapes))
    shape = shapes[name]
    return name, math.prod(shape.shape) * jnp.dtype(shape.dtype).itemsize


@pytest.mark.parametrize("kernel", cases.kernels())
@pytest.mark.parametrize("implementation", ["xla", "mosaic_tpu", "triton"])
def test_ideal_is_the_same_for_all(kernel, implementation):
    tensors = {"forward": 2, "backward": 3} if "add" not in kernel else {"forward": 4, "backward": 4}
    name, tensor = _first(kernel)
    for direction, passes in PASSES.get(kernel, tensors).items():
        found = cases.case(kernel, direction, name, implementation)
        # The tensors, and at most 0.1 % for parameters of one number a feature.
        assert 0 <= found.ideal_bytes - passes * tensor < tensor / 1000
        assert jax.eval_shape(found.function, *found.args) is not None


def test_backward_pass_of_a_kernel_runs_from_what_was_saved(rng):
    args = {"x": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32), "scale": jnp.ones(6)}
    call = lambda x, scale: pallas_kernels.rms_norm(x, scale, implementation="mosaic_tpu", interpret=True)
    dy = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)
    _, pullback = jax.vjp(call, *args.values())
    saves, recomputes = (cases.program(call, args, "backward", saves=s) for s in (True, False))
    shapes = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    assert shapes(pullback) == shapes(saves.args[0])
    assert saves.ideal_bytes == recomputes.ideal_bytes
    # The same kernel on the same numbers: the same bits.
    alone, together = saves.function(pullback, dy), recomputes.function(dy, tuple(args.values()))
    for a, b in zip(alone, together, strict=True):
        assert jnp.array_equal(a, b)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="quantized_rms_norm has no backward pass"):
        cases.case("quantized_rms_norm", "backward", "8192x4096_bf16", "xla")
    with pytest.raises(ValueError, match=r"kernel='batch_norm' is unknown; expected one of .*rms_norm"):
        cases.case("batch_norm", "forward", "8192x4096_bf16", "xla")
    with pytest.raises(ValueError, match=r"shape='1x1' is unknown to rms_norm; expected one of 8192x4096_bf16"):
        cases.case("rms_norm", "forward", "1x1", "xla")


@pytest.mark.parametrize("kernel", ["rms_norm", "add_layer_norm"])
def test_stack_measures_the_difference_of_a_layer(kernel, monkeypatch):
    layers = lambda program, args, chip: len(args[1])
    compiled = []

    def analyse(program, args, chip):
        jax.eval_shape(program, *args)
        compiled.append(layers(program, args, chip))
        return type("Report", (), {"hbm_bytes": 1000 + 7 * 8 * 16 * 2 * len(args[1])})

    monkeypatch.setattr(stack, "analyse", analyse)
    measured = {}
    for implementation in ("xla", None):
        assert stack.passes(kernel, implementation, "backward", "v5e", 8, 16, 32, measured) == 7.0
    assert compiled == [2, 3]  # On this backend the automatic choice is XLA's program, compiled once.
