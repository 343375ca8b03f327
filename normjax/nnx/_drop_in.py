"""nnx modules with Flax's own names, arguments, parameters and variables; the mathematics is in `normjax.norms`.

Flax rounds the input (and the running statistics) to `dtype` before it takes statistics; here they are taken from the
input as it came and only the result is rounded. `use_fast_variance` is accepted and has no effect.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from normjax import norms
from normjax._compat import flax_axes, flax_precision
from normjax.linen._drop_in import channel_axes, group_reduction_axes
from normjax.norms._groups import check_groups
from normjax.norms._running_statistics import update_running

Axes = int | tuple[int, ...]
Initializer = Any
Metadata = Mapping[str, Any]
_ones = nnx.initializers.ones_init()
_zeros = nnx.initializers.zeros_init()
_nothing: Metadata = MappingProxyType({})


def _param(use: bool, init: Initializer, shape, dtype, rngs: nnx.Rngs, metadata: Metadata):
    return nnx.Param(init(rngs.params(), shape, dtype), **metadata) if use else nnx.data(None)


def _promoted(module: Any, x: jax.Array, *names: str) -> list[Any]:
    """Returns the input and the named variables, as the module's own `promote_dtype` leaves them."""
    variables = [getattr(module, name) for name in names]
    values = [None if v is None else v[...] for v in variables]
    if module.promote_dtype is dtypes.promote_dtype:
        return [x, *values]
    return list(module.promote_dtype((x, *values), dtype=module.dtype))


def _fit(parameter: Any, x: jax.Array, axes: tuple[int, ...]) -> Any:
    # Flax stores one flat vector even where several axes are features.
    shape = tuple(x.shape[a] for a in axes)
    if parameter is None or parameter.size != math.prod(shape):
        return parameter
    return parameter.reshape(shape)


def _common(module: Any, x: jax.Array, mask: Any, *promoted: jax.Array | None) -> dict[str, Any]:
    return {
        "epsilon": module.epsilon,
        "mask": mask,
        "axis_name": module.axis_name,
        "axis_index_groups": module.axis_index_groups,
        "precision": flax_precision(x, module.dtype, promoted),
    }


class LayerNorm(nnx.Module):
    """`flax.nnx.LayerNorm` with accurate statistics, from the unrounded input, and masks that may be empty.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> layer = nj.nnx.LayerNorm(3, rngs=nnx.Rngs(0))
      >>> print(layer(jnp.array([[999.0, 1000.0, 1001.0]])).round(3))
      [[-1.225  0.     1.225]]

    References:
      Ba, Kiros and Hinton 2016, [Layer Normalization](https://arxiv.org/abs/1607.06450).
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = _zeros,
        scale_init: Initializer = _ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: str | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = _nothing,
        scale_metadata: Metadata = _nothing,
    ):
        """Takes the arguments of `flax.nnx.LayerNorm`; `use_fast_variance` has no effect."""
        self.scale = _param(use_scale, scale_init, (num_features,), param_dtype, rngs, scale_metadata)
        self.bias = _param(use_bias, bias_init, (num_features,), param_dtype, rngs, bias_metadata)
        self.num_features = num_features
        self.epsilon = epsilon
        self.dtype, self.param_dtype = dtype, param_dtype
        self.use_bias, self.use_scale = use_bias, use_scale
        self.reduction_axes, self.feature_axes = reduction_axes, feature_axes
        self.axis_name, self.axis_index_groups = axis_name, axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes `x` over `reduction_axes`; `mask` broadcasts to it."""
        x, scale, bias = _promoted(self, x, "scale", "bias")
        features = flax_axes(self.feature_axes, x.ndim, "feature_axes")
        return norms.layer_normalize(
            x,
            _fit(scale, x, features),
            _fit(bias, x, features),
            axis=flax_axes(self.reduction_axes, x.ndim, "reduction_axes"),
            feature_axes=features,
            **_common(self, x, mask, scale, bias),
        )


class RMSNorm(nnx.Module):
    """`flax.nnx.RMSNorm` with statistics from the unrounded input and masks that may be empty.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> print(nj.nnx.RMSNorm(2, rngs=nnx.Rngs(0))(jnp.array([[3.0, -3.0]])).round(3))
      [[ 1. -1.]]

    References:
      Zhang and Sennrich 2019, [Root Mean Square Layer Normalization](https://arxiv.org/abs/1910.07467).
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_scale: bool = True,
        scale_init: Initializer = _ones,
        reduction_axes: Axes = -1,
        feature_axes: Axes = -1,
        axis_name: str | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        scale_metadata: Metadata = _nothing,
    ):
        """Takes the arguments of `flax.nnx.RMSNorm`; `use_fast_variance` has no effect."""
        self.scale = _param(use_scale, scale_init, (num_features,), param_dtype, rngs, scale_metadata)
        self.num_features = num_features
        self.epsilon = epsilon
        self.dtype, self.param_dtype = dtype, param_dtype
        self.use_scale = use_scale
        self.reduction_axes, self.feature_axes = reduction_axes, feature_axes
        self.axis_name, self.axis_index_groups = axis_name, axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes `x` over `reduction_axes`; `mask` broadcasts to it."""
        x, scale = _promoted(self, x, "scale")
        features = flax_axes(self.feature_axes, x.ndim, "feature_axes")
        return norms.rms_normalize(
            x,
            _fit(scale, x, features),
            axis=flax_axes(self.reduction_axes, x.ndim, "reduction_axes"),
            feature_axes=features,
            **_common(self, x, mask, scale),
        )


class GroupNorm(nnx.Module):
    """`flax.nnx.GroupNorm` with accurate statistics, from the unrounded input, and masks that only broadcast.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> layer = nj.nnx.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
      >>> print(layer(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(3))
      [[-1.  1. -1.  1.]]

    References:
      Wu and He 2018, [Group Normalization](https://arxiv.org/abs/1803.08494).
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = _zeros,
        scale_init: Initializer = _ones,
        reduction_axes: Axes | None = None,
        axis_name: str | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = _nothing,
        scale_metadata: Metadata = _nothing,
    ):
        """Takes the arguments of `flax.nnx.GroupNorm`; `use_fast_variance` has no effect."""
        check_groups(jax.ShapeDtypeStruct((1, num_features), jnp.float32), 1, num_groups, group_size)
        self.num_groups = num_groups if group_size is None else num_features // group_size
        self.group_size = group_size if num_groups is None else num_features // num_groups
        self.scale = _param(use_scale, scale_init, (num_features,), param_dtype, rngs, scale_metadata)
        self.bias = _param(use_bias, bias_init, (num_features,), param_dtype, rngs, bias_metadata)
        self.feature_axis = -1
        self.epsilon = epsilon
        self.dtype, self.param_dtype = dtype, param_dtype
        self.use_bias, self.use_scale = use_bias, use_scale
        self.reduction_axes = reduction_axes
        self.axis_name, self.axis_index_groups = axis_name, axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes `x` group by group; `mask` broadcasts to it."""
        axis = group_reduction_axes(self.reduction_axes, x.ndim)
        x, scale, bias = _promoted(self, x, "scale", "bias")
        return norms.group_normalize(
            x, scale, bias, num_groups=self.num_groups, axis=axis, **_common(self, x, mask, scale, bias)
        )


class InstanceNorm(nnx.Module):
    """`flax.nnx.InstanceNorm` with accurate statistics, from the unrounded input, and masks that may be empty.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> layer = nj.nnx.InstanceNorm(2, rngs=nnx.Rngs(0))
      >>> print(layer(jnp.array([[[1.0, 10.0], [3.0, 30.0]]]))[0].round(3))
      [[-1. -1.]
       [ 1.  1.]]

    References:
      Ulyanov et al. 2016, [Instance Normalization](https://arxiv.org/abs/1607.08022).
    """

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float = 1e-6,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = _zeros,
        scale_init: Initializer = _ones,
        feature_axes: Axes = -1,
        axis_name: str | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = _nothing,
        scale_metadata: Metadata = _nothing,
    ):
        """Takes the arguments of `flax.nnx.InstanceNorm`; `use_fast_variance` has no effect."""
        self.scale = _param(use_scale, scale_init, (num_features,), param_dtype, rngs, scale_metadata)
        self.bias = _param(use_bias, bias_init, (num_features,), param_dtype, rngs, bias_metadata)
        self.num_features = num_features
        self.epsilon = epsilon
        self.dtype, self.param_dtype = dtype, param_dtype
        self.use_bias, self.use_scale = use_bias, use_scale
        self.feature_axes = feature_axes
        self.axis_name, self.axis_index_groups = axis_name, axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype

    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes every channel of every example of `x`; `mask` broadcasts to it."""
        axes = channel_axes(self.feature_axes, x.ndim)
        x, scale, bias = _promoted(self, x, "scale", "bias")
        common = _common(self, x, mask, scale, bias)
        return norms.instance_normalize(x, _fit(scale, x, axes), _fit(bias, x, axes), feature_axes=axes, **common)


class BatchNorm(nnx.Module):
    """`flax.nnx.BatchNorm` with accurate float32 statistics, count-weighted merging and masks that may be empty.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> layer = nj.nnx.BatchNorm(1, momentum=0.5, rngs=nnx.Rngs(0))
      >>> y = layer(jnp.array([[1.0], [3.0]]))
      >>> print(layer.mean[...], layer.var[...])
      [1.] [1.]

    References:
      Ioffe and Szegedy 2015, [Batch Normalization](https://arxiv.org/abs/1502.03167).
    """

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = _zeros,
        scale_init: Initializer = _ones,
        axis_name: str | None = None,
        axis_index_groups: Any = None,
        use_fast_variance: bool = True,
        promote_dtype: Any = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = _nothing,
        scale_metadata: Metadata = _nothing,
    ):
        """Takes the arguments of `flax.nnx.BatchNorm`; `use_fast_variance` has no effect."""
        self.mean = nnx.BatchStat(jnp.zeros((num_features,), jnp.float32))
        self.var = nnx.BatchStat(jnp.ones((num_features,), jnp.float32))
        self.scale = _param(use_scale, scale_init, (num_features,), param_dtype, rngs, scale_metadata)
        self.bias = _param(use_bias, bias_init, (num_features,), param_dtype, rngs, bias_metadata)
        self.num_features = num_features
        self.use_running_average = use_running_average
        self.axis = axis
        self.momentum, self.epsilon = momentum, epsilon
        self.dtype, self.param_dtype = dtype, param_dtype
        self.use_bias, self.use_scale = use_bias, use_scale
        self.axis_name, self.axis_index_groups = axis_name, axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalizes `x` by its batch or by the running statistics; `mask` broadcasts to it."""
        average = self.use_running_average if use_running_average is None else use_running_average
        if average is None:
            raise ValueError(
                "No `use_running_average` argument was provided to BatchNorm: pass it to the constructor or to the "
                "call, or set it with model.train(), model.eval() or nnx.view."
            )
        axes = flax_axes(self.axis, x.ndim, "axis")
        x, mean, var, scale, bias = _promoted(self, x, "mean", "var", "scale", "bias")
        # In Flax the float32 running statistics take part in the promotion, whether they are used or not.
        promoted = (mean, var) if self.promote_dtype is dtypes.promote_dtype else ()
        common = _common(self, x, mask, *promoted, scale, bias)
        scale, bias = _fit(scale, x, axes), _fit(bias, x, axes)
        if average:
            mean, var = _fit(mean, x, axes), _fit(var, x, axes)
            keywords = {name: common[name] for name in ("epsilon", "mask", "precision")}
            return norms.normalize_with_statistics(x, mean, var, scale, bias, feature_axes=axes, **keywords)
        y, moments = norms.batch_normalize(x, scale, bias, feature_axes=axes, **common)
        running = update_running({"mean": self.mean[...], "var": self.var[...]}, moments, self.momentum)
        self.mean[...], self.var[...] = running["mean"], running["var"]
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Sets `use_running_average` on a view made by `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average
