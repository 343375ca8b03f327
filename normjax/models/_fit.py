"""The Pre-LN layers that FIT is a stack of."""

import jax
from flax import nnx

from normjax import _checks
from normjax.nnx import Norm


class Attention(nnx.Module):
    """Multi-head attention of queries over keys and values that may have another width."""

    def __init__(self, features, other_features, heads, inner_features, rngs):
        _checks.check_count("heads", heads, 1)
        if inner_features % heads:
            raise ValueError(f"heads={heads} does not divide the attention's width {inner_features}.")
        shape = (heads, inner_features // heads)
        self.query = nnx.LinearGeneral(features, shape, rngs=rngs)
        self.key, self.value = (nnx.LinearGeneral(other_features, shape, rngs=rngs) for _ in range(2))
        self.out = nnx.LinearGeneral(shape, features, axis=(-2, -1), rngs=rngs)

    def __call__(self, x, other):
        return self.out(jax.nn.dot_product_attention(self.query(x), self.key(other), self.value(other)))


class CrossAttention(nnx.Module):
    """A residual cross attention with a norm on each side."""

    def __init__(self, features, other_features, heads, inner_features, norm, rngs):
        self.norm = Norm(norm, features, rngs=rngs)
        self.other_norm = Norm(norm, other_features, rngs=rngs)
        self.attention = Attention(features, other_features, heads, inner_features, rngs)

    def __call__(self, x, other):
        return x + self.attention(self.norm(x), self.other_norm(other))


class TransformerLayer(nnx.Module):
    """A residual self-attention and a residual feed-forward network, a norm before each."""

    def __init__(self, features, heads, mlp_ratio, norm, rngs):
        self.norm1 = Norm(norm, features, rngs=rngs)
        self.attention = Attention(features, features, heads, features, rngs)
        self.norm2 = Norm(norm, features, rngs=rngs)
        self.hidden = nnx.Linear(features, mlp_ratio * features, rngs=rngs)
        self.down = nnx.Linear(mlp_ratio * features, features, rngs=rngs)

    def __call__(self, x):
        normalized = self.norm1(x)
        x = x + self.attention(normalized, normalized)
        return x + self.down(jax.nn.gelu(self.hidden(self.norm2(x)), approximate=False))
