r"""The colouring matrices of GDWCT (Cho et al. 2019) and their penalty.

$$S_g = C(s_g),\qquad U_g = S_g / \lVert S_g \rVert_2 \text{ column by column},\qquad R_c = \text{mean}\,|U_g - I|$$

The paper asks for orthogonal $U_g$; the released code draws them to the identity itself, with weight 10, and so does
this. Over several layers the values are averaged.
"""

from collections.abc import Mapping
from typing import Any

import jax

from normjax.norms._coloring import coloring_basis, distance_to_identity, perceptron
from normjax.norms._groups import split_groups


def gdwct_coloring(style: jax.Array, layers: Mapping[str, Any], *, num_groups: int) -> jax.Array:
    r"""The groups' matrices $S_g = C(s_g)$ by one perceptron (leaky ReLU between layers) for all groups.

    Args:
      style: Style codes, floating, `(batch, channels)`.
      layers: `{"0", "1", ...}`, each `{"kernel", "bias"}`, from n to n² features.
      num_groups: $G$.

    Returns:
      Array of shape `(batch, G, n, n)`.

    Raises:
      ValueError: If the channels cannot be cut into so many groups.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> norm, style = nj.gdwct(num_groups=2, hidden=8), jnp.ones((3, 6))
      >>> params, _ = norm.init(jax.random.key(0), jnp.ones((3, 4, 4, 6)), style=style)
      >>> nj.gdwct_coloring(style, params["coloring"], num_groups=2).shape
      (3, 2, 3, 3)

    References:
      Cho et al. 2019, [Group-wise Deep Whitening-and-Coloring](https://arxiv.org/abs/1812.09912).
    """
    grouped, _ = split_groups(style, None, 1, num_groups=num_groups)
    n = grouped.shape[-1]
    return perceptron(grouped, layers).reshape(*grouped.shape[:2], n, n)


def coloring_penalty(coloring: jax.Array) -> jax.Array:
    r"""$R_c = \text{mean}\,|U_g - I|$, the distance of the column-normalized colouring matrices to the identity.

    Args:
      coloring: Matrices `(..., n, n)`, as returned by `gdwct_coloring`.

    Returns:
      A scalar.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> float(nj.coloring_penalty(3 * jnp.eye(2)))
      0.0

    References:
      Cho et al. 2019, [Group-wise Deep Whitening-and-Coloring](https://arxiv.org/abs/1812.09912).
    """
    return distance_to_identity(coloring_basis(coloring))
