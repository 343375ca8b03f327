"""Between the parameters of single blocks and those of runs of equal blocks, stacked for a loop over them."""

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from normjax.loaders.rules import Arrays

_BLOCK = re.compile(r"(stack\.blocks\.)(\d+)(\..*)")


def stacked(params: Mapping[str, np.ndarray], runs: Sequence[int]) -> Arrays:
    """The parameters of blocks stacked along a new first axis, by runs of these lengths."""
    ends = list(itertools.accumulate(runs))
    found: Arrays = {}
    for path, value in params.items():
        if not (match := _BLOCK.fullmatch(path)):
            found[path] = value
            continue
        block = int(match[2])
        run = next(r for r, end in enumerate(ends) if block < end)
        if block == ends[run] - runs[run]:
            rest = (f"{match[1]}{i}{match[3]}" for i in range(block, ends[run]))
            found[f"{match[1]}{run}{match[3]}"] = np.stack([params[p] for p in rest])
    return found


def unstacked(params: Mapping[str, np.ndarray], runs: Sequence[int]) -> Arrays:
    """The way back."""
    starts = [0, *itertools.accumulate(runs)]
    found: Arrays = {}
    for path, value in params.items():
        if not (match := _BLOCK.fullmatch(path)):
            found[path] = value
            continue
        run = int(match[2])
        found |= {f"{match[1]}{starts[run] + i}{match[3]}": value[i] for i in range(runs[run])}
    return found
