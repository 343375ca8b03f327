"""Replacing single units: fresh incoming weights, no outgoing ones, no moments left."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from normjax.optim._leaves import is_float, resharded, wide
from normjax.optim._paths import FlatTree, flatten, is_box, listing
from normjax.optim._rescale import POWERS, moment_field, require_moments

Outgoing = Mapping[str, str | Sequence[str]]
Init = Callable[[jax.Array, str, jax.Array], jax.Array]


def fresh_weights(key: jax.Array, path: str, leaf: jax.Array) -> jax.Array:
    """LeCun's normal initialisation for kernels of Flax, ones for scales, zeros for all other vectors."""
    if leaf.ndim >= 2:
        return jax.nn.initializers.lecun_normal()(key, leaf.shape, wide(leaf).dtype)
    return jnp.full(leaf.shape, 1.0 if path.rpartition("/")[2] == "scale" else 0.0, wide(leaf).dtype)


def leaves_of(flat: FlatTree, module: str) -> dict[str, jax.Array]:
    """Kernel and vectors of a module, by path."""
    found = {path: leaf for path, leaf in flat.leaves.items() if path == module or path.startswith(module + "/")}
    if not found:
        raise ValueError(f"{module!r} is not a module of the parameters {listing(flat.leaves)}.")
    return {path: leaf for path, leaf in found.items() if is_float(leaf)}


def unit_count(flat: FlatTree, module: str) -> int:
    """Number of units of a module; raise where its leaves do not agree on it."""
    sizes = {path: (leaf.shape[-1] if leaf.ndim else 0) for path, leaf in leaves_of(flat, module).items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"the last axis of every leaf of {module!r} numbers its units, got sizes {sizes}.")
    return next(iter(sizes.values()))


def reading_kernels(flat: FlatTree, module: str, following: str | Sequence[str], units: int) -> dict[str, jax.Array]:
    """The kernels that read the units of a module along their second to last axis."""
    names = (following,) if isinstance(following, str) else tuple(following)
    kernels = {path: leaf for name in names for path, leaf in leaves_of(flat, name).items() if leaf.ndim >= 2}
    wrong = {path: leaf.shape for path, leaf in kernels.items() if leaf.shape[-2] % units}
    if not kernels or wrong:
        raise ValueError(
            f"outgoing names {names} for {module!r}, but a kernel there has to have {units} inputs, or a multiple for "
            f"flattened images, on its second to last axis; got {wrong or 'no kernel'}."
        )
    return kernels


def _replace(key: jax.Array, path: str, leaf: jax.Array, mask: jax.Array, init: Init, preserve: bool) -> jax.Array:
    old = wide(leaf)
    fresh = resharded(jnp.asarray(init(key, path, leaf)).astype(old.dtype), jax.typeof(leaf).sharding)
    if fresh.shape != leaf.shape:
        raise ValueError(f"init for {path!r} has shape {fresh.shape}, expected {leaf.shape}.")
    if preserve and leaf.ndim >= 2:
        was, now = (jnp.sum(jnp.where(mask, jnp.square(x), 0)) for x in (old, fresh))
        fresh = fresh * jnp.where((was > 0) & (now > 0), jnp.sqrt(was / jnp.where(now > 0, now, 1)), 1)
    return jnp.where(mask, fresh, old)


def _spread(mask: jax.Array, leaf: jax.Array) -> jax.Array:
    """A mask in the shape of a leaf, and sharded as it is."""
    return resharded(jnp.broadcast_to(resharded(mask), leaf.shape), jax.typeof(leaf).sharding)


def _silence(leaf: jax.Array, mask: jax.Array, preserve: bool) -> jax.Array:
    old = wide(leaf)
    new = jnp.where(mask, 0, old)
    if not preserve:
        return new
    was, now = (jnp.sum(jnp.square(x)) for x in (old, new))
    return new * jnp.where(now > 0, jnp.sqrt(was / jnp.where(now > 0, now, 1)), 1)


def replace_units(
    key: jax.Array,
    flat: FlatTree,
    masks: Mapping[str, jax.Array],
    following: Outgoing,
    init: Init,
    preserve: bool,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """New values of the leaves that the replaced units touch (wide), and which entries changed, by path.

    A kernel between two of the modules has both its rows and its columns replaced; rows last, as the zeros that cut the
    new unit off are what keeps the function.
    """
    values, changed = {}, {}
    for index, module in enumerate(sorted(masks)):
        for place, (path, leaf) in enumerate(sorted(leaves_of(flat, module).items())):
            mask = _spread(masks[module], leaf)
            fresh_key = jax.random.fold_in(jax.random.fold_in(key, index), place)
            values[path] = _replace(fresh_key, path, values.get(path, leaf), mask, init, preserve)
            changed[path] = mask
    for module, mask in masks.items():
        for path, leaf in reading_kernels(flat, module, following[module], mask.size).items():
            # Channels come last in a flattened image, so that the units repeat.
            rows = _spread(jnp.tile(resharded(mask), leaf.shape[-2] // mask.size)[:, None], leaf)
            values[path] = _silence(values.get(path, leaf), rows, preserve)
            changed[path] = changed[path] | rows if path in changed else rows
    return values, changed


def require_outgoing(names: Mapping[str, Any], following: Outgoing, what: str) -> None:
    """Raise unless every module with activations says where its units go."""
    if set(names) != set(following) or not names:
        raise ValueError(
            f"{what} needs the activations of the modules that outgoing names, {listing(following)}; got those of "
            f"{listing(names)}."
        )


def reset_moments(opt_state: Any, changed: Mapping[str, jax.Array]) -> Any:
    r"""Optimizer state with zero moments for entries of the parameters that were replaced.

    .. math:: m_i \leftarrow 0, \quad v_i \leftarrow 0 \qquad \text{where } i \text{ changed}

    Fields called `mu`, `nu`, `nu_max`, `trace` and `sum_of_squares` are moments. Step counts stay: Adam's bias
    correction, one number for all entries, then makes the first steps of a replaced one smaller than in a new network.

    Args:
      opt_state: state of any optax transformation.
      changed: booleans by path, in the shapes of the parameters, as `redo` returns them.

    Returns:
      The state, with the same structure and dtypes.

    Raises:
      ValueError: no moment of any of these parameters in the state.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from normjax.optim import reset_moments
      >>> tx, params = optax.trace(0.9), {"w": jnp.array([1.0, 2.0])}
      >>> _, state = tx.update(params, tx.init(params))
      >>> reset_moments(state, {"w": jnp.array([True, False])}).trace["w"].tolist()
      [0.0, 2.0]

    References:
      Sokar et al., The dormant neuron phenomenon in deep reinforcement learning, 2023,
      https://arxiv.org/abs/2302.12902
    """
    require_moments(opt_state, changed, POWERS)
    return zero_moments(opt_state, changed)


def zero_moments(opt_state: Any, changed: Mapping[str, jax.Array]) -> Any:
    """As `reset_moments`, of a state that may have none."""

    def reset(keys: tuple[Any, ...], node: Any) -> Any:
        field = moment_field(keys, POWERS)
        if field is None or field[1] not in changed:
            return node
        return jax.tree.map(lambda m: jnp.where(changed[field[1]], jnp.zeros_like(m), m), node)

    return jax.tree_util.tree_map_with_path(reset, opt_state, is_leaf=is_box)


def redo(
    key: jax.Array,
    params: Any,
    activations: Mapping[str, jax.Array],
    outgoing: Outgoing,
    *,
    threshold: float = 0.1,
    init: Init = fresh_weights,
    preserve_norm: bool = False,
) -> tuple[Any, dict[str, jax.Array]]:
    r"""Recycle dormant units: fresh incoming weights, outgoing weights zero (ReDo).

    Unit :math:`i` is dormant if

    .. math:: s_i = \frac{\mathbb{E}_x |h_i(x)|}{\frac{1}{d} \sum_k \mathbb{E}_x |h_k(x)|} \le \tau

    Call it every thousand steps or so, and `reset_moments(opt_state, changed)` with it. Resets change the norms of both
    weights, which projection undoes at its next step at the expense of all other units. With `preserve_norm` they never
    change: fresh columns share the squared norm of the columns they replace, and the rows that stay in the
    next kernel grow by one common factor, which changes no function where a normalization follows that kernel.

    Args:
      key: JAX random key.
      params: parameters; kernels have their output units last and their inputs second to last, as Flax's do.
      activations: `{module: (..., units)}`, a batch of the activations after the nonlinearity; all axes but the last
        count as inputs. A module is the path of the layer that makes the units, `"Dense_0"`.
      outgoing: `{module: module or modules}`, which layers read these units.
      threshold: :math:`\tau`; 0 resets dead units only.
      init: `init(key, path, weight)`, fresh values in the weight's shape. By default LeCun's normal initialisation for
        kernels, one for `scale` and zero for other vectors.
      preserve_norm: keep the norm of every kernel.

    Returns:
      The parameters, and `{path: booleans}` with the entries that were replaced. Both have fixed shapes: it can be
      called inside `jit`, also with `lax.cond`.

    Raises:
      ValueError: a negative threshold; modules that do not fit the parameters, the activations or each other.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from normjax.optim import redo
      >>> params = {"Dense_0": {"kernel": jnp.ones((2, 2))}, "Dense_1": {"kernel": jnp.ones((2, 1))}}
      >>> hidden = jnp.array([[0.0, 1.0], [0.0, 3.0]])
      >>> new, changed = redo(jax.random.key(0), params, {"Dense_0": hidden}, {"Dense_0": "Dense_1"})
      >>> new["Dense_1"]["kernel"].tolist(), changed["Dense_0/kernel"].tolist()
      ([[0.0], [1.0]], [[True, False], [True, False]])

    References:
      Sokar et al., The dormant neuron phenomenon in deep reinforcement learning, 2023,
      https://arxiv.org/abs/2302.12902
    """
    if not threshold >= 0:
        raise ValueError(f"threshold bounds a score that is never negative, got {threshold!r}.")
    require_outgoing(activations, outgoing, "redo")
    flat = flatten(params)
    masks = {}
    for module, hidden in activations.items():
        masks[module] = dormancy(mean_magnitude(hidden, unit_count(flat, module), module)) <= threshold
    values, changed = replace_units(key, flat, masks, outgoing, init, preserve_norm)
    return flat.replace({path: value.astype(flat.leaves[path].dtype) for path, value in values.items()}), changed


def dormancy(magnitudes: jax.Array) -> jax.Array:
    """Mean magnitudes `(units,)` over that of their layer; 0 in a layer without any activation."""
    layer = jnp.mean(magnitudes)
    return magnitudes / jnp.where(layer > 0, layer, 1)


def mean_magnitude(hidden: Any, units: int, module: str) -> jax.Array:
    """Mean absolute activation of every unit over all other axes."""
    if jnp.ndim(hidden) < 1 or jnp.shape(hidden)[-1] != units or jnp.size(hidden) == 0:
        raise ValueError(
            f"activations of {module!r} are (..., units) with {units} units and at least one input, got shape "
            f"{jnp.shape(hidden)}."
        )
    return jnp.mean(jnp.abs(wide(hidden)), axis=tuple(range(jnp.ndim(hidden) - 1)))
