"""Norm and addition in float64 NumPy, from the row norms' oracle, with errors followed from one norm into the other."""

import math

import numpy as np

from tests.pallas_kernels import oracle
from tests.pallas_kernels.oracle import EPS32


def forward(kind, x, residual, scale, **options):
    """The stream and the error that float32 arithmetic explains."""
    normalized, tolerance = oracle.forward(kind, x, scale, None, **options)
    h = normalized + np.asarray(residual, np.float64)
    return h, tolerance + EPS32 * np.abs(h)


def backward(kind, x, scale, dh, dh_tolerance, **options):
    """As `oracle.backward` without a bias, for a cotangent that is known up to a tolerance.

    With u r of root mean square at most 1, an error d of g = w dh changes dx by at most r max|d| (2 + max|u r|).
    """
    found = oracle.backward(kind, x, scale, None, dh, **options)
    axis = options["axis"]
    axes = tuple(sorted(a % x.ndim for a in ((axis,) if isinstance(axis, int) else axis)))
    shape = math.prod(x.shape[: axes[0]]), -1, math.prod(x.shape[axes[-1] + 1 :])
    rows, error = (np.asarray(a, np.float64).reshape(shape) for a in (x, np.broadcast_to(dh_tolerance, x.shape)))
    u = rows - rows.mean(1, keepdims=True) if kind == "layer" else rows
    r = 1 / np.sqrt((u * u).mean(1, keepdims=True) + options["epsilon"])
    weight = 1.0 if scale is None else np.asarray(scale, np.float64).reshape(1, -1, 1) + options["scale_offset"]
    passed = r * np.abs(error * weight).max(1, keepdims=True) * (2 + np.abs(u * r).max(1, keepdims=True))
    dx, tolerance = found["x"]
    found["x"] = dx, tolerance + np.broadcast_to(passed, rows.shape).reshape(x.shape)
    if scale is not None:
        dscale, tolerance = found["scale"]
        found["scale"] = dscale, tolerance + (error * np.abs(u * r)).sum((0, 2)).reshape(scale.shape)
    return found
