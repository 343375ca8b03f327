"""Means over seeds with their uncertainty."""

from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A mean and the half width of its 95 % confidence interval; NaN where one sample leaves it open."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if np.isnan(self.half_width) else f"{self.mean:.3f} ± {self.half_width:.3f}"


def t_interval(samples: np.ndarray, confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent samples `(n,)`.

    For paired comparisons give it the differences.

    Args:
      samples: One number per seed.
      confidence: Coverage of the interval.

    Returns:
      The mean and the half width, which is NaN for a single sample.
    """
    samples = np.asarray(samples, np.float64)
    if samples.ndim != 1 or samples.size == 0:
        raise ValueError(f"t_interval takes one number per seed, got an array of shape {samples.shape}.")
    mean = float(samples.mean())
    if samples.size == 1:
        return Interval(mean, float("nan"))
    error = samples.std(ddof=1) / np.sqrt(samples.size)
    return Interval(mean, float(stats.t.ppf(0.5 + confidence / 2, samples.size - 1) * error))
