"""Adapters of norms modulated by vectors, and divisive normalization."""

from collections.abc import Callable

from tests.golden.adapters._kinds import Adapter
from tests.golden.vectors import Vector

ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {}
