"""Inputs, masks, contexts and parameters of a case, and how far its results may be from the formula."""

import jax
import jax.numpy as jnp
import numpy as np


def make_input(case, rng, dtype=np.float32, offset=0.0, spread=1.0):
    return (offset + spread * rng.standard_normal(case.shape)).astype(dtype)


def make_context(case, shape=None):
    """What a conditional norm reads, the same in every test for an input of that shape."""
    return case.context(np.random.default_rng(1), case.shape if shape is None else shape)


def make_params(case, rng):
    """Parameters away from their initial values, so that a forgotten scale or bias shows."""
    struct = jax.ShapeDtypeStruct(case.shape, jnp.float32)
    params, state = case.norm.init(jax.random.key(0), struct, **make_context(case))
    noisy = lambda p: np.asarray(p) + (0.3 * rng.standard_normal(p.shape)).astype(p.dtype)
    return jax.tree.map(noisy, params), state


def feature_mask(case, rng, empty=False):
    """A mask of size 1 on the last axis (padding of positions), or full where only features are reduced."""
    shape = case.shape if len(case.shape) == 2 and not case.across_batch else (*case.shape[:-1], 1)
    mask = rng.random(shape) < 0.7
    mask[(0,) * mask.ndim] = True
    return np.zeros_like(mask) if empty else mask


def tolerance(case, expected, dtype):
    """32 roundings of values of the output's size; twice that for a chain of two norms is still inside."""
    return case.condition * 32 * float(jnp.finfo(dtype).eps) * max(1.0, float(np.max(np.abs(expected))))


def widened(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)
