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


class Estimate(NamedTuple):
    """A statistic and the ends of its 95 % confidence interval, which need not lie symmetrically around it."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half of the last axis: less noisy than a median, less swayed by outliers than a mean.

    Args:
      scores: `(..., n)`; a quarter of them, rounded down, is left out at either end.

    Returns:
      `(...)`.
    """
    return stats.trim_mean(scores, 0.25, axis=-1)


def stratified_bootstrap(
    scores: np.ndarray, confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> Estimate:
    """Interquartile mean over runs and tasks, with the percentile interval of a stratified bootstrap.

    Runs are drawn with replacement within each task. That takes the tasks of a run for independent, which phases that
    one network lives through are not: where one run fails for good the interval is too narrow, and `t_interval` of the
    runs' means is the one to believe.

    Args:
      scores: `(runs, tasks)`.
      confidence: Coverage of the interval.
      resamples: Number of bootstrap samples.
      seed: Of their draw.

    Returns:
      The interquartile mean of all scores and its interval.

    Raises:
      ValueError: If there are no scores or they have other axes.

    References:
      Agarwal et al. 2021, Deep reinforcement learning at the edge of the statistical precipice, arXiv 2108.13264.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"stratified_bootstrap takes scores (runs, tasks), got an array of shape {scores.shape}.")
    runs, tasks = scores.shape
    drawn = np.random.default_rng(seed).integers(runs, size=(resamples, runs, tasks))
    sampled = scores[drawn, np.arange(tasks)].reshape(resamples, -1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(interquartile_mean(sampled), [tail, 100 - tail])
    return Estimate(float(interquartile_mean(scores.reshape(-1))), float(low), float(high))
