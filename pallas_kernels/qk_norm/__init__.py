"""Norms of queries and keys, head by head."""

from pallas_kernels.qk_norm.api import qk_norm as qk_norm
