"""The parts that both forms of the graph transformer layer share."""

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.nnx import Norm
from normjax.norms import batch_norm


class EdgeAttention(nnx.Module):
    """Attention of each node over the sources of its incoming edges; returns the scores of each feature too."""

    def __init__(self, features, heads, clip, rngs, epsilon=0.0):
        _checks.check_count("heads", heads, 1)
        if features % heads:
            raise ValueError(f"heads={heads} does not divide features={features}; expected a divisor.")
        self.heads, self.clip, self.epsilon = heads, clip, epsilon
        self.query, self.key, self.value = (nnx.Linear(features, features, use_bias=False, rngs=rngs) for _ in range(3))

    def __call__(self, x, src, dst, edge_mask, gate=None):
        shape = (-1, self.heads, x.shape[-1] // self.heads)
        q, k, v = (layer(x).reshape(shape) for layer in (self.query, self.key, self.value))
        scores = q[dst] * k[src] * shape[-1] ** -0.5
        scores = scores if gate is None else scores * gate.reshape(shape)
        weights = jnp.exp(jnp.clip(scores.sum(-1, keepdims=True), -self.clip, self.clip))
        if edge_mask is not None:
            weights = jnp.where(edge_mask.astype(bool)[:, None, None], weights, 0)
        total, mixed = (jax.ops.segment_sum(a, dst, num_segments=x.shape[0]) for a in (weights, weights * v[src]))
        # The authors' node form divides 0 by 0 where no edge arrives.
        mixed = mixed / (jnp.where(total > 0, total, 1) + self.epsilon)
        return mixed.reshape(x.shape), scores.reshape(-1, x.shape[-1])


class PostNorm(nnx.Module):
    """What follows attention on nodes and on edges: output projection and feed-forward network, a norm after each."""

    def __init__(self, features, norm, mlp_ratio, rngs):
        norm = batch_norm(momentum=0.9, unbiased=True) if norm is None else norm
        self.out = nnx.Linear(features, features, rngs=rngs)
        self.norm1 = Norm(norm, features, rngs=rngs)
        self.hidden = nnx.Linear(features, mlp_ratio * features, rngs=rngs)
        self.down = nnx.Linear(mlp_ratio * features, features, rngs=rngs)
        self.norm2 = Norm(norm, features, rngs=rngs)

    def __call__(self, x, attended, mask):
        mask = None if mask is None else mask[:, None]
        h = self.norm1(x + self.out(attended), mask=mask)
        return self.norm2(h + self.down(jax.nn.relu(self.hidden(h))), mask=mask)


def cleared(x, mask):
    return x if mask is None else jnp.where(mask.astype(bool)[:, None], x, 0)


def check_graph(x, src, dst, node_mask, edge_mask):
    if x.ndim != 2 or src.ndim != 1 or src.shape != dst.shape:
        raise ValueError(
            f"got nodes {x.shape}, src {src.shape} and dst {dst.shape}; expected (nodes, features) and two (edges,)."
        )
    for name, index in (("src", src), ("dst", dst)):
        if not jnp.issubdtype(index.dtype, jnp.integer):
            raise TypeError(f"{name} has dtype {index.dtype}, expected integers that number the nodes.")
    for name, mask, length in (("node_mask", node_mask, x.shape[0]), ("edge_mask", edge_mask, src.shape[0])):
        if mask is not None and mask.shape != (length,):
            raise ValueError(f"{name} has shape {mask.shape}, expected {(length,)}.")
