"""The one list of cases that the battery runs over: a method that is exported and not here fails a test."""

import itertools

from tests.norms.cases import activations, conditional, mixtures, plain, tokens, vision, written_backward
from tests.norms.cases._case import Case as Case

CASES: list[Case] = [
    case
    for family in (plain, written_backward, mixtures, activations, tokens, vision, conditional)
    for case in family.CASES
]

# The first case of every factory: what depends on how a method is built and not on its settings is tested once.
FIRST: list[Case] = list({case.factory: case for case in reversed(CASES)}.values())[::-1]


def of_each_family(cases):
    """The first and the last of each family."""
    family = lambda c: c.factory.method.family if hasattr(c.factory, "method") else "composed"
    families = [list(members) for _, members in itertools.groupby(sorted(cases, key=family), family)]
    return [c for members in families for c in {m.name: m for m in (members[0], members[-1])}.values()]
