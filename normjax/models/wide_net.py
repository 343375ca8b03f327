r"""WideNet (Xue et al. 2021): one attention and one mixture of experts for all depths, norms of its own for each.

$$h = x + \mathrm{Attn}(N_{1,l}(x)),\qquad y = h + \sum_{e \in \text{top } k} p_e\, F_e(N_{2,l}(h)),\qquad
p = \operatorname{softmax}(R\, N_{2,l}(h))$$

Only the norms tell the depths apart, with $4 d$ parameters each. The probabilities of the chosen experts are not
renormalized. The auxiliary loss, summed over depths, is $E \sum_e f_e P_e$: the fraction of tokens whose first choice
is $e$ times the mean probability of $e$, whose gradient alone flows.

No snapshot of the authors' code is public: exact GELU, biases in the experts alone and the form of the loss follow
a re-implementation of the paper.

Left out: capacity limits, noise in the router, and experts on several devices: here every expert sees every token and
the unchosen ones are multiplied by 0.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.nnx import Norm
from normjax.norms import layer_norm
from normjax.transform import NormTransform


class WideNet(nnx.Module):
    """The WideNet encoder on tokens.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> net = nj.models.WideNet(8, depth=3, heads=2, experts=4, rngs=nnx.Rngs(0))
      >>> y, auxiliary_loss = net(jnp.ones((2, 5, 8)))
      >>> y.shape, auxiliary_loss.shape
      ((2, 5, 8), ())

    References:
      Xue et al. 2021, [Go Wider Instead of Deeper](https://arxiv.org/abs/2107.11817).
    """

    def __init__(
        self,
        features: int,
        *,
        depth: int,
        heads: int,
        experts: int = 4,
        chosen: int = 2,
        mlp_features: int | None = None,
        norm: NormTransform | None = None,
        rngs: nnx.Rngs,
    ):
        """Makes parameters.

        Args:
          features: Width of a token.
          depth: How often the shared layer is applied.
          heads: Number of attention heads; divides `features`.
          experts: Number of feed-forward networks.
          chosen: How many of them each token gets.
          mlp_features: Width of an expert; `None` is four times `features`.
          norm: Every norm; `None` is layer normalization.
          rngs: Random streams; `params` is used.
        """
        for name, count in (("depth", depth), ("heads", heads), ("experts", experts), ("chosen", chosen)):
            _checks.check_count(name, count, 1)
        if features % heads or chosen > experts:
            raise ValueError(
                f"got features={features}, heads={heads}, experts={experts}, chosen={chosen}; expected heads to divide "
                "the features and no more experts chosen than there are."
            )
        norm = layer_norm(epsilon=1e-6) if norm is None else norm
        self.depth, self.heads, self.chosen = depth, heads, chosen
        self.query, self.key, self.value, self.out = (
            nnx.Linear(features, features, use_bias=False, rngs=rngs) for _ in range(4)
        )
        self.router = nnx.Linear(features, experts, use_bias=False, rngs=rngs)
        mlp_features = 4 * features if mlp_features is None else mlp_features
        self.hidden = _Experts(experts, features, mlp_features, rngs)
        self.down = _Experts(experts, mlp_features, features, rngs)
        self.norm1 = nnx.List(Norm(norm, features, rngs=rngs) for _ in range(depth))
        self.norm2 = nnx.List(Norm(norm, features, rngs=rngs) for _ in range(depth))
        self.out_norm = Norm(norm, features, rngs=rngs)

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Applies all depths and the last norm.

        Args:
          x: Tokens, `(batch, length, features)`.
          mask: `(batch, length)`, zero at padded tokens; they are neither attended to nor counted.

        Returns:
          Tokens, shaped like `x`, and the auxiliary loss, a scalar.
        """
        # Cleared: a key's weight of zero does not remove a NaN in its value.
        x = x if mask is None else jnp.where(mask.astype(bool)[..., None], x, 0)
        losses = []
        for index in range(self.depth):
            x, loss = self.layer(x, index, mask=mask)
            losses.append(loss)
        return self.out_norm(x, mask=None if mask is None else mask[..., None]), jnp.stack(losses).sum()

    def layer(self, x: jax.Array, index: int, *, mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Applies the shared layer with the norms of one depth.

        Args:
          x: Tokens, `(batch, length, features)`.
          index: The depth, from 0.
          mask: As in `__call__`.

        Returns:
          Tokens, shaped like `x`, and the auxiliary loss of this depth.
        """
        if x.ndim != 3 or (mask is not None and mask.shape != x.shape[:2]):
            got = f"{x.shape} and a mask {None if mask is None else mask.shape}"
            raise ValueError(f"got tokens {got}; expected (batch, length, features) and (batch, length) or None.")
        valid = jnp.ones(x.shape[:2], bool) if mask is None else mask.astype(bool)
        of_norm = None if mask is None else valid[..., None]
        x = x + self._attend(self.norm1[index](x, mask=of_norm), valid)
        mixed, loss = self._mix(self.norm2[index](x, mask=of_norm), valid)
        return x + mixed, loss

    def _attend(self, x, valid):
        q, k, v = (f(x).reshape(*x.shape[:2], self.heads, -1) for f in (self.query, self.key, self.value))
        attended = jax.nn.dot_product_attention(q, k, v, mask=valid[:, None, None, :])
        return self.out(attended.reshape(x.shape))

    def _mix(self, x, valid):
        probabilities = jax.nn.softmax(self.router(x))
        experts = probabilities.shape[-1]
        _, order = jax.lax.top_k(probabilities, self.chosen)
        choices = jax.nn.one_hot(order, experts, dtype=probabilities.dtype)
        gates = probabilities * choices.sum(-2)
        hidden = self.hidden(jnp.broadcast_to(x[..., None, :], (*gates.shape, x.shape[-1])))
        outputs = self.down(jax.nn.gelu(hidden, approximate=False))
        first, share = (jnp.mean(a, (0, 1), where=valid[..., None]) for a in (choices[..., 0, :], probabilities))
        loss = experts * jnp.sum(jax.lax.stop_gradient(first) * share)
        return jnp.einsum("ble,bled->bld", gates, outputs), loss


class _Experts(nnx.Module):
    """One linear layer for each expert."""

    def __init__(self, experts, features, out_features, rngs):
        kernel_init = nnx.initializers.lecun_normal(batch_axis=0)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (experts, features, out_features)))
        self.bias = nnx.Param(jnp.zeros((experts, out_features)))

    def __call__(self, x):
        y = jnp.einsum("...ed,edf->...ef", x, self.kernel[...])
        return y + jnp.broadcast_to(self.bias[...], y.shape)
