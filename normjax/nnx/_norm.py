"""An nnx module around any `NormTransform`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax.backward_state import OVERWRITE_WITH_GRADIENT
from normjax.transform import NormTransform


class OverwriteWithGradient(nnx.Param):
    """State that the backward pass writes: an `nnx.Param`, so that `nnx.grad` and `nnx.Optimizer` reach it.

    The optimizer must be wrapped in `normjax.overwrite_with_gradient`; unwrapped, it would take the new value for a
    gradient.
    """


class Norm(nnx.Module):
    """Holds the parameters and the state of a `NormTransform` in an nnx module; no mathematics of its own.

    Each top-level parameter becomes an `nnx.Param` attribute and each state entry an `nnx.BatchStat`, under the
    transform's own names (`scale`, `bias`, `mean`, ...; members of a chain are dicts named `"0"`, `"1"`, ...). What the
    backward pass writes (PowerNorm, Unified Normalization) becomes `OverwriteWithGradient` under
    `_overwrite_with_gradient`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> layer = nj.nnx.Norm(nj.batch_norm(), 1, rngs=nnx.Rngs(0))
      >>> y = layer(jnp.array([[1.0], [3.0]]))
      >>> print(y.T.round(3), layer.mean[...].round(3))
      [[-1.  1.]] [0.02]

      A training step with PowerNorm, whose backward pass writes state:

      >>> import optax
      >>> layer, x = nj.nnx.Norm(nj.power_norm(), 2, rngs=nnx.Rngs(0)), jnp.array([[1.0, 4.0], [-2.0, 3.0]])
      >>> optimizer = nnx.Optimizer(layer, nj.overwrite_with_gradient(optax.adam(1e-3)), wrt=nnx.Param)
      >>> grads = nnx.grad(lambda layer: jnp.sum(layer(x) ** 3))(layer)
      >>> updates = optimizer.update(layer, grads)
      >>> written = "_overwrite_with_gradient"
      >>> bool((getattr(layer, written)["ema_gz"][...] == grads[written]["ema_gz"][...]).all())
      True
    """

    def __init__(
        self,
        transform: NormTransform,
        features: int | Sequence[int],
        *,
        dtype: Any = jnp.float32,
        use_running_average: bool = False,
        rngs: nnx.Rngs,
        **context: Any,
    ):
        """Makes parameters and state.

        Args:
          transform: The norm, e.g. `nj.rms_norm()` or `nj.chain(...)`.
          features: Number of features on the last axis, or the shape of a whole input.
          dtype: Dtype of the inputs; float64 gives float64 running statistics.
          use_running_average: Whether to evaluate; `model.train()` and `model.eval()` switch it.
          rngs: Random streams; `params` is used.
          **context: What conditional norms need to know of their condition, passed on to `init`.
        """
        shape = (1, 1, 1, features) if isinstance(features, int) else tuple(features)
        params, state = transform.init(rngs.params(), jax.ShapeDtypeStruct(shape, dtype), **context)
        self.transform = nnx.static(transform)
        self.use_running_average = use_running_average
        self._param_names, self._state_names = tuple(params), tuple(state)
        for name, value in params.items():
            setattr(self, name, nnx.data(_variables(name, value)))
        for name, value in state.items():
            setattr(self, _state_name(name, params), nnx.data(jax.tree.map(nnx.BatchStat, value)))

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: Any = None, **context: Any
    ) -> jax.Array:
        """Normalizes `x`.

        Args:
          x: Floating array.
          use_running_average: Whether to evaluate; `None` takes the attribute.
          mask: Broadcastable to `x`; zeros do not enter the statistics.
          **context: What conditional norms read.

        Returns:
          The normalized array.
        """
        if use_running_average is None:
            use_running_average = self.use_running_average
        params = {name: _values(getattr(self, name)) for name in self._param_names}
        holders = {n: getattr(self, _state_name(n, self._param_names)) for n in self._state_names}
        state = {name: _values(holder) for name, holder in holders.items()}
        y, new_state = self.transform.apply(params, state, x, train=not use_running_average, mask=mask, **context)
        if not use_running_average:
            jax.tree.map(_assign, holders, new_state, is_leaf=_is_variable)
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets `use_running_average` on a view made by `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average


def _variables(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {inner: _variables(name if name == OVERWRITE_WITH_GRADIENT else inner, v) for inner, v in value.items()}
    kind = OverwriteWithGradient if name == OVERWRITE_WITH_GRADIENT else nnx.Param
    return jax.tree.map(kind, value)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _values(tree: Any) -> Any:
    return jax.tree.map(lambda v: v[...], tree, is_leaf=_is_variable)


def _assign(variable: nnx.Variable, value: jax.Array) -> None:
    variable[...] = value


def _state_name(name: str, params: Any) -> str:
    # Members of a chain have parameters and state under the same key; attributes must differ.
    return f"{name}_state" if name in params else name
