"""The norms under comparison; networks and optimizer are the same."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import normjax as nj

BATCH_MOMENTUM = 0.9


class Arm(NamedTuple):
    """One norm.

    Attributes:
      label: As figures and tables show it.
      norm: `norm(tasks, groups, kappa)`.
      auxiliary: Whether its auxiliary loss is added.
    """

    label: str
    norm: Callable[[int, int, float], nj.NormTransform]
    auxiliary: bool = False


def _batch(tasks: int, groups: int, kappa: float) -> nj.NormTransform:
    del tasks, groups, kappa
    return nj.batch_norm(momentum=BATCH_MOMENTUM, unbiased=True)


def _balance(tasks: int, groups: int, kappa: float) -> nj.NormTransform:
    del groups
    return nj.adaptive_balance_norm(tasks, kappa=kappa, momentum=BATCH_MOMENTUM)


def _balance_renormalized(tasks: int, groups: int, kappa: float) -> nj.NormTransform:
    del groups
    return nj.adaptive_balance_norm(tasks, kappa=kappa, momentum=BATCH_MOMENTUM, renormalize=True)


def _group(tasks: int, groups: int, kappa: float) -> nj.NormTransform:
    del tasks, kappa
    return nj.group_norm(num_groups=groups)


def _continual(tasks: int, groups: int, kappa: float) -> nj.NormTransform:
    del tasks, kappa
    # No scale and no offset: the authors leave them out of the optimizer.
    return nj.continual_norm(num_groups=groups, momentum=BATCH_MOMENTUM, use_scale=False, use_bias=False)


ARMS: Mapping[str, Arm] = {
    "bn": Arm("BN", _batch),
    "adab2n": Arm("AdaB²N", _balance, auxiliary=True),
    "adab2n_renormalized": Arm("AdaB²N, weights sum to 1", _balance_renormalized, auxiliary=True),
    "gn": Arm("GN", _group),
    "cn": Arm("Continual Normalization", _continual),
}
