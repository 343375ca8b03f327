"""What the transforms that store one radius per weight have in common: state, selection, checks."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.optim._leaves import (
    Axes,
    check_shapes,
    kept_shape,
    next_count,
    require_params,
    resolve_axes,
    resolve_radii,
)
from normjax.optim._masks import hidden_weights, select
from normjax.optim._paths import FlatTree, check_same_paths, flatten

Leaves = Mapping[str, jax.Array]
Rule = Callable[[Leaves, Leaves, Leaves, Mapping[str, Axes], jax.Array], Mapping[str, Any]]


class RadiiState(NamedTuple):
    """Steps taken (int32) and the stored radii by path (float32): scalars, or one number per slice."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    radii: dict[str, jax.Array]


class Selection(NamedTuple):
    """The selected weights by path, the axes of one norm of each, and the tree they came from."""

    leaves: dict[str, jax.Array]
    axes: dict[str, Axes]
    flat: FlatTree


def present(updates: Mapping[str, Any], selected: Mapping[str, Any]) -> dict[str, Any]:
    """Updates of the selected leaves; a leaf that optax gives `None` as its update stays put."""
    return {path: updates[path] for path in selected if path in updates}


def selection(params: Any, axes: Any, mask: Any, name: str) -> Selection:
    """What `mask` and `axes` say about `params`."""
    flat = require_params(params)
    selected = select(mask, params, flat, hidden_weights(), name)
    return Selection(selected, resolve_axes(axes, selected, flat.leaves), flat)


def initial_radii(chosen: Selection, radius: Any) -> dict[str, jax.Array]:
    """The radii that a transform stores in `init`."""
    return resolve_radii(radius, chosen.leaves, chosen.flat.leaves, chosen.axes)


def check_stored(stored: Mapping[str, Any], chosen: Selection) -> None:
    """Raise unless one stored number per slice belongs to every selected weight."""
    check_same_paths(stored, chosen.leaves, "The stored radii")
    check_shapes(stored, chosen.leaves, chosen.axes, "The stored radius")


def with_radii(name: str, rule: Rule, radius: Any, axes: Any, mask: Any) -> optax.GradientTransformationExtraArgs:
    """A transform without other state: `rule(weights, updates, radii, axes, count)` gives the new updates by path."""

    def init(params: Any) -> RadiiState:
        return RadiiState(jnp.zeros([], jnp.int32), initial_radii(selection(params, axes, mask, name), radius))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, RadiiState]:
        del extra
        chosen, steps = selection(params, axes, mask, name), flatten(updates)
        check_stored(state.radii, chosen)
        moving = present(steps.leaves, chosen.leaves)
        new = rule(chosen.leaves, moving, state.radii, chosen.axes, state.count)
        return steps.replace(new), RadiiState(next_count(state.count), state.radii)

    return optax.GradientTransformationExtraArgs(init, update)


def fan_radius(scale: float = 1.0, *, axes: Any = None, in_axes: Any = None) -> Callable[[str, Any], float]:
    r"""Radius rule: the norm that variance-scaling initialisation gives on average, whatever the weights are now.

    .. math:: r = \sqrt{\text{scale} \cdot N / \text{fan-in}}

    with :math:`N` the number of entries that share one norm. For a matrix `(in, out)` that is
    :math:`\sqrt{\text{scale} \cdot \text{out}}`, for one of its neurons :math:`\sqrt{\text{scale}}`.

    Args:
      scale: variance of an entry times fan-in; 1 for LeCun's, 2 for He's initialisation.
      axes: the axes of one norm, the value given as `axes=` to the transform that stores the radius: `None`, an
        integer, a tuple or `axes(path, weight)`.
      in_axes: the axes whose sizes make the fan-in, an integer or a tuple; `None`: those of one norm without the
        weight's last axis, the output axis of Flax.

    Returns:
      `radius(path, weight)`, for `radius=`.

    Raises:
      ValueError: `scale` is not positive; when it is called: no axis is left for the fan-in, or an axis is not one of
        the weight's.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import fan_radius, project_weights
      >>> tx = project_weights(fan_radius(2.0), mask=True)
      >>> tx.init({"kernel": jnp.zeros((3, 8))}).radii
      {'kernel': Array(4., dtype=float32)}

    References:
      He et al., Delving deep into rectifiers, 2015, https://arxiv.org/abs/1502.01852
    """
    if not scale > 0:
        raise ValueError(f"scale is a variance times the fan-in and must be positive, got {scale!r}.")

    def radius(path: str, weight: Any) -> float:
        reduced = resolve_axes(axes, {path: weight}, [path])[path]
        inputs = tuple(a for a in reduced if a != jnp.ndim(weight) - 1)
        if in_axes is not None:
            inputs = resolve_axes(in_axes, {path: weight}, [path])[path]
        if not inputs:
            raise ValueError(
                f"fan_radius finds no input axis of {path!r}, shape {jnp.shape(weight)} with one norm over axes "
                f"{reduced}; name them: in_axes=0 for a vector or a transposed kernel."
            )
        size = int(jnp.size(weight))
        entries = size // math.prod(kept_shape(weight, reduced))
        fan_in = size // math.prod(kept_shape(weight, inputs))
        return (scale * entries / fan_in) ** 0.5

    return radius
