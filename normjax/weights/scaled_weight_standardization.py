r"""Scaled weight standardization (Brock et al. 2021): standardized units that keep the variance of the signal.

$$\hat w = g\, \gamma\, \frac{w - \langle w \rangle}{\sqrt n\, \sqrt{\sigma^2 + \epsilon}}\quad\text{(timm)},\qquad
\hat w = g\, \gamma\, \frac{w - \langle w \rangle}{\sqrt{\max(n\,\sigma^2,\ \epsilon)}}\quad\text{(NF-Nets)}$$

over a fan-in of $n$ weights with their biased variance; $g$ is learned unit by unit and starts at 1, $\gamma$ is the
constant of the activation that follows. No state. The kernel's scale and mean do not matter, unit by unit, up to
epsilon. A published torch port of NF-Nets takes the unbiased variance, and in 1-D counts all weights of the kernel as
fan-in; neither is done here. A fan-in of 1 raises. In evaluation the effective kernel replaces the stored one (`bake`).
"""

import math
from typing import Literal, get_args

import jax

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, default_init
from normjax.precision import TORCH, Precision
from normjax.weights._transform import WeightTransform, stateless
from normjax.weights._units import Axes, fan_in, normalize_units, unit_shape

EpsilonRule = Literal["add", "max"]


def scaled_weight_standardize(
    kernel: jax.Array,
    scale: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    gamma: float = 1.0,
    epsilon_rule: EpsilonRule = "add",
    epsilon: float | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""Scaled weight standardization of a kernel: $g\gamma (w - \langle w\rangle) / (\sqrt n\,\sigma)$ per output unit.

    Args:
      kernel: Floating, e.g. `(in, out)` or `(height, width, in / groups, out)`.
      scale: $g$, of the shape of the feature axes, or `None` for 1.
      feature_axes: Axes that number the output units; mean and variance are taken over all others.
      gamma: Constant gain of the activation, e.g. 1.7139588594436646 for ReLU.
      epsilon_rule: `"add"` adds epsilon to $\sigma^2$ (timm), `"max"` bounds $n\sigma^2$ by it from below (NF-Nets).
      epsilon: Non-negative number; `None` is 1e-6 added or 1e-4 as the bound, as published.
      precision: Dtypes and cast order.

    Returns:
      The effective kernel, shaped like `kernel`.

    Raises:
      TypeError: If `kernel` is not floating.
      ValueError: If axes, scale, epsilon or its rule do not fit, or a unit has a single weight.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> kernel = jnp.array([[1.0], [3.0], [1.0], [3.0]])
      >>> print(nj.scaled_weight_standardize(kernel, epsilon_rule="max").T)
      [[-0.5  0.5 -0.5  0.5]]

    References:
      Brock, De and Smith 2021, [Characterizing signal propagation to close the performance gap in unnormalized
      ResNets](https://arxiv.org/abs/2101.08692).
    """
    epsilon = checked_epsilon(epsilon_rule, epsilon)
    if epsilon_rule == "max":
        rule = (math.sqrt(epsilon), "clamp", precision)
        return normalize_units(kernel, scale, feature_axes, *rule, centre=True, size="norm", factor=gamma)
    factor = gamma / math.sqrt(max(fan_in(kernel, feature_axes), 1))
    rule = (epsilon, "inside", precision)
    return normalize_units(kernel, scale, feature_axes, *rule, centre=True, size="std", factor=factor)


def checked_epsilon(rule: EpsilonRule, epsilon: float | None) -> float:
    """Returns epsilon, or the published one of that rule."""
    if rule not in get_args(EpsilonRule):
        raise ValueError(f"epsilon_rule={rule!r} is unknown; expected one of {get_args(EpsilonRule)}.")
    epsilon = {"add": 1e-6, "max": 1e-4}[rule] if epsilon is None else epsilon
    _checks.check_epsilon(epsilon)
    return epsilon


@method(
    "Scaled weight standardization",
    "Brock, De and Smith 2021",
    "2101.08692",
    "weight",
    folds="all",
    scale_invariance="per unit",
)
def scaled_weight_standardization(
    *,
    feature_axes: Axes = -1,
    gamma: float = 1.0,
    epsilon_rule: EpsilonRule = "add",
    epsilon: float | None = None,
    use_scale: bool = True,
    scale_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> WeightTransform:
    """Scaled weight standardization as a transform; parameters `{"scale"}`, no state.

    Args:
      feature_axes: Axes that number the output units.
      gamma: Constant gain of the activation.
      epsilon_rule: Whether epsilon is added (timm) or a lower bound (NF-Nets).
      epsilon: Non-negative number; `None` is the published one of the rule.
      use_scale: Whether there is a learned gain, unit by unit.
      scale_init: Initializer of that gain; ones by default.
      precision: Dtypes and cast order.

    Returns:
      The transform.

    Raises:
      ValueError: If epsilon is negative or its rule is unknown.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> params, _ = nj.scaled_weight_standardization().init(None, jnp.ones((3, 3, 8, 2)))
      >>> print(params["scale"])
      [1. 1.]

    References:
      Brock, De and Smith 2021, [Characterizing signal propagation to close the performance gap in unnormalized
      ResNets](https://arxiv.org/abs/2101.08692); Brock et al. 2021, [High-Performance Large-Scale Image Recognition
      Without Normalization](https://arxiv.org/abs/2102.06171).
    """
    epsilon = checked_epsilon(epsilon_rule, epsilon)
    initialize = default_init(scale_init, 1.0)

    def init_params(rng, kernel):
        shape = unit_shape(kernel, feature_axes)
        return {"scale": initialize(rng, shape, precision.parameters)} if use_scale else {}

    def fn(params, kernel):
        rule = {"gamma": gamma, "epsilon_rule": epsilon_rule, "epsilon": epsilon, "precision": precision}
        return scaled_weight_standardize(kernel, params.get("scale"), feature_axes=feature_axes, **rule)

    return stateless(fn, init_params)
