"""Interleaved timing: every candidate once a round, so that what disturbs the machine disturbs all of them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Times compiled calls in turn, one warm-up first.

    Args:
      calls: Functions without arguments whose results are JAX arrays.
      rounds: How often each is timed.

    Returns:
      Seconds of every round, `(rounds,)`, by name.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return {name: np.asarray(seconds) for name, seconds in times.items()}


def ratio(times: Mapping[str, np.ndarray], name: str, to: str) -> float:
    """Median over the rounds of one candidate's time divided by another's in the same round."""
    return float(np.median(times[name] / times[to]))
