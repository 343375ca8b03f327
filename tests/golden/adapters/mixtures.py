"""Adapters of batch norms that mix, re-estimate or blend statistics."""

from collections.abc import Callable

from tests.golden.adapters._kinds import Adapter
from tests.golden.vectors import Vector

ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {}
