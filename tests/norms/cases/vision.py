"""Cases of norms conditioned on regions, maps, styles and coordinates."""

from tests.norms.cases._case import Case

CASES: list[Case] = []
