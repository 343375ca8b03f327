"""Cases of per-token norms, QK-norm, temperatures and interpolations."""

from tests.norms.cases._case import Case

CASES: list[Case] = []
