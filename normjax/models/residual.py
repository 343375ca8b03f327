"""A sublayer inside its residual connection, with the norms and constants that a placement's step names."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.models._axes import named, named_norm
from normjax.models.residual_gate import residual_gate
from normjax.placements import Step
from normjax.transform import NormTransform


class Residual(nnx.Module):
    r"""$x' = N_a(\alpha r + \beta f)$ with $f = N_o(F(\sigma N_b(x)))$, for any module $F$.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> step = nj.placements.peri(nj.rms_norm()).step("ffn", 1, 1)
      >>> layer = nj.models.Residual(step, nj.rms_norm(), 4, nj.models.MLP(4, 8, rngs=rngs), rngs=rngs)
      >>> layer(jnp.ones((2, 4))).shape, layer.output.scale.shape
      ((2, 4), (4,))
    """

    def __init__(
        self,
        step: Step,
        norm: NormTransform,
        features: int,
        branch: nnx.Module,
        *,
        gate_init: float = 0.0,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes the norms `before`, `output`, `after` and the `gate` that the step has.

        Args:
          step: What is there.
          norm: The norm that each place gets one of.
          features: Of the stream.
          branch: $F$, called with the stream and whatever else the call gets.
          gate_init: Initial value of the gate.
          param_dtype: Dtype of the gate.
          rngs: Random streams; `params` is used.
        """
        self.step, self.branch = step, branch
        make = lambda there: named_norm(norm, features, rngs) if there else None  # noqa: E731
        self.before, self.output, self.after = make(step.before), make(step.output), make(step.after)
        gate = jnp.full((features,), gate_init, param_dtype)
        self.gate = None if step.gate is None else nnx.Param(gate, **named("norm"))

    def __call__(self, x: jax.Array, **options: Any) -> jax.Array:
        """The step; `options` go to the branch."""
        u = self.normalized(x)
        return self.joined(u if self.step.residual else x, self.branch_of(u, **options))

    def normalized(self, x: jax.Array) -> jax.Array:
        """$N_b(x)$, or `x`."""
        return x if self.before is None else self.before(x)

    def branch_of(self, u: jax.Array, **options: Any) -> jax.Array:
        r"""$f = N_o(F(\sigma u))$."""
        scaled = u if self.step.input_scale == 1 else u * jnp.asarray(self.step.input_scale, u.dtype)
        f = self.branch(scaled, **options)
        return f if self.output is None else self.output(f)

    def joined(self, r: jax.Array, f: jax.Array) -> jax.Array:
        r"""$N_a(\alpha r + \beta f)$, with the gate in the place of the constants where there is one."""
        alpha, beta = self.step.residual_scale, self.step.branch_scale
        if self.gate is not None and self.step.gate == "layer_scale":
            f = f * self.gate[...].astype(f.dtype).reshape((1,) * (f.ndim - 1) + (-1,))
        elif self.gate is not None:
            y = residual_gate(r, f, self.gate[...].astype(f.dtype))
            return y if self.after is None else self.after(y)
        r = r if alpha == 1 else r * jnp.asarray(alpha, r.dtype)
        f = f if beta == 1 else f * jnp.asarray(beta, f.dtype)
        y = r + f
        return y if self.after is None else self.after(y)
