"""A linen module around any `NormTransform`."""

from typing import Any

import flax.linen as nn
import jax

from normjax.backward_state import OVERWRITE_WITH_GRADIENT, join_written, split_written
from normjax.transform import NormTransform


class Norm(nn.Module):
    """Holds the parameters and the state of a `NormTransform` in a linen module; no mathematics of its own.

    Parameters go to the collection `"params"` and state to `state_collection`, each under the transform's own names
    (`"scale"`, `"bias"`, `"mean"`, ...; `"0"`, `"1"`, ... for members of a chain). Statistics do not move during
    `init`.

    What the backward pass writes (PowerNorm, Unified Normalization) goes to the collection
    `"_overwrite_with_gradient"`. Take gradients with respect to it beside `"params"`: Flax's `TrainState` hides it from
    the optimizer and overwrites it as it is. Evaluation does not need the collection. `nn.scan` and `nn.vmap` need it
    in their `variable_axes`.

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

      A training step with PowerNorm, whose backward pass writes state:

      >>> import optax
      >>> from flax.training.train_state import TrainState
      >>> layer, x = nj.linen.Norm(nj.power_norm()), jnp.array([[1.0, 4.0], [-2.0, 3.0]])
      >>> variables = layer.init(jax.random.key(0), x)
      >>> stats = variables.pop("batch_stats")
      >>> sorted(variables)
      ['_overwrite_with_gradient', 'params']
      >>> train = TrainState.create(apply_fn=layer.apply, params=variables, tx=optax.adam(1e-3))
      >>> def loss(variables):
      ...     y, new = layer.apply({**variables, "batch_stats": stats}, x, mutable=["batch_stats"])
      ...     return jnp.sum(y**3), new["batch_stats"]
      >>> grads, stats = jax.grad(loss, has_aux=True)(train.params)
      >>> train = train.apply_gradients(grads=grads)
      >>> written = "_overwrite_with_gradient"
      >>> bool((train.params[written]["ema_gz"] == grads[written]["ema_gz"]).all())
      True
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
        # A mapped axis need not exist during init, where nothing depends on the statistics.
        use_running_average = use_running_average or self.is_initializing()
        struct = jax.ShapeDtypeStruct(x.shape, x.dtype)

        def initialize(rng):
            return self.transform.init(rng, struct, **context)

        # Shapes name the entries; the values come from the module's own streams.
        shapes, state_names = jax.eval_shape(initialize, jax.random.key(0))
        param_names, written_names = split_written(shapes)
        params = {
            name: self.param(name, lambda rng, n=name: split_written(initialize(rng)[0])[0][n]) for name in param_names
        }
        rng = self.make_rng("params") if self.has_rng("params") else None
        written = {
            name: self.variable(OVERWRITE_WITH_GRADIENT, name, lambda n=name: split_written(initialize(rng)[0])[1][n])
            for name in written_names
            if self.is_initializing() or self.has_variable(OVERWRITE_WITH_GRADIENT, name)
        }
        params = join_written(shapes, params, {name: variable.value for name, variable in written.items()})
        variables = {
            name: self.variable(self.state_collection, name, lambda n=name: initialize(rng)[1][n])
            for name in state_names
        }
        state = {name: variable.value for name, variable in variables.items()}
        y, new_state = self.transform.apply(params, state, x, train=not use_running_average, mask=mask, **context)
        if not use_running_average:
            for name, variable in variables.items():
                variable.value = new_state[name]
        return y
