"""nnx wrappers that give a layer effective kernels; the stored ones are never written. No mathematics in here.

flax.nnx's own wrappers overwrite the kernel with the normalized one in every call, which makes projections of them: the
optimizer steps from another point, and the effective learning rate is another.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict
from flax.nnx.nn import dtypes

from normjax.linen._weights import flax_spectral_norm, flax_weight_norm
from normjax.weights import by_path
from normjax.weights._transform import Rules, chosen

Axes = int | tuple[int, ...] | None
Initializer = Any
_kernels = nnx.PathContains("kernel")


class Reparametrized(nnx.Module):
    """Calls a layer with the effective kernels of any `WeightTransform`s, and leaves the stored ones as they are.

    The transforms' own parameters are `nnx.Param`s in the dict `scales` and their state `nnx.BatchStat`s in the dict
    `batch_stats`, both under `"<path>/<name>"`, e.g. `"kernel/scale"`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
      >>> layer = nj.nnx.Reparametrized(linear, {"kernel": nj.weight_norm()}, rngs=nnx.Rngs(0))
      >>> layer.scales["kernel/scale"][...] = jnp.ones(2)
      >>> print(jnp.linalg.norm(layer(jnp.eye(3)), axis=0).round(3))
      [1. 1.]
    """

    def __init__(self, layer_instance: nnx.Module, rules: Rules, *, update_stats: bool = True, rngs: nnx.Rngs):
        """Makes the transforms' own parameters and state.

        Args:
          layer_instance: The layer.
          rules: Which of its parameters are reparametrized, and how, as in `by_path`; paths start inside of the layer.
          update_stats: Whether calls are training steps; `model.train()` and `model.eval()` switch it.
          rngs: Random streams; `params` is used.
        """
        self.layer_instance = layer_instance
        # nnx compares static attributes, and a dict has no hash.
        self.rules: Rules = nnx.static(FrozenDict(rules) if isinstance(rules, Mapping) else rules)
        self.use_running_average = not update_stats
        own, state = by_path(rules).init(rngs.params(), nnx.state(layer_instance, nnx.Param))
        self.scales = nnx.data(jax.tree.map(nnx.Param, _named(own)))
        self.batch_stats = nnx.data(jax.tree.map(nnx.BatchStat, _named(state)))

    def __call__(self, *args: Any, update_stats: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with its effective kernels.

        Args:
          *args: The layer's arguments.
          update_stats: Whether this is a training step; `None` takes the mode of the model.
          **kwargs: The layer's arguments.

        Returns:
          The layer's output.
        """
        layer, state = self._effective(not self.use_running_average if update_stats is None else update_stats)
        y = layer(*args, **kwargs)
        _keep(self.layer_instance, layer)
        for name, value in state.items():
            self.batch_stats[name][...] = value
        return y

    def baked(self) -> Any:
        """Returns a copy of the layer whose kernels are the effective ones, for inference without the wrapper."""
        return self._effective(False)[0]

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the mode on a view made by `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _effective(self, train: bool) -> tuple[Any, dict[str, jax.Array]]:
        return _effective(self.layer_instance, self.rules, _nested(self.scales), _nested(self.batch_stats), train)


class WeightNorm(nnx.Module):
    r"""`flax.nnx.WeightNorm` that starts as the layer it wraps, has a trainable scale and never writes the kernel.

    `scale_init=None`, the default, is torch's $g = \|v\|$; Flax's own is `scale_init=nnx.initializers.ones`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> layer = nj.nnx.WeightNorm(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
      >>> print(layer.scales[("kernel",)].shape)
      (4,)

    References:
      Salimans and Kingma 2016, [Weight Normalization](https://arxiv.org/abs/1602.07868).
    """

    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        feature_axes: Axes = -1,
        use_scale: bool = True,
        scale_init: Initializer | None = None,
        epsilon: float = 1e-12,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        variable_filter: Any = _kernels,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
    ):
        """Takes the arguments of `flax.nnx.WeightNorm`; `promote_dtype` has no effect, in either."""
        self.layer_instance = layer_instance
        self.feature_axes = feature_axes
        self.use_scale, self.scale_init = use_scale, scale_init
        self.epsilon = epsilon
        self.dtype, self.param_dtype = dtype, param_dtype
        self.variable_filter = nnx.filterlib.to_predicate(variable_filter)
        self.promote_dtype = promote_dtype
        params = nnx.state(layer_instance, nnx.Param)
        paths = [path for path, leaf in nnx.to_flat_state(params) if self.variable_filter(path, leaf)]
        self._paths = tuple(_join(path) for path in paths)
        own, _ = by_path(self._rule).init(rngs.params(), params)
        made = {path: nnx.Param(own[_join(path)]["scale"]) for path in paths} if use_scale else None
        self.scales = nnx.data(made)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with normalized kernels."""
        layer = self.baked()
        y = layer(*args, **kwargs)
        _keep(self.layer_instance, layer)
        return y

    def baked(self) -> Any:
        """Returns a copy of the layer whose kernels are the effective ones, for inference without the wrapper."""
        own = {_join(path): {"scale": scale[...]} for path, scale in (self.scales or {}).items()}
        return _effective(self.layer_instance, self._rule, own, {}, train=True)[0]

    def _rule(self, path: str, leaf: Any):
        return flax_weight_norm(self, leaf) if path in self._paths else None


class SpectralNorm(nnx.Module):
    """`flax.nnx.SpectralNorm` that never writes the kernel, with an optional learned scale (σReparam).

    Its order of the power iteration is Flax's; its first vectors have seen 15 steps, as in torch. The vectors and sigma
    are float32, whatever `param_dtype` says.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> layer = nj.nnx.SpectralNorm(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), n_steps=30, rngs=nnx.Rngs(0))
      >>> print(jnp.linalg.norm(layer.baked().kernel[...], 2).round(3))
      1.0

    References:
      Miyato et al. 2018, [Spectral Normalization for Generative Adversarial Networks](https://arxiv.org/abs/1802.05957).
    """

    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        n_steps: int = 1,
        epsilon: float = 1e-12,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        error_on_non_matrix: bool = False,
        update_stats: bool = True,
        use_scale: bool = False,
        scale_init: Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        """Takes the arguments of `flax.nnx.SpectralNorm`, and `use_scale` with `scale_init`."""
        self.layer_instance = layer_instance
        self.n_steps, self.epsilon = n_steps, epsilon
        self.dtype, self.param_dtype = dtype, param_dtype
        self.error_on_non_matrix = error_on_non_matrix
        self.use_scale, self.scale_init = use_scale, scale_init
        self.use_running_average = not update_stats
        params = nnx.state(layer_instance, nnx.Param)
        paths = {_join(path): path for path, _ in nnx.to_flat_state(params)}
        own, state = by_path(self._rule).init(rngs.params(), params)
        self.scales = nnx.data({paths[p]: nnx.Param(v["scale"]) for p, v in own.items() if use_scale})
        stats = {(*paths[p], name): nnx.BatchStat(v) for p, values in state.items() for name, v in values.items()}
        self.batch_stats = nnx.data(stats)

    def __call__(self, x: Any, update_stats: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with kernels of spectral norm 1; `update_stats` says whether the vectors move."""
        layer, state = self._effective(not self.use_running_average if update_stats is None else update_stats)
        y = layer(x, **kwargs)
        _keep(self.layer_instance, layer)
        for path, stat in self.batch_stats.items():
            stat[...] = state[_join(path)]
        return y

    def baked(self) -> Any:
        """Returns a copy of the layer whose kernels are the effective ones, for inference without the wrapper."""
        return self._effective(False)[0]

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets the mode on a view made by `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _effective(self, train: bool) -> tuple[Any, dict[str, jax.Array]]:
        state = _nested({_join(path): stat for path, stat in self.batch_stats.items()})
        own = {_join(path): {"scale": scale[...]} for path, scale in self.scales.items()}
        return _effective(self.layer_instance, self._rule, own, state, train)

    def _rule(self, path: str, leaf: Any):
        return flax_spectral_norm(self, path, leaf)


def _effective(layer: Any, rules: Rules, own: Any, state: Any, train: bool) -> tuple[Any, dict[str, jax.Array]]:
    """A copy of the layer with effective kernels, and the new state by name."""
    graph, weights, rest = nnx.split(layer, nnx.Param, ...)
    _, found = chosen(rules, weights)
    nothing = {path: {} for path in found}
    effective, state = by_path(rules).apply(nothing | own, nothing | state, weights, train=train)
    return nnx.merge(graph, effective, rest), _named(state)


def _keep(layer: Any, called: Any) -> None:
    # Statistics, counters of random streams and caches that the call moved; parameters do not move in a call.
    nnx.update(layer, nnx.state(called, nnx.Not(nnx.Param)))


def _join(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _named(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{path}/{name}": value for path, values in tree.items() for name, value in values.items()}


def _nested(variables: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
    tree: dict[str, dict[str, jax.Array]] = {}
    for where, variable in variables.items():
        path, _, name = where.rpartition("/")
        tree.setdefault(path, {})[name] = variable[...]
    return tree
