r"""Coordinate-aware modulation, CAM (Lee et al. 2024): scale and shift read from small grids at each coordinate.

$$y = \gamma(p)\,\text{norm}(x) + \beta(p)$$

$\gamma$ and $\beta$ are interpolated (bi-)linearly in grids that start at 1 and 0; the context `coordinates=` holds $p$
in [0, 1] per axis of the grid. The norm is a value, since the published codes differ in its axes (each without affine):

- images: `layer_norm(epsilon=1e-5)` over the features of one coordinate, grid (32, 32);
- video: `instance_norm(epsilon=1e-5)` over space, a grid over time and `per_channel=True`;
- radiance fields: `group_norm(num_groups=1)` over the samples and features of a ray, grid (10, 3) over directions;
- one-dimensional signals: `None`, grid (64,).

At exactly $t = 1$ the released video code reads past its grid; here that is the last point. State and scale invariance
are the norm's; nothing folds.
"""

from collections.abc import Callable, Sequence

import jax

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, affine_inits, init_affine
from normjax.norms._context import require
from normjax.norms._inner import apply_inner, check_transform
from normjax.norms._modulate import modulate
from normjax.norms.grid_interpolation import Padding, interpolate_grid
from normjax.precision import TORCH, Precision, output_dtype, promote, statistics_dtype
from normjax.reductions import prepare
from normjax.transform import NormTransform, stateless

# Values that are masked out may be NaN, which the gradient of the grids must not see.
_WITHOUT_NORM = stateless(lambda params, x, *, mask, **context: prepare(x, mask, x.dtype)[0])


@method(
    "Coordinate-aware modulation",
    "Lee et al. 2024",
    "2311.14993",
    "vision",
    state=("(mean)", "(var)"),
    context=("coordinates",),
    scale_invariance="joint",
)
def coordinate_modulation(
    norm: NormTransform | None,
    resolution: int | Sequence[int],
    *,
    per_channel: bool = False,
    padding: Padding = "border",
    grid_map: Callable[[jax.Array], jax.Array] | None = None,
    feature_axis: int = -1,
    scale_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> NormTransform:
    """Coordinate-aware modulation as a transform; reads `coordinates=`, its state is the norm's.

    Coordinates have the shape `(*leading, axes)`: their leading axes are those of the input (sizes 1 broadcast), and
    all further axes of the input share the scale and shift.

    Args:
      norm: The norm inside, without scale and bias of its own, or `None`.
      resolution: Points of the grid along each coordinate.
      per_channel: Whether each feature has a grid of its own.
      padding: What lies outside the grid.
      grid_map: Applied to both grids before they are read, e.g. a quantization with a straight-through gradient.
      feature_axis: Axis of the features where `per_channel`.
      scale_init, bias_init: Initializers of the grids; ones and zeros by default.
      precision: Dtypes.

    Returns:
      The transform; parameters `{"norm", "scale", "bias"}`.

    Raises:
      TypeError: If `norm` is neither a transform nor `None`.
      ValueError: If the resolution is empty, or in use if the coordinates are missing or do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> norm = nj.coordinate_modulation(nj.layer_norm(use_scale=False, use_bias=False), (32, 32))
      >>> x, pixels = jnp.ones((100, 16)), jnp.zeros((100, 2))
      >>> params, state = norm.init(None, x, coordinates=pixels)
      >>> params["scale"].shape, norm.apply(params, state, x, train=True, coordinates=pixels)[0].shape
      ((32, 32), (100, 16))

    References:
      Lee et al. 2024, [Coordinate-Aware Modulation for Neural Fields](https://arxiv.org/abs/2311.14993).
    """
    inner = _WITHOUT_NORM if norm is None else norm
    check_transform("coordinate_modulation", inner)
    sizes = (resolution,) if isinstance(resolution, int) else tuple(resolution)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"expected at least one positive size of the grid, got resolution={resolution!r}.")
    inits = affine_inits(scale_init, bias_init)

    def checked(coordinates, x):
        wanted = f"positions in [0, 1] of shape (*leading axes of the input, {len(sizes)})"
        coordinates = require(coordinates, "coordinate_modulation", "coordinates", wanted)
        _checks.check_input(coordinates)
        (feature,) = _checks.canonical_axes(feature_axis, x.ndim, "feature_axis")
        *leading, axes = coordinates.shape
        fits = all(c in (1, size) for c, size in zip(leading, x.shape, strict=False))
        if axes != len(sizes) or not fits or len(leading) > (feature if per_channel else x.ndim):
            raise ValueError(
                f"coordinates= has shape {coordinates.shape} for an input of {x.shape}; expected {wanted}."
            )
        return coordinates, feature

    def init(rng, x, **context):
        _, feature = checked(context.get("coordinates"), x)
        rngs = (None, None) if rng is None else jax.random.split(rng)
        params, state = inner.init(rngs[0], x, **context)
        shape = (*sizes, x.shape[feature]) if per_channel else sizes
        return {"norm": params, **init_affine(rngs[1], shape, precision, *inits)}, state

    def apply(params, state, x, *, train, mask=None, **context):
        coordinates, feature = checked(context.get("coordinates"), x)
        normalized, state = apply_inner(inner, params["norm"], state, x, train, mask, context, precision)
        points = coordinates.astype(promote(coordinates.dtype, statistics_dtype(x.dtype, precision)))
        shape = [*points.shape[:-1], *[1] * (x.ndim - points.ndim + 1)]
        shape[feature] = x.shape[feature] if per_channel else shape[feature]

        def read(grid):
            grid = grid if grid_map is None else grid_map(grid)
            return interpolate_grid(grid, points, padding=padding).reshape(shape)

        y = modulate(normalized, read(params["scale"]), read(params["bias"]), unit_offset=False)
        return y.astype(output_dtype(x.dtype, (params["scale"], params["bias"]), precision)), state

    return NormTransform(init, apply)
