r"""Weight standardization (Qiao et al. 2019): every output unit has mean zero and variance one over its fan-in.

$$\hat w = \frac{w - \langle w \rangle}{\sigma_w}$$

Four denominators are in circulation, all of them settings of one function:

| source | denominator | `unbiased`, `epsilon_mode`, `epsilon` |
|---|---|---|
| authors' README, torch (the default) | $\sigma_{n-1} + \epsilon$ | `True`, `"outside"`, 1e-5 |
| authors' README, TensorFlow | $\sigma_n + \epsilon$ | `False`, `"outside"`, 1e-5 |
| authors' Batch-Channel Normalization | $\sqrt{\sigma_{n-1}^2 + \epsilon}$ | `True`, `"inside"`, 1e-5 |
| timm `StdConv2d`, BiT | $\sqrt{\sigma_n^2 + \epsilon}$ | `False`, `"inside"`, 1e-6 |

For layers that a normalization follows. No state. The kernel's scale and mean do not matter, unit by unit, up to
epsilon, which is not small where the fan-in's spread is. A fan-in of 1 raises: the unbiased code gives NaN there, the
biased code 0. In evaluation the effective kernel replaces the stored one (`bake`).
"""

import jax

from normjax import _checks
from normjax._method import method
from normjax.precision import TORCH, EpsilonMode, Precision
from normjax.weights._transform import WeightTransform, stateless
from normjax.weights._units import Axes, normalize_units


def weight_standardize(
    kernel: jax.Array,
    scale: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-5,
    epsilon_mode: EpsilonMode = "outside",
    unbiased: bool = True,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Weight standardization of a kernel: $(w - \langle w\rangle) / (\sigma_w + \epsilon)$ for every output unit.

    Args:
      kernel: Floating, e.g. `(in, out)` or `(height, width, in / groups, out)`.
      scale: Multiplied to every unit, of the shape of the feature axes; `None` as published.
      feature_axes: Axes that number the output units; mean and deviation are taken over all others.
      epsilon: Non-negative number.
      epsilon_mode: Where epsilon sits: added to the deviation (`"outside"`) or to the variance (`"inside"`).
      unbiased: Whether the variance is divided by $n - 1$.
      precision: Dtypes and cast order.

    Returns:
      The effective kernel, shaped like `kernel`.

    Raises:
      TypeError: If `kernel` is not floating.
      ValueError: If axes, scale or epsilon do not fit, or a unit has a single weight.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.weight_standardize(jnp.array([[1.0], [3.0]]), unbiased=False).T.round(3))
      [[-1.  1.]]

    References:
      Qiao et al. 2019, [Micro-Batch Training with Batch-Channel Normalization and Weight
      Standardization](https://arxiv.org/abs/1903.10520).
    """
    size = "unbiased std" if unbiased else "std"
    return normalize_units(kernel, scale, feature_axes, epsilon, epsilon_mode, precision, centre=True, size=size)


@method("Weight standardization", "Qiao et al. 2019", "1903.10520", "weight", folds="all", scale_invariance="per unit")
def weight_standardization(
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-5,
    epsilon_mode: EpsilonMode = "outside",
    unbiased: bool = True,
    precision: Precision = TORCH,
) -> WeightTransform:
    """Weight standardization as a transform; neither parameters nor state.

    Args:
      feature_axes: Axes that number the output units.
      epsilon: Non-negative number.
      epsilon_mode: Where epsilon sits.
      unbiased: Whether the variance is divided by one less than the fan-in.
      precision: Dtypes and cast order.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> bit = nj.weight_standardization(unbiased=False, epsilon_mode="inside", epsilon=1e-6)
      >>> effective, _ = bit.apply({}, {}, jnp.array([[1.0], [3.0]]), train=True)
      >>> print(effective.T.round(3))
      [[-1.  1.]]

    References:
      Qiao et al. 2019, [Micro-Batch Training with Batch-Channel Normalization and Weight
      Standardization](https://arxiv.org/abs/1903.10520).
    """
    _checks.check_epsilon(epsilon)

    def fn(params, kernel):
        del params
        rule = {"epsilon": epsilon, "epsilon_mode": epsilon_mode, "unbiased": unbiased, "precision": precision}
        return weight_standardize(kernel, feature_axes=feature_axes, **rule)

    return stateless(fn)
