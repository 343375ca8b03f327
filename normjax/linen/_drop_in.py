"""Linen modules with Flax's own names, arguments, parameters and collections; the mathematics is in `normjax.norms`.

`use_fast_variance` is accepted and has no effect: the accurate variance is always used.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.module import merge_param

from normjax import norms
from normjax._compat import flax_axes, flax_precision
from normjax.norms._running_statistics import update_running

Axes = int | tuple[int, ...]
Initializer = Any
_ones = nn.initializers.ones
_zeros = nn.initializers.zeros


def _affine(module: Any, shape: tuple[int, ...], use_bias: bool) -> tuple[jax.Array | None, jax.Array | None]:
    scale = module.param("scale", module.scale_init, shape, module.param_dtype) if module.use_scale else None
    bias = module.param("bias", module.bias_init, shape, module.param_dtype) if use_bias else None
    return scale, bias


def _features(x: jax.Array, axes: Axes) -> tuple[int, ...]:
    return tuple(x.shape[a] for a in flax_axes(axes, x.ndim, "feature_axes"))


def _common(module: Any, x: jax.Array, mask: Any, *parameters: jax.Array | None) -> dict[str, Any]:
    # During init the mapped axis does not exist, and nothing depends on the statistics.
    synced = module.axis_name is not None and not module.is_initializing()
    return {
        "epsilon": module.epsilon,
        "mask": mask,
        "axis_name": module.axis_name if synced else None,
        "axis_index_groups": module.axis_index_groups if synced else None,
        "precision": flax_precision(x, module.dtype, parameters, module.force_float32_reductions),
    }


class LayerNorm(nn.Module):
    """`flax.linen.LayerNorm` with accurate statistics and masks that may be empty.

    Attributes: those of `flax.linen.LayerNorm`. `use_fast_variance` has no effect.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> x = jnp.array([[999.0, 1000.0, 1001.0]])
      >>> y, variables = nj.linen.LayerNorm().init_with_output(jax.random.key(0), x)
      >>> print(y.round(3), sorted(variables["params"]))
      [[-1.225  0.     1.225]] ['bias', 'scale']

    References:
      Ba, Kiros and Hinton 2016, [Layer Normalization](https://arxiv.org/abs/1607.06450).
    """

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = _zeros
    scale_init: Initializer = _ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: str | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes `x` over `reduction_axes`; `mask` broadcasts to it."""
        scale, bias = _affine(self, _features(x, self.feature_axes), self.use_bias)
        return norms.layer_normalize(
            x,
            scale,
            bias,
            axis=flax_axes(self.reduction_axes, x.ndim, "reduction_axes"),
            feature_axes=flax_axes(self.feature_axes, x.ndim, "feature_axes"),
            **_common(self, x, mask, scale, bias),
        )


class RMSNorm(nn.Module):
    """`flax.linen.RMSNorm` with masks that may be empty.

    Attributes: those of `flax.linen.RMSNorm`. `use_fast_variance` has no effect.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> y, _ = nj.linen.RMSNorm().init_with_output(jax.random.key(0), jnp.array([[3.0, -3.0]]))
      >>> print(y.round(3))
      [[ 1. -1.]]

    References:
      Zhang and Sennrich 2019, [Root Mean Square Layer Normalization](https://arxiv.org/abs/1910.07467).
    """

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = _ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: str | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes `x` over `reduction_axes`; `mask` broadcasts to it."""
        scale, _ = _affine(self, _features(x, self.feature_axes), use_bias=False)
        return norms.rms_normalize(
            x,
            scale,
            axis=flax_axes(self.reduction_axes, x.ndim, "reduction_axes"),
            feature_axes=flax_axes(self.feature_axes, x.ndim, "feature_axes"),
            **_common(self, x, mask, scale),
        )


class GroupNorm(nn.Module):
    """`flax.linen.GroupNorm` with accurate statistics and masks that only broadcast.

    Attributes: those of `flax.linen.GroupNorm`. `use_fast_variance` has no effect.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> x = jnp.array([[1.0, 3.0, 10.0, 30.0]])
      >>> y, _ = nj.linen.GroupNorm(num_groups=2).init_with_output(jax.random.key(0), x)
      >>> print(y.round(3))
      [[-1.  1. -1.  1.]]

    References:
      Wu and He 2018, [Group Normalization](https://arxiv.org/abs/1803.08494).
    """

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = _zeros
    scale_init: Initializer = _ones
    reduction_axes: Axes | None = None
    axis_name: str | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes `x` group by group; `mask` broadcasts to it."""
        axis = group_reduction_axes(self.reduction_axes, x.ndim)
        scale, bias = _affine(self, (x.shape[-1],), self.use_bias)
        return norms.group_normalize(
            x,
            scale,
            bias,
            num_groups=self.num_groups,
            group_size=self.group_size,
            axis=axis,
            **_common(self, x, mask, scale, bias),
        )


def group_reduction_axes(axes: Axes | None, ndim: int) -> tuple[int, ...] | None:
    """Returns the reduction axes of a group norm, which must include the last one, as Flax demands."""
    if axes is None:
        return None
    canonical = flax_axes(axes, ndim, "reduction_axes")
    if ndim - 1 not in canonical:
        raise ValueError(
            f"The reduction axes must include the final dimension as this is assumed to be the feature axis; "
            f"got reduction_axes={axes!r} for an input of rank {ndim}."
        )
    return canonical


class InstanceNorm(nn.Module):
    """`flax.linen.InstanceNorm` with accurate statistics and masks that may be empty.

    Attributes: those of `flax.linen.InstanceNorm`. `use_fast_variance` has no effect.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
      >>> y, _ = nj.linen.InstanceNorm().init_with_output(jax.random.key(0), x)
      >>> print(y[0].round(3))
      [[-1. -1.]
       [ 1.  1.]]

    References:
      Ulyanov et al. 2016, [Instance Normalization](https://arxiv.org/abs/1607.08022).
    """

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = _zeros
    scale_init: Initializer = _ones
    feature_axes: Axes = -1
    axis_name: str | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Normalizes every channel of every example of `x`; `mask` broadcasts to it."""
        axes = channel_axes(self.feature_axes, x.ndim)
        scale, bias = _affine(self, _features(x, axes), self.use_bias)
        return norms.instance_normalize(x, scale, bias, feature_axes=axes, **_common(self, x, mask, scale, bias))


def channel_axes(axes: Axes, ndim: int) -> tuple[int, ...]:
    """Returns the channel axes of an instance norm, which must not include the batch axis."""
    canonical = flax_axes(axes, ndim, "feature_axes")
    if 0 in canonical:
        raise ValueError(
            "The channel axes cannot include the leading dimension as this is assumed to be the batch axis; "
            f"got feature_axes={axes!r} for an input of rank {ndim}."
        )
    return canonical


class BatchNorm(nn.Module):
    """`flax.linen.BatchNorm` with accurate statistics, count-weighted merging and masks that may be empty.

    Attributes: those of `flax.linen.BatchNorm`. `use_fast_variance` has no effect.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> layer = nj.linen.BatchNorm(use_running_average=False, momentum=0.5)
      >>> x = jnp.array([[1.0], [3.0]])
      >>> variables = layer.init(jax.random.key(0), x)
      >>> y, updates = layer.apply(variables, x, mutable=["batch_stats"])
      >>> print(updates["batch_stats"]["mean"], updates["batch_stats"]["var"])
      [1.] [1.]

    References:
      Ioffe and Szegedy 2015, [Batch Normalization](https://arxiv.org/abs/1502.03167).
    """

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = _zeros
    scale_init: Initializer = _ones
    axis_name: str | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalizes `x` by its batch or by the running statistics; `mask` broadcasts to it."""
        average = merge_param("use_running_average", self.use_running_average, use_running_average)
        axes = flax_axes(self.axis, x.ndim, "axis")
        shape = _features(x, axes)
        dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(shape, dtype))
        var = self.variable("batch_stats", "var", lambda: jnp.ones(shape, dtype))
        scale, bias = _affine(self, shape, self.use_bias)
        common = _common(self, x, mask, scale, bias)
        if average:
            keywords = {name: common[name] for name in ("epsilon", "mask", "precision")}
            return norms.normalize_with_statistics(x, mean.value, var.value, scale, bias, feature_axes=axes, **keywords)
        if self.is_initializing():
            # One example of a batch that vmap will map over may have no batch axis of its own yet.
            features = tuple(a + 1 for a in axes)
            return norms.batch_normalize(x[None], scale, bias, feature_axes=features, **common)[0][0]
        y, moments = norms.batch_normalize(x, scale, bias, feature_axes=axes, **common)
        running = update_running({"mean": mean.value, "var": var.value}, moments, self.momentum)
        mean.value, var.value = running["mean"], running["var"]
        return y
