r"""Group-wise deep whitening and colouring, GDWCT (Cho et al. 2019): a style's covariance, group by group.

$$y = \alpha\,(S_g U_g^\top (x_g - \mu_g) + m(s)) + (1 - \alpha)\, x_g,\qquad U_g = S_g / \lVert S_g \rVert_2$$

(column by column). The features are cut into $G$ groups of $n$; one perceptron makes each group's $S_g = C(s_g)$ of
shape $(n, n)$ from its part of the style code, another one the shift $m(s)$; $\alpha$ is learned from 0.6. Nothing is
whitened in the forward pass: two penalties draw the covariance and $U_g$ to the identity. The released code builds the
whole $(C, C)$ matrix and divides by zero columns; here nothing is larger than $(G, n, n)$ and those stay zero. The mean
is over batch and space, in evaluation too: no state. Nothing folds or is scale-invariant.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer
from normjax.norms._coloring import centre, coloring_basis, perceptron
from normjax.norms._context import require
from normjax.norms._conv import init_layer
from normjax.norms.gdwct_coloring import gdwct_coloring
from normjax.precision import TORCH, Precision, output_dtype, statistics_dtype
from normjax.reductions import AxisName
from normjax.transform import NormTransform, stateless


def gdwct_normalize(
    x: jax.Array,
    coloring: jax.Array,
    shift: jax.Array,
    alpha: jax.Array | float = 1.0,
    *,
    feature_axis: int = -1,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Group-wise colouring: $y = \alpha\,(S_g U_g^\top (x_g - \mu_g) + m) + (1 - \alpha)\, x_g$.

    Args:
      x: Floating array `(batch, *space, channels)`.
      coloring: $S$, `(batch or 1, G, n, n)` with $G n$ the number of channels.
      shift: $m$, `(batch or 1, channels)`.
      alpha: $\alpha$, a scalar.
      feature_axis: Channel axis.
      mask: Broadcastable to `x`; zeros do not enter the mean.
      axis_name: Mapped axis over which the batch is sharded.
      precision: Dtypes.

    Returns:
      The coloured array, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If shapes or mask do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x = jnp.array([[[1.0, 1.0], [3.0, 5.0]]])
      >>> print(nj.gdwct_normalize(x, 2 * jnp.eye(2).reshape(1, 1, 2, 2), jnp.zeros((1, 2))))
      [[[-2. -4.]
        [ 2.  4.]]]

    References:
      Cho et al. 2019, [Group-wise Deep Whitening-and-Coloring](https://arxiv.org/abs/1812.09912).
    """
    values, centred, _ = centre(x, feature_axis, mask, axis_name, precision)
    groups, n = coloring.shape[1:3]
    if coloring.shape[2:] != (n, n) or groups * n != centred.shape[-1] or shift.shape[1:] != centred.shape[-1:]:
        raise ValueError(
            f"coloring of shape {coloring.shape} and shift of shape {shift.shape} do not fit the {centred.shape[-1]} "
            "channels: expected (batch, G, n, n) and (batch, G * n)."
        )
    matrix = jnp.broadcast_to(coloring.astype(centred.dtype), (x.shape[0], groups, n, n))
    matrix = jnp.einsum("bgik,bgjk->bgij", matrix, coloring_basis(matrix))
    cut = centred.reshape(*centred.shape[:-1], groups, n)
    colored = jnp.einsum("bgij,b...gj->b...gi", matrix, cut).reshape(centred.shape)
    colored = colored + shift.astype(centred.dtype).reshape(-1, *[1] * (x.ndim - 2), shift.shape[1])
    alpha = jnp.asarray(alpha, centred.dtype).reshape(())
    y = alpha * jnp.moveaxis(colored, -1, feature_axis) + (1 - alpha) * values
    return y.astype(output_dtype(x.dtype, (coloring,), precision))


@method("Group-wise deep whitening and colouring", "Cho et al. 2019", "1812.09912", "vision", context=("style",))
def gdwct(
    *,
    num_groups: int = 8,
    hidden: int = 256,
    alpha: float = 0.6,
    feature_axis: int = -1,
    kernel_init: Initializer | None = None,
    axis_name: AxisName = None,
    precision: Precision = TORCH,
) -> NormTransform:
    """GDWCT as a transform; reads `style=`, codes of shape `(batch or 1, channels)`; no state.

    Args:
      num_groups: Groups of features.
      hidden: Width of the four hidden layers of the perceptron that makes the matrices; that of the shift has two
        hidden layers as wide as the features.
      alpha: Initial weight of the coloured features.
      kernel_init: Initializer of the kernels; uniform within 1 / sqrt(fan in) by default.
      feature_axis, axis_name, precision: As in `gdwct_normalize`.

    Returns:
      The transform; parameters `{"alpha", "coloring", "shift"}`, the latter two perceptrons.

    Raises:
      ValueError: If the groups do not divide the channels, or in use if `style=` is missing or does not fit.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> norm, x = nj.gdwct(num_groups=4, hidden=16), jnp.ones((2, 5, 5, 8))
      >>> params, _ = norm.init(jax.random.key(0), x, style=jnp.ones((2, 8)))
      >>> print(params["alpha"], params["coloring"]["4"]["kernel"].shape)
      0.6 (16, 4)

    References:
      Cho et al. 2019, [Group-wise Deep Whitening-and-Coloring](https://arxiv.org/abs/1812.09912).
    """

    def checked(style, x):
        style = require(style, "gdwct", "style", "codes of shape (batch, channels)")
        channels = x.shape[_checks.canonical_axes(feature_axis, x.ndim, "feature_axis")[0]]
        if num_groups < 1 or channels % num_groups:
            raise ValueError(f"num_groups={num_groups} does not divide the {channels} channels of {x.shape}.")
        if len(style.shape) != 2 or style.shape[0] not in (1, x.shape[0]) or style.shape[1] != channels:
            raise ValueError(f"style= has shape {style.shape}; gdwct expects ({x.shape[0]} or 1, {channels}).")
        return style

    def init_params(rng, x, style=None, **context):
        del context
        channels = checked(style, x).shape[1]
        n = channels // num_groups
        rngs = (None, None) if rng is None else jax.random.split(rng)
        perceptrons = {"coloring": (n, *[hidden] * 4, n * n), "shift": (channels,) * 4}
        params: dict[str, Any] = {"alpha": jnp.asarray(alpha, precision.parameters)}
        for (name, sizes), key in zip(perceptrons.items(), rngs, strict=True):
            pairs = list(itertools.pairwise(sizes))
            keys = [None] * len(pairs) if key is None else jax.random.split(key, len(pairs))
            layers = [init_layer(k, p, precision.parameters, kernel_init) for k, p in zip(keys, pairs, strict=True)]
            params[name] = {str(i): layer for i, layer in enumerate(layers)}
        return params

    def fn(params, x, *, mask, style=None, **context):
        del context
        style = checked(style, x).astype(statistics_dtype(x.dtype, precision))
        coloring = gdwct_coloring(style, params["coloring"], num_groups=num_groups)
        shift = perceptron(style, params["shift"])
        options = {"feature_axis": feature_axis, "axis_name": axis_name, "precision": precision}
        return gdwct_normalize(x, coloring, shift, params["alpha"], mask=mask, **options)

    return stateless(fn, init_params)
