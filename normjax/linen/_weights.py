"""Linen wrappers that give a layer effective kernels; the stored ones are never written. No mathematics in here.

flax.linen's own wrappers store the normalized kernel in `init`, and `SpectralNorm` in every `apply` with mutable
parameters too.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from normjax.precision import Precision, promote
from normjax.weights import WeightTransform, spectral_norm, weight_norm
from normjax.weights._transform import Rules, chosen

Axes = int | tuple[int, ...] | None
Initializer = Any


class Reparametrized(nn.Module):
    """Calls a layer with the effective kernels of any `WeightTransform`s, and leaves the stored ones as they are.

    The layer's parameters stay where they are without the wrapper. The transforms' own parameters (in `"params"`) and
    state (in `state_collection`) are named `"<layer>/<path>/<name>"`, e.g. `"Dense_0/kernel/scale"`. State does not
    move during `init`. For inference, `bake` computes the effective kernels once, for the model without the wrapper.

    Attributes:
      layer_instance: The layer.
      rules: Which of its parameters are reparametrized, and how, as in `by_path`; paths start inside of the layer.
      update_stats: Whether this is a training step, in which state moves; may be given in the call instead.
      state_collection: Collection of the state.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, normjax as nj
      >>> layer = nj.linen.Reparametrized(nn.Dense(2), {"kernel": nj.weight_standardization(unbiased=False)})
      >>> x = jnp.eye(2)
      >>> variables = layer.init(jax.random.key(0), x)
      >>> print(jnp.abs(layer.apply(variables, x)).round(3))
      [[1. 1.]
       [1. 1.]]
    """

    layer_instance: nn.Module
    rules: Any
    update_stats: bool = True
    state_collection: str = "batch_stats"

    @nn.compact
    def __call__(self, *args: Any, update_stats: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with its effective kernels.

        Args:
          *args: The layer's arguments.
          update_stats: Whether this is a training step; `None` takes the attribute.
          **kwargs: The layer's arguments.

        Returns:
          The layer's output.
        """
        train = self.update_stats if update_stats is None else update_stats
        return _call(self, self.rules, train, self.state_collection, args, kwargs)


class WeightNorm(nn.Module):
    r"""`flax.linen.WeightNorm` that starts as the layer it wraps and never writes the kernel.

    Attributes: those of `flax.linen.WeightNorm`. `scale_init=None`, the default, is torch's $g = \|v\|$; Flax's own is
    `scale_init=nn.initializers.ones`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, normjax as nj
      >>> variables = nj.linen.WeightNorm(nn.Dense(4)).init(jax.random.key(0), jnp.ones((1, 3)))
      >>> print(variables["params"]["layer_instance/kernel/scale"].shape)
      (4,)

    References:
      Salimans and Kingma 2016, [Weight Normalization](https://arxiv.org/abs/1602.07868).
    """

    layer_instance: nn.Module
    epsilon: float = 1e-12
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_scale: bool = True
    scale_init: Initializer | None = None
    feature_axes: Axes = -1
    variable_filter: Iterable[str] | None = ("kernel",)

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with normalized kernels."""
        names = tuple(self.variable_filter or ())

        def rule(path, leaf):
            whole = f"{self.layer_instance.name}/{path}"
            return flax_weight_norm(self, leaf) if not names or any(n in whole for n in names) else None

        return _call(self, rule, True, "batch_stats", args, kwargs)


class SpectralNorm(nn.Module):
    """`flax.linen.SpectralNorm` that never writes the kernel, with an optional learned scale (σReparam).

    Attributes: those of `flax.linen.SpectralNorm`, its order of the power iteration included, and `use_scale` with
    `scale_init`. `init` takes 15 steps of the power iteration, as torch does. The vectors and sigma are float32,
    whatever `param_dtype` says.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, normjax as nj
      >>> layer = nj.linen.SpectralNorm(nn.Dense(4), n_steps=30)
      >>> variables = layer.init(jax.random.key(0), jnp.eye(3), update_stats=False)
      >>> effective = layer.apply(variables, jnp.eye(3), update_stats=False)
      >>> print(jnp.linalg.norm(effective, 2).round(3))
      1.0

    References:
      Miyato et al. 2018, [Spectral Normalization for Generative Adversarial Networks](https://arxiv.org/abs/1802.05957).
    """

    layer_instance: nn.Module
    n_steps: int = 1
    epsilon: float = 1e-12
    dtype: Any = None
    param_dtype: Any = jnp.float32
    error_on_non_matrix: bool = False
    collection_name: str = "batch_stats"
    use_scale: bool = False
    scale_init: Initializer | None = None

    @nn.compact
    def __call__(self, *args: Any, update_stats: bool, **kwargs: Any) -> Any:
        """Calls the layer with kernels of spectral norm 1; `update_stats` says whether the vectors move."""

        def rule(path, leaf):
            return flax_spectral_norm(self, path, leaf)

        return _call(self, rule, update_stats, self.collection_name, args, kwargs)


def flax_weight_norm(module: Any, leaf: Any) -> WeightTransform:
    """Returns the transform that a module with the arguments of Flax's `WeightNorm` applies to a leaf."""
    return weight_norm(
        feature_axes=module.feature_axes,
        epsilon=module.epsilon,
        use_scale=module.use_scale,
        scale_init=module.scale_init,
        precision=_precision(module, leaf, with_parameters=module.use_scale),
    )


def flax_spectral_norm(module: Any, path: str, leaf: Any) -> WeightTransform | None:
    """Returns the transform that a module with the arguments of Flax's `SpectralNorm` applies to a leaf, if any."""
    if leaf.ndim <= 1 or module.n_steps < 1:
        return None
    if leaf.ndim > 2 and module.error_on_non_matrix:
        raise ValueError(
            f"Input is {leaf.ndim}D but error_on_non_matrix is True: {path!r} has shape {tuple(leaf.shape)}, not that "
            "of a matrix; without the flag, all axes but the last are taken as one."
        )
    return spectral_norm(
        n_steps=module.n_steps,
        epsilon=module.epsilon,
        order="flax",
        use_scale=module.use_scale,
        scale_init=module.scale_init,
        precision=_precision(module, leaf, with_parameters=True),
    )


def _precision(module: Any, leaf: Any, with_parameters: bool) -> Precision:
    promoted = promote(leaf.dtype, module.param_dtype) if with_parameters else leaf.dtype
    return Precision(output=promoted if module.dtype is None else module.dtype, parameters=module.param_dtype)


def _call(module: Any, rules: Rules, train: bool, collection: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    layer = module.layer_instance
    if module.is_initializing():
        # Makes the layer's variables from its own initializers; the call below only reads them.
        layer(*args, **kwargs)
    train = train and not module.is_initializing()

    def effective(variables):
        # Without parameters of its own (a layer that only calls another) there is nothing to transform.
        tree = variables.get("params", {})
        return {**variables, "params": _effective(module, rules, tree, train, collection)} if tree else variables

    call = nn.map_variables(lambda layer: layer(*args, **kwargs), "params", trans_in_fn=effective)
    return call(layer)


def _effective(module: Any, rules: Rules, tree: Any, train: bool, collection: str) -> Any:
    flat, found = chosen(rules, tree)
    values = {}
    for path, transform in found.items():
        kernel = flat.leaves[path]
        # Shapes name the entries; the values come from the module's own streams.
        params, state = jax.eval_shape(transform.init, jax.random.key(0), kernel)
        where = f"{module.layer_instance.name}/{path}"
        make_param, make_state = _makers(module, transform, kernel)
        params = {name: module.param(f"{where}/{name}", make_param, name) for name in params}
        variables = {name: module.variable(collection, f"{where}/{name}", make_state, name) for name in state}
        state = {name: variable.value for name, variable in variables.items()}
        values[path], state = transform.apply(params, state, kernel, train=train)
        if train:
            for name, variable in variables.items():
                variable.value = state[name]
    return flat.replace(values)


def _makers(module: Any, transform: WeightTransform, kernel: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What makes one parameter and one state entry of a transform, by name."""

    def make_param(rng, name):
        return transform.init(rng, kernel)[0][name]

    @functools.cache
    def draw():
        # Once for all entries: power iteration's vectors only fit together if they come from the same draw.
        rng = module.make_rng("params") if module.has_rng("params") else None
        return transform.init(rng, kernel)[1]

    return make_param, lambda name: draw()[name]
