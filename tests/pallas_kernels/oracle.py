"""Row norms and their gradients in float64 NumPy, and how far float32 arithmetic may be from them."""

import math

import jax.numpy as jnp
import numpy as np

EPS32 = np.finfo(np.float32).eps


def _rows(x, axes):
    """(before, features, after) in float64."""
    before = math.prod(x.shape[: axes[0]])
    after = math.prod(x.shape[axes[-1] + 1 :])
    return np.asarray(x, np.float64).reshape(before, -1, after)


def _axes(x, axis):
    return tuple(sorted(a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis)))


def _statistics(kind, x, epsilon):
    """(u, r): what is multiplied by the reciprocal root, and that root."""
    n = x.shape[1]
    u = x - x.mean(1, keepdims=True) if kind == "layer" else x
    square = (u * u).sum(1, keepdims=True)
    if kind == "crms":
        square, n = square + x.sum(1, keepdims=True) ** 2, n + 1
    return u, 1 / np.sqrt(square / n + epsilon)


def forward(kind, x, scale, bias, *, axis, epsilon, scale_offset=0.0):
    """The output and, elementwise, the largest error that float32 arithmetic explains.

    A row's sums are of depth log2(n) and a few operations follow, each wrong by eps of the largest number in sight.
    """
    axes = _axes(x, axis)
    rows = _rows(x, axes)
    w = 1.0 if scale is None else np.asarray(scale, np.float64).reshape(1, -1, 1) + scale_offset
    b = 0.0 if bias is None else np.asarray(bias, np.float64).reshape(1, -1, 1)
    u, r = _statistics(kind, rows, epsilon)
    y = u * r * w + b
    largest = np.abs(rows).max(1, keepdims=True)
    tolerance = _depth(rows) * EPS32 * (largest * r * np.abs(w) + np.abs(b))
    return y.reshape(x.shape), np.broadcast_to(tolerance, y.shape).reshape(x.shape)


def _depth(rows):
    return 8 + math.log2(rows.shape[1])


def backward(kind, x, scale, bias, dy, *, axis, epsilon, scale_offset=0.0, dsum=None):
    """`{"x": (gradient, tolerance), "scale": ..., "bias": ...}`, by the Jacobian of every row.

    The parameters' gradients are sums over rows, of depth rows / 8: each adds eps of the sum of absolute terms.
    """
    axes = _axes(x, axis)
    rows, dy = _rows(x, axes), _rows(dy, axes)
    n = rows.shape[1]
    u, r = _statistics(kind, rows, epsilon)
    w = np.ones((1, n, 1)) if scale is None else np.asarray(scale, np.float64).reshape(1, n, 1) + scale_offset
    g = w * dy
    # d(r)/dx, times the sum over outputs it acts on; layer's centring is applied last.
    direction, count = (rows + rows.sum(1, keepdims=True), n + 1) if kind == "crms" else (u, n)
    dr = -(r**3) * direction / count
    dx = g * r + dr * (g * u).sum(1, keepdims=True)
    if kind == "layer":
        dx = dx - dx.mean(1, keepdims=True)
    largest = np.abs(rows).max(1, keepdims=True) * (1 + n * (kind == "crms"))
    scale_of_dx = r * np.abs(g).max(1, keepdims=True) * (1 + (largest * r) ** 2)
    tolerance = np.broadcast_to(_depth(rows) * EPS32 * scale_of_dx, dx.shape)
    if dsum is not None:
        dx = dx + _rows(dsum, axes)
        tolerance = tolerance + EPS32 * np.abs(_rows(dsum, axes))
    found = {"x": (dx.reshape(x.shape), tolerance.reshape(x.shape))}
    depth = _depth(rows) + rows.shape[0] * rows.shape[2] / 8
    absolute = np.abs(rows).max(1, keepdims=True) * r * np.abs(dy)
    if scale is not None:
        terms = (dy * u * r).sum((0, 2)).reshape(scale.shape)
        found["scale"] = terms, depth * EPS32 * absolute.sum((0, 2)).reshape(scale.shape)
    if bias is not None:
        found["bias"] = dy.sum((0, 2)).reshape(bias.shape), depth * EPS32 * np.abs(dy).sum((0, 2)).reshape(bias.shape)
    return found


def assert_close(actual, expected, tolerance, what):
    """Within the tolerance and half a unit in the last place of the actual dtype; never NaN."""
    assert np.all(np.isfinite(np.asarray(actual, np.float64))), f"{what}: not everything was written"
    rounding = float(jnp.finfo(actual.dtype).eps) / 2 if actual.dtype != np.float32 else 0.0
    error = np.abs(np.asarray(actual, np.float64) - expected)
    allowed = tolerance + rounding * (np.abs(expected) + tolerance)
    worst = np.unravel_index(np.argmax(error - allowed), error.shape)
    assert np.all(error <= allowed), (
        f"{what} at {worst}: {error[worst]:.3g} from the oracle, {allowed[worst]:.3g} allowed"
    )
