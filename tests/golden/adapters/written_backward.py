"""Adapters of Unified Normalization, PowerNorm and the masked batch norms published beside it."""

from collections.abc import Callable

from tests.golden.adapters._kinds import Adapter
from tests.golden.vectors import Vector

ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {}
