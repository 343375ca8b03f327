"""Gated RMS norms and their gradients in float64 NumPy: a product before or after the plain norm."""

import numpy as np

from tests.pallas_kernels import oracle

# exp, sum, quotient and products round as often again as the plain norm's arithmetic, and so does the slope's.
MORE = 2
# What a closed gate leaves may be less than float32 can hold.
LEAST = np.finfo(np.float32).tiny


def activate(activation, z):
    """The activation of float64 numbers, its slope, and what the slope is a sum of, in absolute terms."""
    if activation == "none":
        return z, np.ones_like(z), np.ones_like(z)
    s = 1 / (1 + np.exp(-z))
    if activation == "sigmoid":
        return s, s * (1 - s), s * (1 - s)
    return z * s, s + z * s * (1 - s), s + np.abs(z) * s * (1 - s)


def forward(x, gate, scale, *, activation, gate_first, **options):
    """`(y, tolerance)`."""
    x, a = np.asarray(x, np.float64), activate(activation, np.asarray(gate, np.float64))[0]
    y, tolerance = oracle.forward("rms", x * a if gate_first else x, scale, None, **options)
    factor = 1.0 if gate_first else a
    return y * factor, MORE * tolerance * np.abs(factor) + LEAST


def backward(x, gate, scale, dy, *, activation, gate_first, **options):
    """`{"x": (gradient, tolerance), "gate": ..., "scale": ...}`."""
    x, z, dy = (np.asarray(array, np.float64) for array in (x, gate, dy))
    a, slope, largest_slope = activate(activation, z)
    found = oracle.backward("rms", x * a if gate_first else x, scale, None, dy if gate_first else dy * a, **options)
    dv, dv_tolerance = found["x"]
    if gate_first:
        found["x"] = dv * a, dv_tolerance * np.abs(a)
        found["gate"] = dv * x * slope, (dv_tolerance * np.abs(x)) * largest_slope
    else:
        y, tolerance = oracle.forward("rms", x, scale, None, **options)
        found["gate"] = dy * y * slope, np.abs(dy) * tolerance * largest_slope
    return {name: (value, MORE * tolerance + LEAST) for name, (value, tolerance) in found.items()}
