"""Adapters of norms conditioned on regions, maps, styles and coordinates."""

from collections.abc import Callable

from tests.golden.adapters._kinds import Adapter
from tests.golden.vectors import Vector

ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {}
