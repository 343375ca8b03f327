"""Adapters of per-token norms, QK-norm, temperatures and interpolations."""

from collections.abc import Callable

from tests.golden.adapters._kinds import Adapter
from tests.golden.vectors import Vector

ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {}
