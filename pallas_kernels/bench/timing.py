"""Interleaved timing: every candidate once a round, so that what disturbs the device disturbs all of them."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Candidate(NamedTuple):
    """Something to time: a call that may return before its work is done, and what waits for its result."""

    call: Callable[[], Any]
    wait: Callable[[Any], object]


def medians(candidates: Mapping[str, Candidate], rounds: int, least_seconds: float) -> dict[str, float]:
    """Seconds of one call of each, median over rounds; each round begins with another candidate.

    Calls are queued until they fill `least_seconds` and waited for once, so that the host's part is hidden wherever the
    device's is longer. All candidates are timed by the same clock, whatever framework they come from.

    Args:
      candidates: By name.
      rounds: How often each is timed.
      least_seconds: Of one candidate in one round.
    """
    repeats = {name: _repeats(candidate, least_seconds) for name, candidate in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_seconds(candidates[name], repeats[name]))
    return {name: statistics.median(found) for name, found in seconds.items()}


def _repeats(candidate: Candidate, least_seconds: float) -> int:
    for _ in range(2):  # Compiles, then fills caches and clocks.
        _seconds(candidate, 1)
    return max(1, math.ceil(least_seconds / _seconds(candidate, 3)))


def _seconds(candidate: Candidate, repeats: int) -> float:
    start, result = time.perf_counter(), None
    for _ in range(repeats):
        result = candidate.call()
    candidate.wait(result)
    return (time.perf_counter() - start) / repeats
