"""Which normjax call reproduces which recorded vector, from the sidecar's own hyper-parameters.

A vector is recognised by its name without its suffix, so that further vectors of the same method are found without a
change here. One module per family of methods; each maps a pattern to a function that makes the adapter.
"""

import re

from tests.golden.adapters import (
    activations,
    conditional,
    conversion,
    diagnostics,
    fold,
    gates,
    hosts,
    mixtures,
    optimization,
    plain,
    stacks,
    tokens,
    vision,
    weights,
    written_backward,
)
from tests.golden.adapters._kinds import Adapter as Adapter
from tests.golden.adapters._kinds import Check as Check
from tests.golden.adapters._kinds import Pointwise as Pointwise
from tests.golden.adapters._kinds import Policies as Policies
from tests.golden.adapters._kinds import Stepwise as Stepwise
from tests.golden.adapters._kinds import epsilon_of as epsilon_of
from tests.golden.vectors import Vector

_FAMILIES = (
    plain,
    written_backward,
    mixtures,
    activations,
    tokens,
    vision,
    conditional,
    weights,
    stacks,
    hosts,
    gates,
    fold,
    conversion,
    diagnostics,
    optimization,
)


def adapter(vector: Vector) -> Adapter | None:
    """The adapter of a vector, or `None` where its method is not covered yet."""
    for family in _FAMILIES:
        for pattern, make in family.ADAPTERS.items():
            if re.fullmatch(pattern, vector.name):
                return make(vector)
    return None
