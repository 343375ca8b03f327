"""The scale-invariance test: which weights may be projected, and at which granularity."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from normjax import _checks
from normjax.backward_state import OVERWRITE_WITH_GRADIENT
from normjax.diagnostics.alignment import GRANULARITIES, Granularity, Layout, cosines, layouts, sizes
from normjax.optim._leaves import is_float, wide
from normjax.optim._masks import float_matrices, select
from normjax.optim._paths import FlatTree, flatten, listing

THRESHOLD = 1e-3
ZEROS = 0.1


class WeightInvariance(NamedTuple):
    """What was measured of one weight tensor.

    Attributes:
      shape: Of the tensor.
      layout: How its axes were read.
      cosines: Largest absolute cosine with the gradient over all groups of a granularity, for each stacked layer; NaN
        where no group has both weights and a gradient.
      sizes: How many numbers one such cosine is about.
      silent: Share of the groups, of each granularity, that have no weights or no gradient: dead units, mostly.
    """

    shape: tuple[int, ...]
    layout: Layout
    cosines: dict[Granularity, np.ndarray]
    sizes: dict[Granularity, int]
    silent: dict[Granularity, float]

    def alignment(self, granularity: Granularity) -> float:
        r"""The largest cosine times $\sqrt n$, about 1 for unrelated vectors of n numbers; NaN where not measured."""
        if granularity not in self.cosines:
            return float("nan")
        return float(np.max(self.cosines[granularity])) * self.sizes[granularity] ** 0.5


class ScaleInvariance(NamedTuple):
    """The result of `scale_invariance`; printing it gives a table.

    Attributes:
      weights: What was measured, by path.
      threshold: Alignment below which a weight counts as invariant.
      params: Shapes of all parameters by path, and their structure.
    """

    weights: dict[str, WeightInvariance]
    threshold: float
    params: FlatTree

    def granularity(self, path: str) -> Granularity | None:
        """The finest granularity at which a weight is scale-invariant, or `None`."""
        return next((g for g in reversed(GRANULARITIES) if self._holds(path, g)), None)

    def _holds(self, path: str, granularity: Granularity) -> bool:
        # A NaN compares false: what was not measured is not invariant.
        return path in self.weights and self.weights[path].alignment(granularity) < self.threshold

    def _allows(self, path: str, granularity: Granularity) -> bool:
        # Whoever is free of the scale of each part is free of a common one.
        finer = GRANULARITIES[GRANULARITIES.index(granularity) :]
        return any(self._holds(path, g) for g in finer)

    def mask(self, granularity: Granularity = "joint") -> Any:
        """The weights that may be projected at a granularity, as `nap` and `project_weights` take it.

        Args:
          granularity: One norm for the tensor, for each head or for each output unit.

        Returns:
          A tree of booleans with the structure of the parameters.
        """
        _checks.check_choice("granularity", granularity, Granularity)
        return self.params.treedef.unflatten([self._allows(path, granularity) for path in self.params.leaves])

    def axes(self, granularity: Granularity = "joint") -> dict[str, tuple[int, ...]]:
        """The axes to sum over for one norm of each layer, head or unit, as `nap(axes=...)` takes them.

        Args:
          granularity: As in `mask`.

        Returns:
          Axes by path, of the weights that `mask` selects.

        Raises:
          ValueError: If the heads of a weight share an axis with their features.
        """
        found = {}
        for path, weight in self.weights.items():
            if not self._allows(path, granularity):
                continue
            view, axes = weight.layout.groups(weight.shape).get(granularity, ((), ()))
            if len(view) != len(weight.shape):
                raise ValueError(
                    f"{path!r} of shape {weight.shape} has no axis for granularity {granularity!r}: a projection sums "
                    'over whole axes. Project it jointly, which is allowed too: mask("joint") and axes("joint").'
                )
            found[path] = axes
        return found

    def table(self) -> rich.table.Table:
        """Every measured weight, its alignment at each granularity, and the finest at which it may be projected."""
        shown: list[Granularity] = [g for g in GRANULARITIES if any(g in w.cosines for w in self.weights.values())]
        result = rich.table.Table(
            title="scale invariance: largest |cos(w, dL/dw)|, in units of 1/sqrt(n)",
            caption=f"invariant below {self.threshold:g}; - no gradient, no weights, or no such groups",
        )
        for name in ("weight", "shape", *shown, "may be projected"):
            result.add_column(name, overflow="fold", justify="right" if name in GRANULARITIES else "left")
        for path, weight in self.weights.items():
            numbers = [_shown(weight.alignment(g)) for g in shown]
            shape = " x ".join(map(str, weight.shape))
            result.add_row(path, shape, *numbers, self.granularity(path) or _refusal(weight))
        return result

    def __str__(self) -> str:
        console = rich.console.Console(width=max(len(p) for p in self.weights) + 90, color_system=None)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get().rstrip()


def _shown(alignment: float) -> str:
    return "-" if np.isnan(alignment) else f"{alignment:.1e}"


def _refusal(weight: WeightInvariance) -> str:
    return "no: no gradient" if np.isnan(weight.alignment("joint")) else "no"


def scale_invariance(
    loss: Callable[..., Any],
    params: Any,
    *batch: Any,
    heads: Any = None,
    head_axes: Any = None,
    stacked: Any = None,
    mask: Any | Callable[[Any], Any] | None = None,
    threshold: float = THRESHOLD,
    zeros: float = ZEROS,
    dtype: Any = None,
    has_aux: bool = False,
) -> ScaleInvariance:
    r"""Measure which weights the loss does not feel the scale of, and at which granularity.

    A function with :math:`f(c\,w) = f(w)` for all :math:`c > 0` has, by Euler's theorem, a gradient orthogonal to its
    argument, :math:`\langle w, \nabla f(w) \rangle = 0`, and such a weight may be projected back to a fixed norm
    without changing what the network computes. One backward pass measures the cosine of every weight with its gradient
    as a whole, for each head and for each output unit.

    **Threshold.** The cosine of two unrelated vectors of :math:`n` numbers is about :math:`1/\sqrt n`, so it is
    :math:`\sqrt n \lvert\cos\rvert` that is judged. What an invariant weight leaves is rounding (1e-6 to 1e-5 in
    float32) and the epsilon of its norm, :math:`\epsilon / (\sigma^2 + \epsilon)`: 1e-3 for Flax's 1e-6 at a
    variance of 1e-3. A weight that is not invariant falls below :math:`t` by chance with probability 0.8 t; the table
    shows each number, and another batch settles a doubt. Float64 removes the rounding, not the epsilon.

    **Zeros.** At a new network's zero biases more weights are invariant than after the first step: `relu(x @ w) @ v +
    b` before a norm does not feel the scale of `w` while `b = 0`. Leaves that are zero throughout are therefore
    measured at small random values.

    Args:
      loss: `loss(params, *batch)`, a scalar. With batch statistics it has to be the training loss.
      params: the parameters; sharded ones are measured where they are, with a few sums over devices.
      *batch: what else the loss takes, arrays or trees of them.
      heads: number of heads in the last axis of a tensor: one value, a tree or a path-dict, e.g.
        `{"query/kernel": 8, "key/kernel": 2}`.
      head_axes: for kernels that have an axis of heads, e.g. `(features, heads, size)`, that axis.
      stacked: number of leading axes that number layers, as `nn.scan` makes them; a weight is invariant if it is in
        every layer.
      mask: which leaves to measure, as in `nap`; `None` is every floating-point leaf of two or more dimensions.
      threshold: largest :math:`\sqrt n \lvert\cos\rvert` of an invariant weight.
      zeros: standard deviation of the random values in the place of zeros; 0 measures the parameters as they are.
      dtype: floating dtype to compute in, `jnp.float64` for instance; `None` is at least float32. A model that casts
        to a narrower one inside needs a larger threshold, about that dtype's epsilon times ten.
      has_aux: whether the loss returns a pair, of which the second entry is ignored.

    Returns:
      A `ScaleInvariance`: `print` it; pass `.mask()` and `.axes()` to `nap`.

    Raises:
      ValueError: a loss or gradient that is not finite; options that name no parameter or do not fit one; a threshold
        or `zeros` out of range; a mask that selects nothing.
      TypeError: a selected leaf, or `dtype`, is not floating point.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj, optax
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {"hidden": jax.random.normal(keys[0], (4, 8)), "head": jax.random.normal(keys[1], (8, 2))}
      >>> def loss(params, x):
      ...     return jnp.sum(jnp.sin(jax.nn.relu(nj.layer_normalize(x @ params["hidden"])) @ params["head"]))
      >>> found = nj.diagnostics.scale_invariance(loss, params, jax.random.normal(keys[2], (16, 4)))
      >>> found.granularity("hidden"), found.granularity("head"), found.mask()
      ('joint', None, {'head': False, 'hidden': True})
      >>> tx = nj.nap(optax.adam(1e-3), mask=found.mask(), axes=found.axes())

    References:
      Lyle et al., Normalization and effective learning rates in reinforcement learning, 2024, appendix A.5,
      https://arxiv.org/abs/2407.01800
    """
    _check(threshold, zeros, dtype)
    flat = flatten(params)
    selected = select(mask, params, flat, float_matrices, "scale_invariance")
    read = layouts(selected, flat.leaves, heads, head_axes, stacked)
    empty = _empty(flat.leaves) if zeros else []
    double = dtype is not None and jnp.dtype(dtype) == jnp.float64

    @jax.jit
    def measure(params: Any, batch: Any) -> Any:
        tree = flatten(_filled(_cast(params, dtype), empty, zeros))
        chosen = {path: tree.leaves[path] for path in read}

        def of_chosen(chosen: Any) -> Any:
            return loss(tree.replace(chosen), *_cast(batch, dtype))

        value, slopes = jax.value_and_grad(of_chosen, has_aux=has_aux)(chosen)
        finite = {path: jnp.all(jnp.isfinite(g)) for path, g in slopes.items()}
        measured = {path: cosines(w, slopes[path], read[path]) for path, w in chosen.items()}
        numbers = {path: {g: _worst(c, read[path].stacked) for g, c in by.items()} for path, by in measured.items()}
        return jnp.isfinite(value[0] if has_aux else value), finite, numbers

    with jax.enable_x64(True) if double else contextlib.nullcontext():
        whole, finite, numbers = jax.device_get(measure(params, batch))
    _require_finite(whole, finite)
    shapes = FlatTree({path: jnp.shape(leaf) for path, leaf in flat.leaves.items()}, flat.treedef)
    weights = {path: _weight(shapes.leaves[path], read[path], numbers[path]) for path in read}
    return ScaleInvariance(weights, threshold, shapes)


def _check(threshold: float, zeros: float, dtype: Any) -> None:
    if not 0 < threshold < np.inf:
        raise ValueError(f"threshold must be positive and finite, got {threshold!r}.")
    if not 0 <= zeros < np.inf:
        raise ValueError(f"zeros is a standard deviation, finite and not negative, got {zeros!r}.")
    if dtype is not None and not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise TypeError(f"dtype must be a floating dtype to compute in, got {dtype!r}.")


def _cast(tree: Any, dtype: Any) -> Any:
    def cast(x: Any) -> Any:
        if not is_float(x):
            return x
        return wide(x) if dtype is None else jnp.asarray(x, dtype)

    return jax.tree.map(cast, tree)


def _empty(leaves: Mapping[str, Any]) -> list[str]:
    """Floating leaves that are zero throughout; state that the backward pass writes is none."""
    own = {p: x for p, x in leaves.items() if is_float(x) and OVERWRITE_WITH_GRADIENT not in p.split("/")}
    nonzero = jax.device_get(jax.jit(lambda own: {path: jnp.any(x != 0) for path, x in own.items()})(own))
    return [path for path in own if not nonzero[path]]


def _filled(params: Any, empty: list[str], scale: float) -> Any:
    flat, key = flatten(params), jax.random.key(0)

    def noise(i: int, x: jax.Array) -> jax.Array:
        return x + scale * jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)

    return flat.replace({path: noise(i, flat.leaves[path]) for i, path in enumerate(empty)})


def _worst(cosine: jax.Array, stacked: int) -> tuple[jax.Array, jax.Array]:
    """The largest absolute cosine of each stacked layer, NaN where none is known, and the share of unknown ones."""
    groups = jnp.abs(cosine).reshape(*cosine.shape[:stacked], -1)
    unknown = jnp.isnan(groups)
    largest = jnp.max(jnp.where(unknown, -1, groups), axis=-1)
    return jnp.where(largest < 0, jnp.nan, largest), jnp.mean(unknown, dtype=jnp.float32)


def _weight(shape: tuple[int, ...], layout: Layout, numbers: Mapping[Granularity, Any]) -> WeightInvariance:
    worst: dict[Granularity, np.ndarray] = {g: np.asarray(largest) for g, (largest, _) in numbers.items()}
    silent: dict[Granularity, float] = {g: float(share) for g, (_, share) in numbers.items()}
    return WeightInvariance(shape, layout, worst, sizes(shape, layout), silent)


def _require_finite(loss: Any, gradients: Mapping[str, Any]) -> None:
    wrong = [path for path, finite in gradients.items() if not finite]
    if wrong or not loss:
        what = f"the gradients of {listing(wrong)}" if wrong else "the loss"
        raise ValueError(
            f"scale_invariance got {what} with values that are not finite; measure at parameters and a batch where the "
            "loss is defined."
        )
