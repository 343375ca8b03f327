r"""Centred weight normalization (Huang et al. 2017): every output unit has mean zero and a fixed length.

$$\hat w = g\, \frac{c}{\|c\| + \epsilon},\qquad c = w - \langle w \rangle$$

$g$ is the constant 1.414 of the authors' torch code, or learned from there. Their Lua code has no epsilon and centres
the stored weights in place; here they stay as they are. No state. The kernel's scale and mean do not matter, unit by
unit, up to epsilon. In evaluation the effective kernel replaces the stored one (`bake`).
"""

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.precision import TORCH, EpsilonMode, Precision
from normjax.weights._transform import WeightTransform, stateless
from normjax.weights._units import Axes, normalize_units, unit_shape


def centred_weight_normalize(
    kernel: jax.Array,
    scale: jax.Array | float = 1.414,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 1e-5,
    epsilon_mode: EpsilonMode = "outside",
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Centred weight normalization of a kernel: $g\, c / (\|c\| + \epsilon)$ for every output unit.

    Args:
      kernel: Floating, e.g. `(in, out)` or `(height, width, in, out)`.
      scale: $g$: one number, or an array of the shape of the feature axes.
      feature_axes: Axes that number the output units; mean and norm are taken over all others.
      epsilon: Non-negative number.
      epsilon_mode: Where epsilon sits; the authors add it to the norm (`"outside"`).
      precision: Dtypes and cast order.

    Returns:
      The effective kernel, shaped like `kernel`.

    Raises:
      TypeError: If `kernel` is not floating.
      ValueError: If axes, scale or epsilon do not fit, or a unit has a single weight.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.centred_weight_normalize(jnp.array([[1.0], [3.0]]), epsilon=0.0).T.round(3))
      [[-1.  1.]]

    References:
      Huang et al. 2017, [Centered Weight Normalization in Accelerating Training of Deep Neural
      Networks](https://openaccess.thecvf.com/content_iccv_2017/html/Huang_Centered_Weight_Normalization_ICCV_2017_paper.html).
    """
    constant = isinstance(scale, int | float)
    gains, factor = (None, scale) if constant else (scale, 1.0)
    rule = (epsilon, epsilon_mode, precision)
    return normalize_units(kernel, gains, feature_axes, *rule, centre=True, size="norm", factor=factor)


@method("Centred weight normalization", "Huang et al. 2017", None, "weight", folds="all", scale_invariance="per unit")
def centred_weight_norm(
    *,
    feature_axes: Axes = -1,
    gain: float = 1.414,
    use_scale: bool = False,
    epsilon: float = 1e-5,
    epsilon_mode: EpsilonMode = "outside",
    precision: Precision = TORCH,
) -> WeightTransform:
    """Centred weight normalization as a transform; parameters `{"scale"}` if asked for, no state.

    Args:
      feature_axes: Axes that number the output units.
      gain: The length of every unit, or where the scale starts.
      use_scale: Whether the length is learned, unit by unit.
      epsilon: Non-negative number.
      epsilon_mode: Where epsilon sits.
      precision: Dtypes and cast order.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, _ = nj.centred_weight_norm(use_scale=True).init(None, jnp.ones((3, 2)))
      >>> print(params["scale"])
      [1.414 1.414]

    References:
      Huang et al. 2017, [Centered Weight Normalization in Accelerating Training of Deep Neural
      Networks](https://openaccess.thecvf.com/content_iccv_2017/html/Huang_Centered_Weight_Normalization_ICCV_2017_paper.html).
    """
    _checks.check_epsilon(epsilon)

    def init_params(rng, kernel):
        del rng
        if not use_scale:
            return {}
        return {"scale": jnp.full(unit_shape(kernel, feature_axes), gain, precision.parameters)}

    def fn(params, kernel):
        rule = {"epsilon": epsilon, "epsilon_mode": epsilon_mode, "precision": precision}
        return centred_weight_normalize(kernel, params.get("scale", gain), feature_axes=feature_axes, **rule)

    return stateless(fn, init_params)
