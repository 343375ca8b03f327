r"""Exact rules that move gains within attention and along a residual stream."""

from collections.abc import Sequence

from normjax.fold._arrays import Array, added, count_of
from normjax.fold.rules import Pair, affine_after, affine_before


def qk_gains(
    query: Array, key: Array, *, rotated: int = 0, interleaved: bool = False, kv_heads: int = 1
) -> tuple[Array, Array]:
    r"""The gains of normalized queries and keys as one: $g_q' = g_q \odot g_k$, $g_k' = 1$.

    Rule F11: scores are $\sum_i g_{q,i} \hat q_i\, g_{k,i} \hat k_i$. A rotary embedding between gain and product
    commutes with the keys' gain only where this is equal within each rotated pair.

    Args:
      query: $g_q$, `(head,)`, or `(heads * head,)` for a norm over the whole projection.
      key: $g_k$, `(head,)`, or `(kv_heads * head,)`.
      rotated: How many leading features of a head are rotated after the gain; 0 without rotation.
      interleaved: Whether pairs are neighbours; otherwise $i$ and $i$ + `rotated` / 2.
      kv_heads: Number of key heads in `key`; each serves as many query heads as there are for one.

    Returns:
      `(query, key)` gains, shaped as given.

    Raises:
      ValueError: If shapes do not fit or the keys' gain differs within a rotated pair.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> fold.qk_gains(np.array([2.0, 3.0]), np.array([0.5, 1.0]))
      (array([1., 3.]), array([1., 1.]))
    """
    if key.shape[0] % kv_heads or query.shape[0] % key.shape[0]:
        raise ValueError(
            f"query gains of shape {tuple(query.shape)}, key gains of shape {tuple(key.shape)} and kv_heads={kv_heads} "
            "do not fit: expected (heads * head,) and (kv_heads * head,) with heads a multiple of kv_heads."
        )
    keys = key.reshape(kv_heads, 1, -1)
    if rotated and unequal_pairs(keys, rotated, interleaved):
        raise ValueError(
            f"the key gains differ within a rotated pair ({unequal_pairs(keys, rotated, interleaved)} of "
            f"{kv_heads * rotated // 2} pairs): they do not commute with the rotation. Keep both gains."
        )
    shared = query.reshape(kv_heads, -1, keys.shape[-1]) * keys
    return shared.reshape(query.shape), key * 0 + 1


def unequal_pairs(gains: Array, rotated: int, interleaved: bool) -> int:
    """Counts the pairs of rotated features (on the last axis) whose gains differ."""
    turned = gains[..., :rotated]
    half = rotated // 2
    pairs = (turned[..., 0::2], turned[..., 1::2]) if interleaved else (turned[..., :half], turned[..., half:])
    return count_of(pairs[0] != pairs[1])


def scale_stream(
    writers: Sequence[Pair], readers: Sequence[Pair], scale: Array, shift: Array | None = None
) -> tuple[list[Pair], list[Pair]]:
    r"""An affine map at the end of a residual stream, moved into everything that writes to the stream.

    Rule F15: every writer becomes $K \odot a$, $b \odot a$; every reader before the end $a^{-1} \odot K$; the last
    writer's bias gets $s$. Exact if all writers and readers of the stream since its last change of width are named, and
    poor in rounding where some $a$ is small: it is never part of an automatic plan.

    Args:
      writers: `(kernel, bias)` of the layers that write, the last one last; kernels `(..., features)`.
      readers: `(kernel, bias)` of the linear layers that read the stream before its end; kernels `(features, ...)`.
      scale: $a$, `(features,)`, without zeros.
      shift: $s$, or `None` for 0.

    Returns:
      The new writers and readers.

    Raises:
      ValueError: If there is no writer or some $a$ is 0.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> writers, readers = fold.scale_stream([(np.ones((1, 2)), None)], [], np.array([2.0, 4.0]), np.ones(2))
      >>> print(*writers[0])
      [[2. 4.]] [1. 1.]

    References:
      Guo et al. 2024, [SLAB](https://arxiv.org/abs/2405.11582), the Swin models' last norm.
    """
    if not writers or count_of(scale == 0):
        raise ValueError(f"expected a writer and scales other than 0, got {len(writers)} writers and scale {scale!r}.")
    scaled = [affine_after(kernel, bias, scale) for kernel, bias in writers]
    kernel, bias = scaled[-1]
    scaled[-1] = kernel, added(bias, shift)
    return scaled, [affine_before(kernel, bias, 1 / scale) for kernel, bias in readers]
