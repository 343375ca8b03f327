"""Every norm once more in float64 NumPy, written from the equations and sharing no code with the library."""

import numpy as np


def standardize(x, axes, *, mask=None, epsilon, centre=True, mode="inside"):
    """(x - mean) / root(variance), statistics over the valid positions of `axes`, and those statistics."""
    x = np.asarray(x, np.float64)
    valid = np.ones(x.shape, bool) if mask is None else np.broadcast_to(np.asarray(mask) != 0, x.shape)
    count = valid.sum(axes, keepdims=True)
    clean = np.where(valid, x, 0.0)
    divisor = np.maximum(count, 1)
    mean = clean.sum(axes, keepdims=True) / divisor if centre else np.zeros_like(clean.sum(axes, keepdims=True))
    var = (np.where(valid, x - mean, 0.0) ** 2).sum(axes, keepdims=True) / divisor
    var = np.where(count > 0, var, 1.0)
    root = {
        "inside": lambda: np.sqrt(var + epsilon),
        "outside": lambda: np.sqrt(var) + epsilon,
        "clamp": lambda: np.maximum(np.sqrt(var), epsilon),
    }[mode]()
    return np.divide(x - mean, root, out=np.zeros_like(x), where=root > 0), mean, var, count


def affine(normalized, params, axes, offset=0.0):
    """(offset + scale) * normalized + bias, both living on `axes`."""
    shape = [1] * normalized.ndim
    for a in axes:
        shape[a] = normalized.shape[a]
    y = normalized
    if "scale" in params:
        y = y * (np.asarray(params["scale"], np.float64).reshape(shape) + offset)
    if "bias" in params:
        y = y + np.asarray(params["bias"], np.float64).reshape(shape)
    return y


def grouped(x, mask, groups):
    """Input and mask with the last axis cut into `groups`, and the axes to reduce (all but the batch and group)."""
    x = np.asarray(x, np.float64)
    cut = x.reshape(*x.shape[:-1], groups, -1)
    if mask is not None:
        mask = np.broadcast_to(mask, x.shape).reshape(cut.shape)
    return cut, mask, tuple(a for a in range(1, cut.ndim) if a != cut.ndim - 2)
