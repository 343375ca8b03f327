"""Every method of the catalogue at one shape, with its plainest formula."""

from experiments.speed.entry import Entry


def entries() -> list[Entry]:
    """One entry a method."""
    return []
