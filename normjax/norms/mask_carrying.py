r"""The norm of layer masking (Balasubramanian and Feizi 2022): layers that carry a mask of what to look at.

$$y = m \odot f(m \odot x)$$

A network is run with parts of the image removed: every layer hands its mask (1 keep, 0 remove) to the next. The paper
defines the norm in evaluation, by running statistics; in training the norm inside takes its statistics over the mask,
which is ours. State, folding and scale invariance are those of the norm inside. `masked_global_mean` and `fill_holes`
are what else such a network needs.
"""

import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms.batch_norm import batch_norm
from normjax.transform import NormTransform


@method(
    "Mask-carrying normalization (layer masking)",
    "Balasubramanian and Feizi 2022",
    "2211.14646",
    "vision",
    state=("mean", "var", "(count)"),
    folds="all",
    scale_invariance="per unit",
)
def mask_carrying_norm(norm: NormTransform | None = None) -> NormTransform:
    r"""A norm whose output is zero where the mask removes: $y = m \odot f(m \odot x)$; without a mask it is $f$.

    Args:
      norm: The norm inside, with its own parameters and state; `None` is `batch_norm()`.

    Returns:
      The transform, with the parameters and state of the norm inside.

    Raises:
      ValueError: If the mask does not broadcast to the input.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm, x = nj.mask_carrying_norm(nj.layer_norm()), jnp.array([[1.0, 3.0], [jnp.nan, 0.0]])
      >>> params, state = norm.init(None, x)
      >>> print(norm.apply(params, state, x, train=True, mask=jnp.array([[1], [0]]))[0].round(3))
      [[-1.  1.]
       [ 0.  0.]]

    References:
      Balasubramanian and Feizi 2022, [Towards Improved Input Masking](https://arxiv.org/abs/2211.14646).
    """
    inside = batch_norm() if norm is None else norm

    def apply(params, state, x, *, train, mask=None, **context):
        if mask is None:
            return inside.apply(params, state, x, train=train, **context)
        _checks.check_mask(mask, x.shape)
        kept = jnp.asarray(mask).astype(bool)
        kept = kept.reshape((1,) * (x.ndim - kept.ndim) + kept.shape)
        y, state = inside.apply(params, state, jnp.where(kept, x, 0), train=train, mask=kept, **context)
        return jnp.where(kept, y, 0), state

    return NormTransform(inside.init, apply)
