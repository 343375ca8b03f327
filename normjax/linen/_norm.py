"""A linen module around any `NormTransform`."""

from typing import Any

import flax.linen as nn
import jax

from normjax.transform import NormTransform


class Norm(nn.Module):
    """Holds the parameters and the state of a `NormTransform` in a linen module; no mathematics of its own.

    Parameters go to the collection `"params"` and state to `state_collection`, each under the transform's own names
    (`"scale"`, `"bias"`, `"mean"`, ...; `"0"`, `"1"`, ... for members of a chain). Statistics do not move during
    `init`.

    Attributes:
      transform: The norm, e.g. `nj.rms_norm()` or `nj.chain(...)`.
      use_running_average: Whether to evaluate (`train=False`); may be given in the call instead.
      state_collection: Collection of the state; `"batch_stats"` is Flax's name for running statistics.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> layer = nj.linen.Norm(nj.batch_norm(), use_running_average=False)
      >>> x = jnp.array([[1.0], [3.0]])
      >>> variables = layer.init(jax.random.key(0), x)
      >>> y, updates = layer.apply(variables, x, mutable="batch_stats")
      >>> print(y.T.round(3), updates["batch_stats"]["mean"].round(3))
      [[-1.  1.]] [0.02]
    """

    transform: NormTransform
    use_running_average: bool | None = None
    state_collection: str = "batch_stats"

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: Any = None, **context: Any
    ) -> jax.Array:
        """Normalizes `x`.

        Args:
          x: Floating array.
          use_running_average: Whether to evaluate; `None` takes the attribute, and `False` if that is `None` too.
          mask: Broadcastable to `x`; zeros do not enter the statistics.
          **context: What conditional norms read, passed on to `init` and `apply`.

        Returns:
          The normalized array.
        """
        if use_running_average is None:
            use_running_average = bool(self.use_running_average)
        struct = jax.ShapeDtypeStruct(x.shape, x.dtype)

        def initialize(rng):
            return self.transform.init(rng, struct, **context)

        # Shapes name the entries; the values come from the module's own streams.
        param_names, state_names = jax.eval_shape(initialize, jax.random.key(0))
        params = {name: self.param(name, lambda rng, n=name: initialize(rng)[0][n]) for name in param_names}
        rng = self.make_rng("params") if self.has_rng("params") else None
        variables = {
            name: self.variable(self.state_collection, name, lambda n=name: initialize(rng)[1][n])
            for name in state_names
        }
        state = {name: variable.value for name, variable in variables.items()}
        y, new_state = self.transform.apply(params, state, x, train=not use_running_average, mask=mask, **context)
        if not self.is_initializing() and not use_running_average:
            for name, variable in variables.items():
                variable.value = new_state[name]
        return y
