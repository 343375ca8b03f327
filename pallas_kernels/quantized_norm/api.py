"""The public call: `quantized_rms_norm`, with its checks, choice of implementation and placement."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import _axes, _dispatch
from pallas_kernels._dispatch import Implementation
from pallas_kernels._operation import Operation, differentiable
from pallas_kernels._placement import Placement, check_whole_rows, placement
from pallas_kernels.quantized_norm import gpu, reference, tpu
from pallas_kernels.quantized_norm.formula import DTYPES, Quantized

FORWARD = {"xla": reference.forward, "mosaic_tpu": tpu.forward, "triton": gpu.forward}
# On a GPU XLA takes three kernels, which read x twice.
GPU_DEFAULT = ("triton", "triton")


def quantized_rms_norm(
    x: jax.Array,
    scale: jax.Array | None = None,
    *,
    dtype: jax.typing.DTypeLike = jnp.int8,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
    implementation: Implementation | None = None,
    mesh: Mesh | None = None,
    spec: PartitionSpec | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    r"""RMS normalization with an output of one byte an element and a scale for each row, as XLA or as one kernel.

    $$y = \operatorname{RMSNorm}(x)\,(w + o),\qquad s = \frac{\max_i |y_i|}{q},\qquad
      \text{values} = \operatorname{round}(y / s)$$

    where $q$ is the largest number of the dtype: what a matrix product of int8 or float8 takes. The norm itself is
    never rounded and never reaches memory. For inference: there is no derivative.

    Args:
      x, scale, axis, epsilon, scale_offset, mesh, interpret: As in `rms_norm`.
      implementation: As in `rms_norm`, except that `None` means Triton on GPUs.
      dtype: Of the values: int8 (from -127 to 127, ties to even), float8_e4m3fn or float8_e5m2.
      spec: As in `rms_norm`; the values are split as `x` is and the row scales as its rows are.

    Returns:
      `(values, row_scale)`: values like `x` in `dtype`, and float32 scales with normalized axes of size one, such that
      `values * row_scale` is the norm. A row of zeros has a tiny scale, not zero.

    Raises:
      TypeError, ValueError, NotImplementedError: As `layer_norm`, if the dtype is another, and on differentiation.

    Example:
      >>> import jax.numpy as jnp, pallas_kernels
      >>> values, row_scale = pallas_kernels.quantized_rms_norm(jnp.array([[3.0, -1.5]]), jnp.array([1.0, 2.0]))
      >>> print(values, (values * row_scale).round(2))
      [[ 127 -127]] [[ 1.26 -1.26]]

    References:
      Xiao et al. 2022, [SmoothQuant](https://arxiv.org/abs/2211.10438).
    """
    axes = _axes.normalized_axes(x, axis)
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}.")
    if scale is None and scale_offset:
        raise ValueError(f"scale_offset={scale_offset} is added to a scale, but scale is None; pass zeros for it.")
    _axes.check_parameter("scale", scale, x, axes)
    if jnp.dtype(dtype).name not in DTYPES:
        raise ValueError(f"dtype={jnp.dtype(dtype).name!r} is no dtype of the values; expected one of {DTYPES}.")
    chosen = _dispatch.choose(implementation, GPU_DEFAULT)[0]
    settings = Quantized(axes, float(epsilon), float(scale_offset), jnp.dtype(dtype).name, interpret)
    place = placement(x, axes, mesh, spec)
    split = place is not None and place.features
    if implementation is None and chosen != "xla" and (split or not _axes.fits_kernel(chosen, x, scale)):
        chosen = "xla"
    if chosen == "xla":
        return _run(settings, chosen, None, x, scale)  # XLA partitions it.
    _axes.check_kernel_dtype(chosen, x, scale)
    check_whole_rows(chosen, place)
    return _run(settings, chosen, place, x, scale)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    settings: Quantized, chosen: str, place: Placement | None, x: jax.Array, scale: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    operation = Operation(
        _without_derivative(FORWARD[chosen]),
        lambda *_: (),
        settings,
        inputs=("tensor", "feature"),
        outputs=("tensor", "kept"),
        saved=(),
        placement=place,
    )
    outputs: tuple = differentiable(operation, x, scale)
    return outputs[0], outputs[1]


@functools.cache
def _without_derivative(forward: Callable) -> Callable:
    def outputs(settings: Quantized, inputs: tuple, save: bool) -> tuple[tuple, tuple]:
        if save:
            raise NotImplementedError(
                "quantized_rms_norm has no derivative, since rounding has none; differentiate rms_norm and quantize "
                "its output by a straight-through rule of your own."
            )
        return forward(settings, *inputs), ()

    return outputs
