"""The four ways in which models use eight devices, and what a compiled program sends between them."""

import re
from typing import Any

from normjax import sharding

MESHES = {
    "data": (8, 1, sharding.DATA),
    "fsdp": (8, 1, sharding.FSDP),
    "tensor": (2, 4, sharding.TENSOR),
    "mixed": (4, 2, sharding.MIXED),
}
# Gradients of replicated parameters are summed; parameters cut over the batch's axis are gathered for each product;
# products of cut features are summed. The rest moves what the embedding's look-up finds to the batch it belongs to.
COLLECTIVES = {
    "data": {"all-reduce"},
    "fsdp": {"all-gather", "all-reduce", "all-to-all"},
    "tensor": {"all-reduce"},
    "mixed": {"all-gather", "all-reduce", "all-to-all", "collective-permute"},
}


def collectives(compiled: Any) -> dict[str, int]:
    """How many collectives of each kind a compiled program has."""
    found = re.findall(
        r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", compiled.as_text()
    )
    return {kind: found.count(kind) for kind in set(found)}
