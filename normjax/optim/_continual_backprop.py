"""Continual backpropagation: the least useful mature units are replaced, a few at a time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from normjax.optim._leaves import next_count, require_params, resharded, wide
from normjax.optim._paths import FlatTree, check_same_paths, flatten
from normjax.optim._radii import present
from normjax.optim._units import (
    Init,
    Outgoing,
    fresh_weights,
    leaves_of,
    mean_magnitude,
    reading_kernels,
    replace_units,
    require_outgoing,
    unit_count,
    zero_moments,
)


class UnitHistory(NamedTuple):
    """Of the units of one layer: running utility (float32), steps since they were made (int32), replacements due."""

    utility: jax.Array
    age: jax.Array
    due: jax.Array


class ContinualBackpropState(NamedTuple):
    """Steps taken (int32), state of the wrapped optimizer, and the history of each layer's units by module."""

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    inner_state: Any
    units: dict[str, UnitHistory]


def _usefulness(flat: FlatTree, module: str, following: Any, hidden: jax.Array) -> jax.Array:
    """Mean magnitude of each unit's activation times the sum of magnitudes of its outgoing weights."""
    units = unit_count(flat, module)
    kernels = reading_kernels(flat, module, following, units).values()
    # Channels come last in a flattened image: a row belongs to unit (row mod units).
    rows = [jnp.sum(jnp.abs(wide(w)), axis=tuple(a for a in range(w.ndim) if a != w.ndim - 2)) for w in kernels]
    weights = jnp.sum(jnp.concatenate([r.reshape(-1, units) for r in rows]), axis=0)
    return resharded(mean_magnitude(hidden, units, module)) * resharded(weights).astype(wide(hidden).dtype)


def _choose(
    history: UnitHistory, useful: jax.Array, decay: float, maturity: int, rate: float
) -> tuple[UnitHistory, jax.Array]:
    """The history after this step, and which units it replaces."""
    utility = decay * history.utility + (1 - decay) * useful.astype(history.utility.dtype)
    age = history.age + 1
    mature = age > maturity
    due = history.due + rate * jnp.sum(mature, dtype=history.due.dtype)
    number = jnp.minimum(jnp.floor(due), jnp.sum(mature, dtype=history.due.dtype))
    # Bias-corrected, as a young unit's running mean has not filled yet.
    corrected = utility / (1 - jnp.asarray(decay, utility.dtype) ** age.astype(utility.dtype))
    rank = jnp.argsort(jnp.argsort(jnp.where(mature, corrected, jnp.inf)))
    chosen = mature & (rank < number.astype(rank.dtype))
    kept = UnitHistory(jnp.where(chosen, 0, utility), jnp.where(chosen, 0, age), due - number)
    return kept, chosen


def continual_backprop(
    inner: optax.GradientTransformation,
    key: jax.Array,
    outgoing: Outgoing,
    *,
    replacement_rate: float = 1e-4,
    decay: float = 0.99,
    maturity: int = 100,
    init: Init = fresh_weights,
    preserve_norm: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Any optimizer, plus the replacement of the least useful mature units (continual backpropagation).

    .. math:: y_i \leftarrow \beta y_i + (1 - \beta) \, \mathbb{E}_x |h_i(x)| \sum_k |w_{ik}|

    Of the :math:`n` units older than `maturity` steps, :math:`\rho n` per step are replaced, fractions saved up: those
    of lowest :math:`y_i / (1 - \beta^{\text{age}})` get fresh incoming weights, outgoing weights of zero, no moments,
    and age zero. A replaced unit leaves the function unchanged but for what it contributed.

    Put the projection of weights outside, `optax.chain(continual_backprop(...), project_weights())`, or use
    `preserve_norm`, as in `redo`. The replacements of step t are drawn from `fold_in(key, t)`.

    Args:
      inner: the optimizer, including its learning rate.
      key: JAX random key.
      outgoing: `{module: module or modules}`, as in `redo`.
      replacement_rate: :math:`\rho`, the fraction of mature units replaced per step.
      decay: :math:`\beta` of the running utility, in [0, 1).
      maturity: steps during which a new unit is left alone.
      init: as in `redo`.
      preserve_norm: as in `redo`.

    Returns:
      A transformation with state `ContinualBackpropState(count, inner_state, units)`. `update` needs the extra argument
      `activations`, `{module: (..., units)}` of the step's batch; all extra arguments reach `inner`.

    Raises:
      ValueError: no `params` or `activations` in `update`; a rate or decay out of range; modules that do not fit; a
        restored state that belongs to other modules.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from normjax.optim import continual_backprop
      >>> params = {"Dense_0": {"kernel": jnp.ones((2, 2))}, "Dense_1": {"kernel": jnp.ones((2, 1))}}
      >>> modules = {"Dense_0": "Dense_1"}
      >>> tx = continual_backprop(optax.sgd(0.0), jax.random.key(0), modules, replacement_rate=0.5, maturity=0)
      >>> hidden = {"Dense_0": jnp.array([[0.1, 1.0]])}
      >>> updates, state = tx.update(params, tx.init(params), params, activations=hidden)
      >>> optax.apply_updates(params, updates)["Dense_1"]["kernel"].tolist()
      [[0.0], [1.0]]

    References:
      Dohare et al., Loss of plasticity in deep continual learning, Nature 2024,
      https://doi.org/10.1038/s41586-024-07711-7; preprint https://arxiv.org/abs/2306.13812
    """
    if not 0 <= replacement_rate <= 1:
        raise ValueError(f"replacement_rate is a fraction of the units per step, in [0, 1], got {replacement_rate!r}.")
    if not 0 <= decay < 1:
        raise ValueError(f"decay is the share of the running mean that stays, in [0, 1), got {decay!r}.")
    following, optimizer = outgoing, optax.with_extra_args_support(inner)

    def start(flat: FlatTree, module: str) -> UnitHistory:
        units = unit_count(flat, module)
        dtype = wide(next(iter(leaves_of(flat, module).values()))).dtype
        return UnitHistory(jnp.zeros(units, dtype), jnp.zeros(units, jnp.int32), jnp.zeros([], dtype))

    def init_state(params: Any) -> ContinualBackpropState:
        flat = flatten(params)
        units = {module: start(flat, module) for module in following}
        return ContinualBackpropState(jnp.zeros([], jnp.int32), optimizer.init(params), units)

    def update(
        updates: Any, state: Any, params: Any = None, *, activations: Any = None, **extra: Any
    ) -> tuple[Any, ContinualBackpropState]:
        flat = require_params(params)
        require_outgoing(activations or {}, following, "continual_backprop")
        check_same_paths(state.units, following, "The histories of units")
        updates, inner_state = optimizer.update(updates, state.inner_state, params, activations=activations, **extra)
        steps = flatten(updates)
        moved = {
            path: wide(flat.leaves[path]) + wide(u).astype(wide(flat.leaves[path]).dtype)
            for path, u in present(steps.leaves, flat.leaves).items()
        }
        after = FlatTree({**flat.leaves, **moved}, flat.treedef)
        units, masks = {}, {}
        for module in following:
            useful = _usefulness(after, module, following[module], activations[module])
            units[module], masks[module] = _choose(state.units[module], useful, decay, maturity, replacement_rate)
        values, changed = replace_units(
            jax.random.fold_in(key, state.count), after, masks, following, init, preserve_norm
        )
        replaced = {path: value - wide(flat.leaves[path]) for path, value in values.items()}
        inner_state = zero_moments(inner_state, changed)
        return steps.replace(replaced), ContinualBackpropState(next_count(state.count), inner_state, units)

    return optax.GradientTransformationExtraArgs(init_state, update)
