"""Cases of norms modulated by vectors, and divisive normalization."""

from tests.norms.cases._case import Case

CASES: list[Case] = []
