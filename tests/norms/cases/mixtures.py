"""Cases of batch norms that mix, re-estimate or blend statistics."""

from tests.norms.cases._case import Case

CASES: list[Case] = []
