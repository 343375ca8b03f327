"""Cases of Unified Normalization, PowerNorm and the masked batch norms published beside it."""

from tests.norms.cases._case import Case

CASES: list[Case] = []
