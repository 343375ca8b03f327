"""The pair of pure functions that every norm is, and the four ways in which such pairs compose.

A normalization is to activations what an optax transform is to gradients: `init` makes parameters and state
from shapes, `apply` maps `(params, state, x)` to `(y, state)`. State trees have the same structure, dtypes and
sharding from both, so a norm works in `lax.scan`, `vmap`, `jit`, `eval_shape` and `remat` as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax.precision import promote, statistics_dtype

Params = Any
State = Any


class InitFn(Protocol):
    """`init(rng, x, **context) -> (params, state)`."""

    def __call__(self, rng: jax.Array | None, x: Any, **context: Any) -> tuple[Params, State]:
        """Makes parameters and state; `x` may be a `jax.ShapeDtypeStruct`, `rng` may be `None`."""
        ...


class ApplyFn(Protocol):
    """`apply(params, state, x, *, train, mask=None, **context) -> (y, state)`."""

    def __call__(
        self, params: Params, state: State, x: jax.Array, *, train: bool, mask: Any = None, **context: Any
    ) -> tuple[jax.Array, State]:
        """Normalizes `x`; `context` carries what conditional norms read and other norms ignore."""
        ...


class NormTransform(NamedTuple):
    """A normalization as a pair of pure functions.

    Attributes:
      init: `init(rng, x, **context) -> (params, state)`, from shapes alone.
      apply: `apply(params, state, x, *, train, mask=None, **context) -> (y, state)`.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> norm = nj.layer_norm()
      >>> params, state = norm.init(None, jax.ShapeDtypeStruct((2, 3), jnp.float32))
      >>> y, state = norm.apply(params, state, jnp.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]), train=True)
      >>> print(y.round(3))
      [[-1.225  0.     1.225]
       [ 0.     0.     0.   ]]
    """

    init: InitFn
    apply: ApplyFn


def stateless(fn: Callable[..., jax.Array], init_params: Callable[..., Params] | None = None) -> NormTransform:
    """Lifts a pure function of parameters and input to a transform without state.

    Args:
      fn: `fn(params, x, *, mask, **context) -> y`.
      init_params: `init_params(rng, x, **context) -> params`; `None` means no parameters.

    Returns:
      The transform; its state is the empty dict.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> centre = nj.stateless(lambda params, x, *, mask: x - x.mean(-1, keepdims=True))
      >>> y, _ = nj.chain(centre, nj.rms_norm()).apply({"0": {}, "1": {}}, {"0": {}, "1": {}}, jnp.eye(2), train=True)
      >>> print(y.round(3))
      [[ 1. -1.]
       [-1.  1.]]
    """

    def init(rng, x, **context):
        return ({} if init_params is None else init_params(rng, x, **context)), {}

    def apply(params, state, x, *, train, mask=None, **context):
        del train
        return fn(params, x, mask=mask, **context), state

    return NormTransform(init, apply)


def chain(*transforms: NormTransform) -> NormTransform:
    """Applies transforms one after another: `chain(f, g)` is `g(f(x))`.

    Args:
      *transforms: At least one transform. Each gets the same mask and context.

    Returns:
      A transform whose parameters and state are dicts keyed `"0"`, `"1"`, ... in that order.

    Raises:
      ValueError: If there is no transform.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> bcn = nj.chain(nj.batch_norm(), nj.group_norm(num_groups=2))
      >>> params, state = bcn.init(None, jnp.ones((8, 4)))
      >>> sorted(params), sorted(state["0"])
      (['0', '1'], ['mean', 'var'])
    """
    _check_members("chain", transforms)

    def init(rng, x, **context):
        params, state = {}, {}
        for key, member, member_rng in _members(rng, transforms):
            params[key], state[key] = member.init(member_rng, x, **context)
            x = _output_struct(member, params[key], state[key], x, context)
        return params, state

    def apply(params, state, x, *, train, mask=None, **context):
        new_state = {}
        for key, member, _ in _members(None, transforms):
            x, new_state[key] = member.apply(params[key], state[key], x, train=train, mask=mask, **context)
        return x, new_state

    return NormTransform(init, apply)


def split(transforms: Sequence[NormTransform], *, axis: int = -1, sizes: Sequence[int] | None = None) -> NormTransform:
    """Gives each transform its own slice of the features and concatenates what they return.

    IBN-Net's layer, for one, is `split([instance_norm(), batch_norm()])` (arXiv 1807.09441).

    Args:
      transforms: At least one transform.
      axis: The axis that is cut.
      sizes: Length of each slice; they must add up to the axis. `None` cuts equal parts, the remainder going to
        the first ones.

    Returns:
      A transform whose parameters and state are dicts keyed `"0"`, `"1"`, ...; a mask must have size 1 on `axis`.

    Raises:
      ValueError: If sizes and transforms, or sizes and the input's axis, do not match.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> ibn = nj.split([nj.instance_norm(), nj.batch_norm()])
      >>> params, _ = ibn.init(None, jnp.ones((2, 4, 4, 6)))
      >>> params["0"]["scale"].shape, params["1"]["scale"].shape
      ((3,), (3,))
    """
    _check_members("split", transforms)
    if sizes is not None and len(sizes) != len(transforms):
        raise ValueError(f"split got {len(transforms)} transforms but {len(sizes)} sizes: {tuple(sizes)}.")

    def bounds(x) -> list[tuple[int, int]]:
        (a,) = _checks.canonical_axes(axis, x.ndim)
        return _slices(x.shape[a], len(transforms), sizes)

    def init(rng, x, **context):
        params, state = {}, {}
        for (start, stop), (key, member, member_rng) in zip(bounds(x), _members(rng, transforms), strict=True):
            shape = list(x.shape)
            shape[axis] = stop - start
            part = jax.ShapeDtypeStruct(tuple(shape), x.dtype)
            params[key], state[key] = member.init(member_rng, part, **context)
        return params, state

    def apply(params, state, x, *, train, mask=None, **context):
        _check_feature_mask(mask, x, axis)
        outputs, new_state = [], {}
        for (start, stop), (key, member, _) in zip(bounds(x), _members(None, transforms), strict=True):
            part = jax.lax.slice_in_dim(x, start, stop, axis=axis)
            y, new_state[key] = member.apply(params[key], state[key], part, train=train, mask=mask, **context)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=axis), new_state

    return NormTransform(init, apply)


def blend(transforms: Sequence[NormTransform], weights: Sequence[float] | NormTransform) -> NormTransform:
    r"""The weighted sum $\sum_i w_i f_i(x)$ of several transforms of the same input.

    Args:
      transforms: At least one transform.
      weights: One number per transform, or a transform that returns an array of shape `(len(transforms),)`:
        learned weights (a softmax of logits) or scheduled ones (a counter in its state) are values too.

    Returns:
      A transform whose parameters and state are dicts keyed `"0"`, `"1"`, ..., and `"weights"` if they are a
      transform.

    Raises:
      ValueError: If the number of weights differs from the number of transforms.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> def init_logits(rng, x):
      ...     return {"logits": jnp.zeros(2)}
      >>> softmax = nj.stateless(lambda params, x, *, mask: jax.nn.softmax(params["logits"]), init_logits)
      >>> norm = nj.blend([nj.layer_norm(), nj.batch_norm()], softmax)
      >>> params, state = norm.init(None, jnp.ones((4, 3)))
      >>> sorted(params)
      ['0', '1', 'weights']
    """
    _check_members("blend", transforms)
    weigher = weights if isinstance(weights, NormTransform) else None
    if weigher is None and len(weights) != len(transforms):
        raise ValueError(f"blend got {len(transforms)} transforms but {len(weights)} weights: {weights!r}.")

    def init(rng, x, **context):
        members = _members(rng, (*transforms, *([] if weigher is None else [weigher])))
        params, state = {}, {}
        for key, member, member_rng in members:
            key = "weights" if member is weigher else key
            params[key], state[key] = member.init(member_rng, x, **context)
        return params, state

    def apply(params, state, x, *, train, mask=None, **context):
        new_state = {}
        if weigher is None:
            w = jnp.asarray(weights, statistics_dtype(x.dtype))
        else:
            w, new_state["weights"] = weigher.apply(
                params["weights"], state["weights"], x, train=train, mask=mask, **context
            )
            if w.shape != (len(transforms),):
                raise ValueError(f"blend expects weights of shape ({len(transforms)},), got {w.shape}.")
        outputs = []
        for key, member, _ in _members(None, transforms):
            y, new_state[key] = member.apply(params[key], state[key], x, train=train, mask=mask, **context)
            outputs.append(y)
        dtype = promote(*(y.dtype for y in outputs))
        wide = promote(dtype, w.dtype)
        total = sum(w[i].astype(wide) * y.astype(wide) for i, y in enumerate(outputs))
        return jnp.asarray(total, dtype), new_state

    return NormTransform(init, apply)


def _check_members(name: str, transforms: Sequence[NormTransform]) -> None:
    if not transforms:
        raise ValueError(f"{name} needs at least one transform, got none.")
    for t in transforms:
        if not isinstance(t, NormTransform):
            raise TypeError(f"{name} takes NormTransforms, got {t!r}; a factory must be called, e.g. rms_norm().")


def _members(rng: jax.Array | None, transforms: Sequence[NormTransform]):
    rngs = [None] * len(transforms) if rng is None else jax.random.split(rng, len(transforms))
    return [(str(i), t, r) for i, (t, r) in enumerate(zip(transforms, rngs, strict=True))]


def _output_struct(member: NormTransform, params, state, x, context):
    # Conditions may be shapes, like x; what is neither an array nor a shape (a name, a number of tasks) stays as it is.
    shaped = {k: v for k, v in context.items() if hasattr(v, "shape") and hasattr(v, "dtype")}
    rest = {k: v for k, v in context.items() if k not in shaped}

    def forward(params, state, x, shaped):
        return member.apply(params, state, x, train=False, **shaped, **rest)[0]

    return jax.eval_shape(forward, params, state, jax.ShapeDtypeStruct(x.shape, x.dtype), shaped)


def _slices(size: int, parts: int, sizes: Sequence[int] | None) -> list[tuple[int, int]]:
    if sizes is None:
        sizes = [size // parts + (i < size % parts) for i in range(parts)]
    if sum(sizes) != size or min(sizes) < 1:
        raise ValueError(f"split sizes {tuple(sizes)} do not cut an axis of length {size} into positive parts.")
    stops = [sum(sizes[: i + 1]) for i in range(parts)]
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _check_feature_mask(mask, x, axis: int) -> None:
    if mask is None:
        return
    _checks.check_mask(mask, x.shape)
    (a,) = _checks.canonical_axes(axis, x.ndim)
    from_right = x.ndim - a
    if mask.ndim >= from_right and mask.shape[-from_right] != 1:
        raise ValueError(
            f"split cuts axis {axis}, so the mask must have size 1 there; got a mask of shape {mask.shape}."
        )
