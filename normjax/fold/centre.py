r"""From layer norm to RMS norm to CRMS norm (Jiang et al. 2023), on parameters.

Layer norm does not see the mean of its input: if every reader of a residual stream is a layer norm, every writer may
drop the mean of what it writes. The stream is then zero-mean, and layer norm on it is RMS norm with the same epsilon
(rule F6). One entry of a zero-mean vector is implied by the others and need not be stored (rule F7).

The authors' JAX layer subtracts the mean over the kernel's input axis, which leaves outputs with a mean; the axis is
the output's.
"""

from normjax.fold._arrays import Array, Axes, axes_of, check_bias


def center_out(kernel: Array, bias: Array | None = None, *, out_axes: Axes = -1) -> tuple[Array, Array | None]:
    r"""A layer whose outputs have mean zero: $K' = K - \langle K \rangle_{out}$, $b' = b - \langle b \rangle$.

    Rule F6. Exact, in real arithmetic, if every writer of the stream is centred and every reader ignores the mean
    (layer norm does, RMS norm does not: SliceGPT and QuaRot centre the embeddings of RMS models all the same, which
    changes them).

    Args:
      kernel: Of a layer that writes to the stream.
      bias: Of the shape of the output axes, or `None`.
      out_axes: Output axes of the kernel, over which the mean is taken together.

    Returns:
      `(kernel, bias)`.

    Raises:
      ValueError: If a shape does not fit.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> kernel, bias = fold.center_out(np.array([[1.0, 3.0]]), np.array([4.0, 0.0]))
      >>> print(kernel, bias)
      [[-1.  1.]] [ 2. -2.]

    References:
      Jiang et al. 2023, [Pre-RMSNorm and Pre-CRMSNorm Transformers](https://arxiv.org/abs/2305.14858).
    """
    axes = axes_of(out_axes, kernel.ndim, "out_axes")
    check_bias(bias, axes, kernel)
    return kernel - kernel.mean(axes, keepdims=True), None if bias is None else bias - bias.mean()


def center_rows(embedding: Array) -> Array:
    r"""Embedding rows without their mean over the features: $E' = E - \langle E \rangle$ (rule F6).

    Args:
      embedding: `(..., features)`: tokens, positions, a class token.

    Returns:
      An array of the same shape.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> print(fold.center_rows(np.array([[1.0, 3.0], [5.0, 5.0]])))
      [[-1.  1.]
       [ 0.  0.]]

    References:
      Jiang et al. 2023, [Pre-RMSNorm and Pre-CRMSNorm Transformers](https://arxiv.org/abs/2305.14858).
    """
    return embedding - embedding.mean(-1, keepdims=True)


def compress_out(array: Array, *, axis: int = -1) -> Array:
    r"""A centred writer (kernel, bias or embedding) without its last output: $K' = K_{:, :-1}$.

    Rule F7, after F6: the entry left out is minus the sum of the others. A width of $d - 1$ does not fill the 128 lanes
    of a TPU; that is why no plan does this unasked.

    Args:
      array: Of a writer that `center_out` or `center_rows` made.
      axis: The axis of the stream's features.

    Returns:
      The array with one entry less on the axis.

    Raises:
      ValueError: If the axis has fewer than two entries.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> print(fold.compress_out(np.array([[-1.0, 0.0, 1.0]])))
      [[-1.  0.]]

    References:
      Jiang et al. 2023, [Pre-RMSNorm and Pre-CRMSNorm Transformers](https://arxiv.org/abs/2305.14858).
    """
    return _without_last(array, axis)[0]


def compress_in(kernel: Array, *, axis: int = -2) -> Array:
    r"""A reader of a compressed stream: $K' = K_{:-1} - K_{-1}$.

    Rule F7: $\sum_{i<d} z_i K_i + (-\sum_{i<d} z_i) K_d$.

    Args:
      kernel: Of a layer that reads the stream, `(features, out)`.
      axis: The axis of the stream's features.

    Returns:
      The kernel with one entry less on the axis.

    Raises:
      ValueError: If the axis has fewer than two entries.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> print(fold.compress_in(np.array([[1.0], [2.0], [5.0]])).T)
      [[-4. -3.]]

    References:
      Jiang et al. 2023, [Pre-RMSNorm and Pre-CRMSNorm Transformers](https://arxiv.org/abs/2305.14858).
    """
    rest, last = _without_last(kernel, axis)
    return rest - last


def _without_last(array: Array, axis: int) -> tuple[Array, Array]:
    (a,) = axes_of(axis, array.ndim, "axis")
    size = array.shape[a]
    if size < 2:
        raise ValueError(f"axis {axis} of shape {tuple(array.shape)} has {size} features; compressing needs two.")
    before = (slice(None),) * a
    return array[(*before, slice(None, -1))], array[(*before, slice(-1, None))]
