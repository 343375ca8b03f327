"""Which leaves are projected: explicit masks, and a default that raises rather than guess a readout."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from normjax.backward_state import OVERWRITE_WITH_GRADIENT
from normjax.optim._leaves import is_float, require_float
from normjax.optim._paths import FlatTree, flatten, listing, match, refuse_inference_only

VECTORS = ("bias", "scale", "offset", "beta", "gamma")
READOUT = re.compile(
    r"(.*_)?(head|heads|readout|logits?|classifier|policy|actor|critic|values?|unembed(ding)?)(_?\d+)?"
)
EMBEDDING = re.compile(r"(.*_)?(embed|embedding|embeddings|embedder|wte|wpe)(_?\d+)?")


def _snake(name: str) -> str:
    """`ValueHead_0` and `value_head_0` are one name."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_").replace(".", "_")


def _named(path: str, pattern: re.Pattern[str]) -> bool:
    return any(pattern.fullmatch(_snake(part)) for part in path.split("/"))


def _attention_value(path: str, paths: Sequence[str]) -> bool:
    """The `value` projection of attention, told from a value head by its siblings `query` and `key`."""
    parts = path.split("/")
    if "value" not in parts:
        return False
    parent = "/".join(parts[: parts.index("value")])
    prefix = parent + "/" if parent else ""
    return all(any(p.startswith(f"{prefix}{name}/") for p in paths) for name in ("query", "key"))


def _is_written(path: str) -> bool:
    # State written by the backward pass: a gradient's window may have the shape of a weight.
    return OVERWRITE_WITH_GRADIENT in path.split("/")


def _is_weight(path: str, leaf: Any) -> bool:
    # By name as well: a scanned stack gives biases and scales a leading layer axis, hence two dimensions.
    return is_float(leaf) and np.ndim(leaf) >= 2 and path.split("/")[-1] not in VECTORS and not _is_written(path)


def _recognised(weights: Sequence[str], paths: Sequence[str]) -> list[str]:
    found = [path for path in weights if _named(path, READOUT) and not _attention_value(path, paths)]
    if not found:
        raise ValueError(
            f"No readout is recognised by name among the weights {listing(weights)}. A projected readout cannot change"
            " its scale, which stops a policy or value head from learning, so none is guessed. Pass "
            'mask=hidden_weights(readout=("Dense_3",)) with the names of all output layers, readout=() if '
            "every weight feeds a normalization, or a mask of your own."
        )
    return found


def _declared(readout: Sequence[str], weights: Sequence[str]) -> list[str]:
    def named(name: str) -> list[str]:
        return [path for path in weights if f"/{name}/" in f"/{path}/"]

    unknown = [name for name in readout if not named(name)]
    if unknown:
        raise ValueError(f"readout names {listing(unknown)}, but the weights are {listing(weights)}.")
    return [path for name in readout for path in named(name)]


def hidden_weights(readout: Sequence[str] | None = None, *, embeddings: bool = False) -> Callable[[Any], Any]:
    """Mask builder: the weights between the input and the readout.

    Selects every leaf with two or more dimensions, except readouts, embedding tables (unless asked) and
    leaves called `bias`, `scale`, `offset`, `beta` or `gamma` (in a scanned stack these have two
    dimensions too).

    A parameter tree does not say which layer is the readout. Name the output layers, all of them. With
    `None` they are recognised by the name of a module or leaf that is, or ends in, `head`, `heads`,
    `readout`, `logits`, `classifier`, `policy`, `actor`, `critic`, `value` or `unembed` (an attention
    layer's `value`, next to `query` and `key`, is not one); everything inside such a module is left out. If
    no name is recognised this raises, because `Dense_3` may be a policy head. A second output layer with a
    name outside this list is not noticed: declare it.

    Args:
      readout: names of the output layers as they occur in the paths (`"Dense_3"`, `"decoder/out"`); `()` if
        the parameters have none, e.g. below `optax.partition`; `None` to recognise them by name.
      embeddings: also select embedding tables (modules or leaves called `embedding`, `*_embed`, `wte`,
        `wpe`).

    Returns:
      A function from parameters to a tree of booleans with their structure, for `mask=`.

    Raises:
      TypeError: `readout` is a single string.
      ValueError: when the mask is applied: a declared name matches no weight, or none is recognised.

    Example:
      >>> import jax.numpy as jnp
      >>> from normjax.optim import hidden_weights
      >>> layer = {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}
      >>> hidden_weights(readout=("Dense_1",))({"Dense_0": layer, "Dense_1": layer})
      {'Dense_0': {'bias': False, 'kernel': True}, 'Dense_1': {'bias': False, 'kernel': False}}
    """
    if isinstance(readout, str):
        raise TypeError(f"readout is a sequence of names, got the string {readout!r}; write ({readout!r},).")

    def mask(params: Any) -> Any:
        flat = flatten(params)
        weights = [path for path, leaf in flat.leaves.items() if _is_weight(path, leaf)]
        out = _recognised(weights, list(flat.leaves)) if readout is None else _declared(readout, weights)
        hidden = {p for p in weights if p not in out and (embeddings or not _named(p, EMBEDDING))}
        return flat.treedef.unflatten([path in hidden for path in flat.leaves])

    return mask


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def select(mask: Any, params: Any, flat: FlatTree, default: Callable[[Any], Any], what: str) -> dict[str, Any]:
    """The leaves a mask selects, by path.

    Raises:
      ValueError: the mask leaves a parameter undecided, names something else, or selects nothing; the parameters were
        folded for inference.
      TypeError: an entry is not a boolean, or a selected leaf is not floating point.
    """
    refuse_inference_only(params, what)
    chosen = default if mask is None else mask
    tree = chosen(params) if callable(chosen) else chosen
    decided = match(tree, flat.leaves, "mask")
    undecided = [path for path in flat.leaves if path not in decided]
    if undecided:
        raise ValueError(f"mask says nothing about {listing(undecided)}; give True or False for every parameter.")
    wrong = {path: value for path, value in decided.items() if not _is_bool(value)}
    if wrong:
        path, value = next(iter(wrong.items()))
        raise TypeError(f"mask entries are booleans, got {value!r} for {path!r}.")
    selected = {path: leaf for path, leaf in flat.leaves.items() if decided[path]}
    if not selected:
        raise ValueError(
            f"The mask of {what} selects none of the parameters {listing(flat.leaves)}, so it would do nothing. Select"
            " at least one leaf (mask=True selects all), or leave the transform out."
        )
    require_float(selected, what)
    return selected


def float_leaves(params: Any) -> Mapping[str, Any]:
    """Mask: every floating-point leaf."""
    return _where(params, lambda leaf: True)


def float_matrices(params: Any) -> Mapping[str, Any]:
    """Mask: every floating-point leaf with at least two dimensions."""
    return _where(params, lambda leaf: np.ndim(leaf) >= 2)


def _where(params: Any, wanted: Callable[[Any], bool]) -> dict[str, bool]:
    leaves = flatten(params).leaves
    return {path: is_float(leaf) and wanted(leaf) and not _is_written(path) for path, leaf in leaves.items()}
