"""TPU kernels in the interpreter that knows of memory: races between steps, reads beyond a buffer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import _tpu_blocks
from pallas_kernels.row_norm import reference, tpu
from pallas_kernels.row_norm.formula import RowNorm

# Two threads share the steps of a parallel grid.
PARAMS = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)


def races_found():
    """What JAX 0.10 notes; 0.12 raises instead."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    return bool(interpret_pallas_call.races and interpret_pallas_call.races.races_found)


def run(rng, shape, axis, block, residual=False):
    settings = RowNorm("layer", (axis,), 1e-6, residual=residual, interpret=PARAMS)
    draw = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)
    tensors = tuple(draw(*shape) for _ in range(1 + residual))
    scale, bias = draw(shape[axis]), draw(shape[axis])
    cotangents = tuple(draw(*shape) for _ in range(1 + residual))

    def passes(room, *block):
        outputs, saved = room.forward(settings, (*tensors, scale, bias), True, *block)
        return *outputs, *room.backward(settings, (scale, bias), saved, cotangents, *block)

    return jax.block_until_ready(jax.jit(lambda: passes(tpu, block))()), jax.jit(lambda: passes(reference))()


@pytest.mark.parametrize(
    ("shape", "axis", "block", "residual"),
    [((130, 20), 1, 64, False), ((70, 130), 1, 64, True), ((2, 9, 140), 1, 128, False)],
    ids=["rows", "rows with a residual", "columns"],
)
def test_no_races_and_nothing_out_of_bounds(rng, shape, axis, block, residual):
    found, expected = run(rng, shape, axis, block, residual)
    assert not races_found()
    for a, b in zip(found, expected, strict=True):
        # Both are float32 and sum in their own order: a few eps of the largest terms, over up to 280 rows.
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * np.finfo(np.float32).eps * np.abs(b).max())


def test_a_wrong_parallel_is_caught(rng, monkeypatch):
    """Steps that add to one accumulator must run in order; this is what says so if they do not."""
    params = _tpu_blocks.Blocks.params
    monkeypatch.setattr(
        _tpu_blocks.Blocks, "params", lambda self, semantics: params(self, ("parallel",) * len(semantics))
    )
    try:
        run(rng, (130, 20), 1, 64)
        caught = races_found()
    except Exception as error:
        caught = "RACE DETECTED" in str(error)
    finally:
        pltpu.reset_tpu_interpret_mode_state()
        jax.clear_caches()
    assert caught
