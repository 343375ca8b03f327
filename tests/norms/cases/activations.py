"""Cases of norms fused with an activation, point functions, and gates."""

from tests.norms.cases._case import Case

CASES: list[Case] = []
