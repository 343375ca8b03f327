"""The TPU kernels in the interpreter that knows of memory: races between steps, reads beyond a buffer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.group_norm import reference, tpu
from pallas_kernels.group_norm.formula import GroupNorm
from pallas_kernels.group_norm.tpu_tiling import Maps, maps
from tests.pallas_kernels.test_tpu_interpreter import PARAMS, races_found


def run(rng, shape, groups, forward=None, backward=None):
    """By kernels and by XLA: y, dx, dscale, dbias; `forward` and `backward` say how maps are cut."""
    settings = GroupNorm(groups, 1e-5, interpret=PARAMS)
    draw = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)
    arrays = draw(*shape), draw(shape[-1]), draw(shape[-1]), draw(*shape)
    cut = maps(shape, groups, (jnp.float32,), (jnp.float32,))
    cuts = [dataclasses.replace(cut, **changes or {}) for changes in (forward, backward)]

    @jax.jit
    def by_kernels(x, scale, bias, dy):
        outputs, saved = tpu.forward(settings, (x, scale, bias), True, cuts[0])
        return *outputs, *tpu.backward(settings, (scale, bias), saved, (dy,), cuts[1])

    @jax.jit
    def by_xla(x, scale, bias, dy):
        outputs, saved = reference.forward(settings, (x, scale, bias), True)
        return *outputs, *reference.backward(settings, (scale, bias), saved, (dy,))

    return jax.block_until_ready(by_kernels(*arrays)), by_xla(*arrays)


def test_no_races_and_nothing_out_of_bounds(rng):
    # Both ways to take a sample in several blocks, of which the last is partial, and tiles of channels.
    kept, twice = ({"mode": mode, "block": 2, "channels": 128} for mode in ("kept", "twice"))
    found, expected = run(rng, (2, 3, 1, 256), 4, kept, twice)
    assert not races_found()
    for a, b in zip(found, expected, strict=True):
        # Both are float32 and sum in their own order: a few eps of the largest terms.
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * np.finfo(np.float32).eps * np.abs(b).max())


def test_a_wrong_parallel_is_caught(rng, monkeypatch):
    """Samples that add to one accumulator must run in order; this is what says so if they do not."""
    params = Maps.params
    monkeypatch.setattr(Maps, "params", lambda self, samples: params(self, "parallel"))
    try:
        run(rng, (4, 1, 1, 12), 4)
        caught = races_found()
    except Exception as error:
        caught = "RACE DETECTED" in str(error)
    finally:
        pltpu.reset_tpu_interpret_mode_state()
        jax.clear_caches()
    assert caught
