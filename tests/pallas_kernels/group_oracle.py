"""Group norm and its gradients in float64 NumPy, and how far float32 arithmetic may be from them."""

import math

import numpy as np

from tests.pallas_kernels.oracle import EPS32

# Axes of (batch, space, groups, channels of a group): a group of a sample, and all that shares a parameter.
GROUP, SHARED = (1, 3), (0, 1)


def _split(x, num_groups):
    return np.asarray(x, np.float64).reshape(x.shape[0], -1, num_groups, x.shape[-1] // num_groups)


def _parameter(parameter, like, absent):
    return absent if parameter is None else np.asarray(parameter, np.float64).reshape(like.shape[2:])


def _statistics(x, epsilon):
    u = x - x.mean(GROUP, keepdims=True)
    return u, 1 / np.sqrt((u * u).mean(GROUP, keepdims=True) + epsilon)


def _depth(x):
    """Of the sums over a group, and a few operations more."""
    return 8 + math.log2(x.shape[1] * x.shape[3])


def forward(x, scale, bias, *, num_groups, epsilon):
    """The output and, elementwise, the largest error that float32 arithmetic explains.

    Each operation is wrong by eps of the largest number in sight: the largest of the group, which the mean cancels.
    """
    split = _split(x, num_groups)
    w, b = _parameter(scale, split, np.float64(1)), _parameter(bias, split, np.float64(0))
    u, r = _statistics(split, epsilon)
    tolerance = _depth(split) * EPS32 * (np.abs(split).max(GROUP, keepdims=True) * r * np.abs(w) + np.abs(b))
    y = u * r * w + b
    return y.reshape(x.shape), np.broadcast_to(tolerance, y.shape).reshape(x.shape)


def backward(x, scale, bias, dy, *, num_groups, epsilon):
    """`{"x": (gradient, tolerance), "scale": ..., "bias": ...}`, by the Jacobian of every group.

    The parameters' gradients are sums over batch and space, of which an eighth may be in sequence.
    """
    split, dy = _split(x, num_groups), _split(dy, num_groups)
    n = split.shape[1] * split.shape[3]
    u, r = _statistics(split, epsilon)
    g = dy * _parameter(scale, split, np.float64(1))
    # d(r)/dx = −r³ u / n times the sum over the outputs it acts on; centring comes last.
    dx = g * r - r**3 * u / n * (g * u).sum(GROUP, keepdims=True)
    dx = dx - dx.mean(GROUP, keepdims=True)
    largest = np.abs(split).max(GROUP, keepdims=True) * r
    tolerance = _depth(split) * EPS32 * r * np.abs(g).max(GROUP, keepdims=True) * (1 + largest**2)
    found = {"x": (dx.reshape(x.shape), np.broadcast_to(tolerance, dx.shape).reshape(x.shape))}
    depth = _depth(split) + split.shape[0] * split.shape[1] / 8
    if scale is not None:
        error = depth * EPS32 * (largest * np.abs(dy)).sum(SHARED)
        found["scale"] = (dy * u * r).sum(SHARED).reshape(scale.shape), error.reshape(scale.shape)
    if bias is not None:
        error = depth * EPS32 * np.abs(dy).sum(SHARED)
        found["bias"] = dy.sum(SHARED).reshape(bias.shape), error.reshape(bias.shape)
    return found
