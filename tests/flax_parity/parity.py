"""What the drop-in tests share: inputs, masks, the rounding bound, and Flax's own promotion rules around its calls."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

SHAPE = (2, 3, 4, 6)
BF16, F16, F32 = jnp.bfloat16, jnp.float16, jnp.float32


@contextlib.contextmanager
def flax_rules():
    """Flax relies on implicit promotion, of dtypes and of ranks; only its own calls get it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def normal(shape=SHAPE, dtype=F32, seed=0, mean=0.5):
    return jnp.asarray(mean + np.random.default_rng(seed).standard_normal(shape), dtype)


def full_mask(shape=SHAPE, seed=1):
    """A mask that leaves at least half of every axis pair valid, so that no set of values is empty."""
    mask = np.random.default_rng(seed).random(shape) < 0.5
    index = np.indices(shape).sum(0)
    return jnp.asarray(mask | (index % 2 == 0))


def rounding(expected, count, *dtypes, inputs=1.0):
    r"""How far two right implementations may be apart.

    Both add up `count` values of size up to `inputs` in float32 (or the narrowest dtype given), for the mean and for
    the mean square: $4 n \epsilon$ in all, relative to the output; each rounding to a narrower dtype on the way (input,
    parameters, output) costs another $2 \epsilon$ of that dtype, of the output or of the input.
    """
    size = max(1.0, float(np.abs(np.asarray(expected, np.float64)).max(initial=0)), inputs)
    narrow = max((float(jnp.finfo(d).eps) for d in dtypes), default=0.0)
    return size * (4 * count * float(jnp.finfo(F32).eps) + 4 * narrow)


def assert_near(actual, expected, count, *dtypes, inputs=1.0):
    actual, expected = jnp.asarray(actual), jnp.asarray(expected)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    wide = [np.asarray(a, np.float64) for a in (actual, expected)]
    assert np.isfinite(wide[1]).all()
    np.testing.assert_allclose(*wide, rtol=0, atol=rounding(wide[1], count, *dtypes, inputs=inputs))


def assert_same_tree(ours, theirs):
    """Same names, boxes, shapes, dtypes, and bit-equal values."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))


def exact_standardized(x, axes, epsilon, mask=None):
    """Float64 standardization of the exactly represented `x`."""
    x = np.asarray(x).astype(np.float64)
    where = True if mask is None else np.broadcast_to(np.asarray(mask, bool), x.shape)
    centred = x - x.mean(axes, keepdims=True, where=where)
    return centred / np.sqrt(np.square(centred).mean(axes, keepdims=True, where=where) + epsilon)
