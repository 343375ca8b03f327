r"""Layer normalization in integers (I-ViT): the root by Newton's steps, everything else by shifts and one division.

$$y = x - \lfloor \langle x \rangle \rceil,\quad V = \sum y^2,\quad k \approx \lfloor\sqrt V\rfloor,\quad
o = \left\lfloor \tfrac12\, y \left\lfloor \tfrac{2^{31}-1}{k} \right\rfloor \right\rfloor +
\left\lfloor \frac{\beta}{\gamma} \frac{2^{30}}{\sqrt n} \right\rfloor$$

with the output's scale $\gamma \sqrt n / 2^{30}$. No epsilon. The authors take ten steps of
$k \leftarrow \lfloor (k + \lfloor V/k \rfloor)/2 \rfloor$ from $2^{16}$: exact for $\sqrt V$ from 256 on, 3 % too large
at 128, 30 % at 64, four times at 16. Eight-bit inputs with few features are that small. Started at a power of two next
above the root, the same steps converge.

A reference in NumPy's int64. $V$ does not fit 32 bits for 16-bit inputs: hardware needs two words or a shift first.
"""

import math

import numpy as np

_ROOT_BITS, _STEPS = 16, 10


def integer_layer_normalize(
    x: np.ndarray, scale: np.ndarray, bias: np.ndarray, *, compatible: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    r"""Layer normalization of integers, in integers.

    The scale of the input does not matter to it, as to any layer norm without epsilon.

    Args:
      x: Integers, `(..., features)`, at most 31 bits.
      scale: $\gamma$, `(features,)`, without zeros; negative ones give negative output scales.
      bias: $\beta$, likewise.
      compatible: Whether the root takes the authors' ten steps from $2^{16}$, with their errors; otherwise it is exact.

    Returns:
      `(codes, output_scale)`: int64 shaped like `x`, and float64 `(features,)`; their product is the normalized array.

    Raises:
      TypeError: If `x` holds no integers.
      ValueError: If some $\gamma$ is 0: the bias is stored as a multiple of it.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> codes, scale = fold.integer_layer_normalize(np.array([[100, 200, 300]]), np.ones(3), np.zeros(3))
      >>> print((codes * scale).round(2))
      [[-1.23  0.    1.23]]

    References:
      Li and Gu 2023, [I-ViT](https://arxiv.org/abs/2207.01405).
    """
    if not np.issubdtype(x.dtype, np.integer):
        raise TypeError(f"expected integers, got {x.dtype}; quantize first, e.g. np.round(x / s).astype(np.int32).")
    if np.any(scale == 0):
        raise ValueError(
            f"{np.sum(scale == 0)} of {scale.size} gains are 0, and the bias is stored in units of them: such features "
            "are constant. Fold them into the bias of the next layer, or give them a small gain."
        )
    features = x.shape[-1]
    values = x.astype(np.int64)
    centred = values - np.round(values.mean(-1, keepdims=True)).astype(np.int64)
    square = np.sum(centred * centred, -1, keepdims=True)
    factor = (2**31 - 1) // (_ten_steps(square) if compatible else integer_root(square))
    unit = math.sqrt(features) / 2**30
    shift = np.floor(np.asarray(bias, np.float64) / np.asarray(scale, np.float64) / unit).astype(np.int64)
    return (centred * factor) // 2 + shift, np.asarray(scale, np.float64) * unit


def _ten_steps(square: np.ndarray) -> np.ndarray:
    root = np.full_like(square, 2**_ROOT_BITS)
    for _ in range(_STEPS):
        root = (root + square // root) // 2
    return root


def integer_root(square: np.ndarray) -> np.ndarray:
    r"""$\max(\lfloor \sqrt V \rfloor, 1)$ by Newton's integer steps, from a power of two not below the root.

    Args:
      square: $V \geq 0$, integers below $2^{62}$.

    Returns:
      int64 of the same shape; 1 for 0, so that a constant row is divided by 1.

    Example:
      >>> import numpy as np
      >>> from normjax.fold import integer_root
      >>> print(integer_root(np.array([0, 24, 25, 10**12])))
      [      1       4       5 1000000]
    """
    square = np.asarray(square, np.int64)
    _, bits = np.frexp(square.astype(np.float64))
    root = np.int64(1) << ((bits.astype(np.int64) + 1) // 2)
    while True:
        # From above, the steps fall until they have reached the floor of the root.
        smaller = (root + square // np.maximum(root, 1)) // 2
        if not np.any(smaller < root):
            return np.maximum(root, 1)
        root = np.minimum(root, smaller)
