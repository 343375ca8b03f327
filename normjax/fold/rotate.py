r"""Orthogonal rotations of a residual stream (rule F16), as QuaRot and SliceGPT use them before quantization.

RMS norm without a gain commutes with an orthogonal matrix: $N(x Q) = N(x)\,Q$. If everything that writes to the stream
writes $K Q$ and every reader reads $Q^\top K$, the network computes what it did, and outlying features of the stream
are spread over all of them.
"""

import numpy as np
from flax import nnx

from normjax import _checks
from normjax._method import made
from normjax.fold import _stream
from normjax.fold._arrays import Array, axes_of, namespace
from normjax.fold._rebuild import filled, marked, rebuilt
from normjax.fold._tree import Leaves
from normjax.fold.apply import Dtype
from normjax.optim._paths import boxed_leaves, listing

# Rotations come in float32 at least: their products with themselves are within some eps of the identity.
_ORTHOGONAL = 1e-5


def rotate_out(array: Array, rotation: Array, *, axis: int = -1) -> Array:
    r"""A writer (kernel, bias or embedding) of a rotated stream: $K' = K Q$.

    Rule F16.

    Args:
      array: Of a layer that writes to the stream.
      rotation: $Q$, `(features, features)`.
      axis: The axis of the stream's features.

    Returns:
      An array of the same shape.

    Raises:
      ValueError: If the shapes do not fit.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> print(fold.rotate_out(np.array([[1.0, 2.0]]), np.array([[0.0, 1.0], [-1.0, 0.0]])))
      [[-2.  1.]]

    References:
      Ashkboos et al. 2024, [QuaRot](https://arxiv.org/abs/2404.00456); Ashkboos et al. 2024,
      [SliceGPT](https://arxiv.org/abs/2401.15024).
    """
    (a,) = axes_of(axis, array.ndim, "axis")
    size = array.shape[a]
    if tuple(rotation.shape) != (size, size):
        raise ValueError(
            f"a rotation of shape {tuple(rotation.shape)} on axis {axis} of shape {tuple(array.shape)}; expected "
            f"({size}, {size})."
        )
    xp = namespace(array, rotation)
    return xp.moveaxis(xp.matmul(xp.moveaxis(array, a, -1), rotation), -1, a)


def rotate_in(kernel: Array, rotation: Array, *, axis: int = -2) -> Array:
    r"""A reader of a rotated stream: $K' = Q^\top K$.

    Rule F16. The norm between stream and reader must be RMS norm without a gain, or with the same one for all features.

    Args:
      kernel: Of a layer that reads the stream, `(features, out)`.
      rotation: $Q$, orthogonal, `(features, features)`.
      axis: The axis of the stream's features.

    Returns:
      An array of the same shape.

    Raises:
      ValueError: If the shapes do not fit.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> print(fold.rotate_in(np.array([[1.0], [2.0]]), np.array([[0.0, 1.0], [-1.0, 0.0]])).T)
      [[-2.  1.]]

    References:
      Ashkboos et al. 2024, [QuaRot](https://arxiv.org/abs/2404.00456); Ashkboos et al. 2024,
      [SliceGPT](https://arxiv.org/abs/2401.15024).
    """
    # Row i of Q^T K is the sum over j of Q_ji K_j: the same product on the other axis.
    return rotate_out(kernel, rotation, axis=axis)


def rotate_model(model: _stream.Model, rotation: Array, *, dtype: Dtype = "float64") -> _stream.Model:
    """Rotates the residual stream of a Pre-RMSNorm model whose norms have no gains: the same function.

    Args:
      model: A language model or ViT with RMS norms before its sublayers and at its end, whose gains were folded
        (`fold_model`, after `to_pre_rms` for Pre-LN); it is not changed.
      rotation: Orthogonal, `(features, features)`: random, Hadamard's, or of principal components.
      dtype: As in `apply`.

    Returns:
      The model; what was marked for inference only stays so.

    Raises:
      TypeError: If the model is no `LanguageModel`, `Encoder` or `ViT`.
      ValueError: If the matrix is not orthogonal, a norm is none of RMS, a gain is left, or something reads or writes
        the stream that does not rotate; says what and the way out.

    Example:
      >>> import jax.numpy as jnp, normjax as nj, numpy as np
      >>> from flax import nnx
      >>> from normjax import fold
      >>> config = nj.models.presets.llama(layers=1, features=8, heads=2, hidden=16)
      >>> model = nj.models.LanguageModel(config, vocabulary=11, tied=False, rngs=nnx.Rngs(0))
      >>> folded, _ = fold.fold_model(model)
      >>> rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))
      >>> fold.verify(model, fold.rotate_model(folded, rotation), jnp.array([[1, 2, 3]]), tolerance=1e-5).passed
      True

    References:
      Ashkboos et al. 2024, [QuaRot](https://arxiv.org/abs/2404.00456); Ashkboos et al. 2024,
      [SliceGPT](https://arxiv.org/abs/2401.15024).
    """
    _checks.check_choice("dtype", dtype, Dtype)
    _stream.check_model(model)
    state = nnx.state(model)
    leaves, turn = Leaves(state, dtype), np.asarray(rotation, np.float64)
    _check_rotation(turn, model.stack.config.features)
    reason = _stream.obstacle(model) or _not_rotatable(model, leaves)
    if reason is not None:
        raise ValueError(f"this model does not rotate: {reason}")
    for layers, _ in _stream.writers(model):
        for path in (path for layer in layers for path in (layer.kernel_path, layer.bias_path) if leaves.has(path)):
            leaves.set(path, rotate_out(leaves.get(path), _like(turn, leaves.get(path))))
    for path in filter(leaves.has, _stream.readers(model)):
        leaves.set(path, rotate_in(leaves.get(path), _like(turn, leaves.get(path))))
    values = boxed_leaves(leaves.tree(state, keep_dtype=True, mark=False))
    return filled(rebuilt(model), values, marked(values))


def _like(rotation: np.ndarray, array: Array) -> Array:
    return rotation if isinstance(array, np.ndarray) else rotation.astype(array.dtype)


def _check_rotation(rotation: np.ndarray, features: int) -> None:
    if rotation.shape != (features, features):
        raise ValueError(
            f"a rotation of shape {rotation.shape}; expected ({features}, {features}), the model's features."
        )
    error = np.max(np.abs(rotation.T @ rotation - np.eye(features)))
    if not error <= _ORTHOGONAL:
        raise ValueError(f"Q^T Q differs from the identity by {error:.2g}; expected an orthogonal matrix.")


def _not_rotatable(model: _stream.Model, leaves: Leaves) -> str | None:
    told = made(model.stack.config.placement.norm)
    if told is None or told.name != "rms_norm" or told.argument("axis") != -1:
        return "its norm is not rms_norm over the last axis, and only that commutes with a rotation; see to_pre_rms."
    kinds = ("before/scale", "before/bias", "final_norm/scale", "final_norm/bias")
    offset = told.argument("scale_offset")
    identity = {"scale": 1 - offset, "bias": 0}
    norms = [path for path in leaves.boxed if path.endswith(kinds)]
    left = [path for path in norms if np.any(np.asarray(leaves.get(path)) != identity[path.rpartition("/")[2]])]
    return (
        f"{listing(left)} are not folded, and gains do not commute with a rotation; fold_model first." if left else None
    )
