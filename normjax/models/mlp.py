"""The feed-forward sublayer: one activation, or a gated pair."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.models._axes import linear_names, named_norm
from normjax.transform import NormTransform


class MLP(nnx.Module):
    r"""$W_d\, N(\phi(W_u x))$, or gated $W_d\, N(\phi(W_g x) \odot W_u x)$; the norm is Sub-LN's.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> swiglu = nj.models.MLP(4, 12, activation=jax.nn.silu, gated=True, rngs=nnx.Rngs(0))
      >>> swiglu(jnp.ones((2, 4))).shape, swiglu.gate.kernel.shape
      ((2, 4), (4, 12))
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu,
        gated: bool = False,
        inner_norm: NormTransform | None = None,
        use_bias: bool = False,
        kernel_inits: dict[str, Any] | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        r"""Makes `up`, `down`, and `gate` and `inner_norm` where they are asked for.

        Args:
          features: Of the stream.
          hidden: Of the layer.
          activation: $\phi$.
          gated: Whether it is the gate of a second matrix.
          inner_norm: Norm before `down`, or `None`.
          use_bias: Whether the matrices have biases.
          kernel_inits: Initializers by matrix; Flax's own where there is none.
          dtype: Dtype to compute in; `None` is that of input and parameters together.
          param_dtype: Dtype of the parameters.
          rngs: Random streams; `params` is used.
        """
        inits = kernel_inits or {}

        def linear(name, inputs, outputs, *names):
            init = inits.get(name, nnx.initializers.lecun_normal())
            options = {"use_bias": use_bias, "kernel_init": init, "dtype": dtype, "param_dtype": param_dtype}
            return nnx.Linear(inputs, outputs, **options, **linear_names(*names), rngs=rngs)

        self.activation = activation
        self.gate = linear("gate", features, hidden, "embed", "mlp") if gated else None
        self.up = linear("up", features, hidden, "embed", "mlp")
        self.down = linear("down", hidden, features, "mlp", "embed")
        self.inner_norm = None if inner_norm is None else named_norm(inner_norm, hidden, rngs, "mlp")

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(..., features)` to the same shape."""
        up = self.up(x)
        y = self.activation(up) if self.gate is None else self.activation(self.gate(x)) * up
        return self.down(y if self.inner_norm is None else self.inner_norm(y))
