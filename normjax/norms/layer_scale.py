r"""LayerScale (Touvron et al. 2021): a small learned factor for each feature of a residual branch.

$$y = \lambda \odot x$$

It does not normalize: it follows a branch, $x + \lambda \odot F(N(x))$, and lets a deep network start near the
identity. No state. It folds into the linear layer before it, whose weights it does not make scale-invariant.
"""

import jax

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, affine, default_init, init_affine
from normjax.precision import TORCH, Precision, statistics_dtype
from normjax.reductions import prepare
from normjax.transform import NormTransform, stateless


def scale_features(
    x: jax.Array,
    scale: jax.Array,
    *,
    feature_axes: _checks.Axes = -1,
    mask: jax.Array | None = None,
    precision: Precision = TORCH,
) -> jax.Array:
    r"""LayerScale of an array: $y = \lambda \odot x$.

    Args:
      x: Floating array of any shape.
      scale: $\lambda$, of the shape of the feature axes.
      feature_axes: Axes on which it lives.
      mask: Broadcastable to `x`; what is not finite at its zeros is taken as 0.
      precision: Dtypes; the product is rounded once.

    Returns:
      The product, shaped like `x`.

    Raises:
      TypeError: If `x` is not floating.
      ValueError: If the mask or the scale does not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> print(nj.scale_features(jnp.array([[2.0, 3.0]]), jnp.array([0.5, 2.0])))
      [[1. 6.]]

    References:
      Touvron et al. 2021, [Going deeper with Image Transformers](https://arxiv.org/abs/2103.17239).
    """
    _checks.check_input(x)
    features = _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
    values, _ = prepare(x, mask, statistics_dtype(x.dtype, precision))
    return affine(values, x, scale, None, features, precision)


@method("LayerScale", "Touvron et al. 2021", "2103.17239", "pointwise", folds="all")
def layer_scale(
    *,
    init_value: float = 1e-5,
    feature_axes: _checks.Axes = -1,
    scale_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> NormTransform:
    r"""LayerScale as a transform; parameters `{"scale"}`, no state.

    Args:
      init_value: Initial $\lambda$, smaller for deeper networks: 0.1 to 1e-6 in the literature.
      feature_axes: Axes on which it lives.
      scale_init: Initializer that takes the place of `init_value`.
      precision: Dtypes.

    Returns:
      The transform.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> branch = nj.chain(nj.rms_norm(), nj.layer_scale(init_value=0.1))
      >>> params, state = branch.init(None, jnp.ones((2, 3)))
      >>> print(branch.apply(params, state, jnp.array([[2.0, 2.0, 2.0]]), train=True)[0].round(3))
      [[0.1 0.1 0.1]]

    References:
      Touvron et al. 2021, [Going deeper with Image Transformers](https://arxiv.org/abs/2103.17239).
    """
    initializer = default_init(scale_init, init_value)

    def init_params(rng, x, **context):
        del context
        features = _checks.canonical_axes(feature_axes, x.ndim, "feature_axes")
        return init_affine(rng, tuple(x.shape[a] for a in features), precision, initializer, None)

    def fn(params, x, *, mask, **context):
        del context
        return scale_features(x, params["scale"], feature_axes=feature_axes, mask=mask, precision=precision)

    return stateless(fn, init_params)
