"""Architectures from the literature as small nnx modules in which the norm is an argument."""

from normjax.models.graph_transformer import EdgeGraphTransformerLayer as EdgeGraphTransformerLayer
from normjax.models.graph_transformer import GraphTransformerLayer as GraphTransformerLayer
