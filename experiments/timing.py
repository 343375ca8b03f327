"""Interleaved timing: every candidate once a round, so that what disturbs the machine disturbs all of them."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def interleaved(
    calls: Mapping[str, Callable[[], Any]], rounds: int, least_seconds: float = 5e-3
) -> dict[str, np.ndarray]:
    """Times compiled calls in turn, two warm-ups first; each round begins with another one.

    Args:
      calls: Functions without arguments whose results are JAX arrays.
      rounds: How often each is timed.
      least_seconds: Calls faster than this are repeated within a round, all equally often.

    Returns:
      Seconds of a call in every round, `(rounds,)`, by name.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    start = time.perf_counter()
    for call in calls.values():
        jax.block_until_ready(call())
    repeats = math.ceil(least_seconds * len(calls) / (time.perf_counter() - start))
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for i in range(rounds):
        for name in np.roll(names, i).tolist():
            start = time.perf_counter()
            for _ in range(repeats):
                jax.block_until_ready(calls[name]())
            times[name].append((time.perf_counter() - start) / repeats)
    return {name: np.asarray(seconds) for name, seconds in times.items()}


def ratio(times: Mapping[str, np.ndarray], name: str, to: str) -> float:
    """Median over the rounds of one candidate's time divided by another's in the same round."""
    return float(np.median(times[name] / times[to]))


def ratio_of_fastest(times: Mapping[str, np.ndarray], name: str, to: str) -> float:
    """One candidate's fastest round divided by another's: what disturbs a machine lengthens calls and shortens none."""
    return float(np.min(times[name]) / np.min(times[to]))
