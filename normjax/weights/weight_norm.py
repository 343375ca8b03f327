r"""Weight normalization (Salimans and Kingma 2016): direction and length of every output unit are learned apart.

$$\hat w = g\, \frac{v}{\|v\|}$$

The stored kernel is $v$, the parameter `scale` is $g$. torch starts at $g = \|v\|$, so that the layer begins as if it
were not wrapped, and has no epsilon; Flax starts at $g = 1$ and takes $\sqrt{\|v\|^2 + 10^{-12}}$. No state. A unit of
zeros stays zero, with finite gradients. The kernel's own scale does not matter, unit by unit: its gradient is
orthogonal to it. In evaluation the effective kernel replaces the stored one (`bake`).
"""

import jax

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer
from normjax.precision import TORCH, EpsilonMode, Precision
from normjax.weights._transform import WeightTransform, stateless
from normjax.weights._units import Axes, normalize_units, unit_norms, unit_shape


def weight_normalize(
    kernel: jax.Array,
    scale: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    epsilon: float = 0.0,
    epsilon_mode: EpsilonMode = "inside",
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Weight normalization of a kernel: $g\, v / \|v\|$ for every output unit.

    Args:
      kernel: $v$, floating, e.g. `(in, out)` or `(height, width, in, out)`.
      scale: $g$, of the shape of the feature axes, or `None` for 1.
      feature_axes: Axes that number the output units; the norm is taken over all others. `()` makes the whole kernel
        one unit.
      epsilon: Non-negative number; 0 as in torch, 1e-12 in Flax.
      epsilon_mode: Where epsilon sits: added to $\|v\|^2$ (`"inside"`), to $\|v\|$ (`"outside"`), or as a lower bound
        of $\|v\|$ (`"clamp"`).
      precision: Dtypes and cast order.

    Returns:
      The effective kernel, shaped like `kernel`.

    Raises:
      TypeError: If `kernel` is not floating.
      ValueError: If axes, scale or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.weight_normalize(jnp.array([[3.0], [4.0]]), jnp.array([10.0])).T)
      [[6. 8.]]

    References:
      Salimans and Kingma 2016, [Weight Normalization](https://arxiv.org/abs/1602.07868).
    """
    return normalize_units(kernel, scale, feature_axes, epsilon, epsilon_mode, precision, centre=False, size="norm")


@method(
    "Weight normalization", "Salimans and Kingma 2016", "1602.07868", "weight", folds="all", scale_invariance="per unit"
)
def weight_norm(
    *,
    feature_axes: Axes = -1,
    epsilon: float = 0.0,
    epsilon_mode: EpsilonMode = "inside",
    use_scale: bool = True,
    scale_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> WeightTransform:
    r"""Weight normalization as a transform; parameters `{"scale"}`, no state.

    Args:
      feature_axes: Axes that number the output units.
      epsilon: Non-negative number.
      epsilon_mode: Where epsilon sits.
      use_scale: Whether there is a scale $g$; without it every unit has norm 1.
      scale_init: Initializer of $g$, `f(rng, shape, dtype)`; `None` is torch's $g = \|v\|$.
      precision: Dtypes and cast order.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, _ = nj.weight_norm().init(None, jnp.array([[3.0], [4.0]]))
      >>> print(params["scale"])
      [5.]

    References:
      Salimans and Kingma 2016, [Weight Normalization](https://arxiv.org/abs/1602.07868).
    """
    _checks.check_epsilon(epsilon)

    def init_params(rng, kernel):
        if not use_scale:
            return {}
        if scale_init is None:
            return {"scale": unit_norms(kernel, feature_axes, precision)}
        return {"scale": scale_init(rng, unit_shape(kernel, feature_axes), precision.parameters)}

    def fn(params, kernel):
        rule = {"epsilon": epsilon, "epsilon_mode": epsilon_mode, "precision": precision}
        return weight_normalize(kernel, params.get("scale"), feature_axes=feature_axes, **rule)

    return stateless(fn, init_params)
