r"""Norm parameters and residual streams of one network in the feature order of another (OT fusion).

A map $T$, `(features of the first, features of the second)`, has columns that sum to 1: column $j$ says which features
of the first network the second's feature $j$ is made of. A permutation matrix reorders, exactly: normalization does not
mind the order. A soft map mixes features; mean and variance of mixed features are not those of the features, so a norm
with mapped parameters is then an approximation, whatever the map. Solvers of the transport problem are not here.
"""

from typing import Literal

from normjax import _checks
from normjax.fold._arrays import Array, namespace

ResidualPolicy = Literal["mean", "residual", "block", "weighted scalar", "weighted matrix"]


def apply_map_norm(
    scale: Array, bias: Array | None, channel_map: Array, other: tuple[Array, Array | None], weight: float = 0.5
) -> tuple[Array, Array | None]:
    r"""Aligns a norm's parameters by the map of its input and averages: $\gamma = (1-a)\,\gamma_0 T + a\,\gamma_1$.

    The norm has no map of its own: its output is mapped as its input is. Exact for permutations only.

    Args:
      scale: $\gamma_0$, `(features,)`, of the network that is aligned.
      bias: $\beta_0$, or `None`.
      channel_map: $T$, `(features of 0, features of 1)`; columns sum to 1.
      other: $(\gamma_1, \beta_1)$ of the network that it is aligned to.
      weight: $a$; 0 gives the aligned parameters alone.

    Returns:
      `(scale, bias)`.

    Raises:
      ValueError: If shapes do not fit or one norm has a bias and the other none.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> swap = np.array([[0.0, 1.0], [1.0, 0.0]])
      >>> print(*fold.apply_map_norm(np.array([1.0, 3.0]), None, swap, (np.array([5.0, 5.0]), None)))
      [4. 3.] None

    References:
      Imfeld et al. 2024, [Transformer Fusion with Optimal Transport](https://arxiv.org/abs/2310.05719).
    """
    _checks.check_fraction("weight", weight)
    own, theirs = (scale, bias), other
    if channel_map.shape != (scale.shape[0], other[0].shape[0]) or (bias is None) != (other[1] is None):
        raise ValueError(
            f"a map of shape {tuple(channel_map.shape)} with scales of shapes {tuple(scale.shape)} and "
            f"{tuple(other[0].shape)}, biases {'' if bias is None else 'not '}None and "
            f"{'' if other[1] is None else 'not '}None: expected a map (features of 0, features of 1) and biases in "
            "both norms or none."
        )
    mixed = [
        None if a is None or b is None else (1 - weight) * (a @ channel_map) + weight * b
        for a, b in zip(own, theirs, strict=True)
    ]
    return mixed[0], mixed[1]


def residual_map(
    policy: ResidualPolicy,
    residual: Array,
    block: Array,
    *,
    residual_activations: Array | None = None,
    block_activations: Array | None = None,
) -> Array:
    r"""The map of a residual sum, from those of its two summands: $T = T_r D + T_b (1 - D)$.

    Args:
      policy: $D$: 1/2 for `"mean"`, 1 for `"residual"`, 0 for `"block"`; the residual's share of the mean absolute
        activation, of all features (`"weighted scalar"`) or of each (`"weighted matrix"`).
      residual: $T_r$.
      block: $T_b$, of the same shape.
      residual_activations: `(samples, features of 1)`, for the weighted policies.
      block_activations: Likewise.

    Returns:
      The map, of the same shape.

    Raises:
      ValueError: If the policy is unknown, a weighted one gets no activations, or the shapes differ.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> print(fold.residual_map("mean", np.eye(2), np.ones((2, 2)) / 2))
      [[0.75 0.25]
       [0.25 0.75]]

    References:
      Imfeld et al. 2024, [Transformer Fusion with Optimal Transport](https://arxiv.org/abs/2310.05719).
    """
    _checks.check_choice("policy", policy, ResidualPolicy)
    if residual.shape != block.shape:
        raise ValueError(f"maps of shapes {tuple(residual.shape)} and {tuple(block.shape)}; expected equal ones.")
    if not policy.startswith("weighted"):
        share = {"mean": 0.5, "residual": 1.0, "block": 0.0}[policy]
        return share * residual + (1 - share) * block
    if residual_activations is None or block_activations is None:
        raise ValueError(f"policy={policy!r} needs residual_activations= and block_activations=, (samples, features).")
    xp = namespace(residual_activations, block_activations)
    axes = 0 if policy == "weighted matrix" else None
    sizes = [xp.mean(xp.abs(a), axis=axes) for a in (residual_activations, block_activations)]
    total = sizes[0] + sizes[1]
    share = xp.where(total > 0, sizes[0] / xp.where(total > 0, total, 1), 0.5).reshape(1, -1)
    return residual * share + block * (1 - share)
