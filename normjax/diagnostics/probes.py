"""Activations of a Flax model by path, without a change to the model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from normjax.optim._leaves import is_float
from normjax.optim._paths import ROOT, listing

Where = Callable[[str], bool]


def _named(captured: Iterable[tuple[tuple[Any, ...], Any]], where: Where | None) -> dict[str, jax.Array]:
    """Captured values by path; a module called several times has a number for each call."""
    found: dict[str, jax.Array] = {}
    for keys, calls in captured:
        parts = [str(key) for key in keys if key != "__call__"]
        calls = calls if isinstance(calls, tuple) else (calls,)
        for i, value in enumerate(calls):
            path = "/".join(parts if len(calls) == 1 else [*parts, str(i)]) or ROOT
            if isinstance(value, jax.Array) and is_float(value) and (where is None or where(path)):
                found[path] = value
    return found


def _flat(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    for key, node in tree.items():
        yield from _flat(node, (*above, key)) if isinstance(node, Mapping) else [((*above, key), node)]


def _require(found: dict[str, jax.Array], every: Iterable[str]) -> dict[str, jax.Array]:
    if not found:
        raise ValueError(f"where= selects none of the captured activations {listing(every)}.")
    return found


def linen_activations(
    module: nn.Module,
    variables: Any,
    *args: Any,
    where: Where | None = None,
    mutable: Sequence[str] = (),
    **options: Any,
) -> dict[str, jax.Array]:
    """Outputs of every submodule, and what modules sow, for one call of a linen module.

    A nonlinearity that is a function and no module shows in what follows it, not by itself: apply it to the output
    before it, or sow its result.

    Args:
      module: The module.
      variables: Its variables, as for `module.apply`.
      *args: Its inputs.
      where: Which paths to keep; `None` keeps all.
      mutable: Collections that the call writes, e.g. `("batch_stats",)` in training; what it writes is dropped.
      **options: What else `module.apply` takes.

    Returns:
      Floating arrays by path, e.g. `"Dense_0"`; `"."` is the output of the module itself, and a submodule that is
      called twice gives `"Dense_0/0"` and `"Dense_0/1"`. Works under `jit`.

    Raises:
      ValueError: If nothing is kept.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, normjax as nj
      >>> model = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
      >>> variables = model.init(jax.random.key(0), jnp.ones((4, 5)))
      >>> found = nj.diagnostics.linen_activations(model, variables, jnp.ones((4, 5)))
      >>> {path: a.shape for path, a in found.items()}
      {'layers_0': (4, 3), 'layers_2': (4, 2), '.': (4, 2)}
    """
    kept = ["intermediates", *mutable]
    _, state = module.apply(variables, *args, capture_intermediates=True, mutable=kept, **options)
    captured = list(_flat(state["intermediates"]))
    return _require(_named(captured, where), _named(captured, None))


def nnx_activations(model: nnx.Module, *args: Any, where: Where | None = None, **options: Any) -> dict[str, jax.Array]:
    """Outputs of every submodule, and what modules sow as `nnx.Intermediate`, for one call of an nnx module.

    The call is one of a copy: running statistics of the model stay what they are.

    Args:
      model: The model.
      *args: Its inputs.
      where: As in `linen_activations`.
      **options: What else the model takes.

    Returns:
      As `linen_activations`, e.g. `"blocks/0/ffn"`. Modules below `nnx.scan` or `nnx.remat` are not seen one by one.

    Raises:
      ValueError: If nothing is kept.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> model = nj.models.MLP(4, 8, rngs=nnx.Rngs(0))
      >>> found = nj.diagnostics.nnx_activations(model, jnp.ones((2, 4)))
      >>> {path: a.shape for path, a in found.items()}
      {'.': (2, 4), 'down': (2, 4), 'up': (2, 8)}
    """
    _, state = nnx.capture(nnx.clone(model), nnx.Intermediate, method_outputs=nnx.Intermediate)(*args, **options)
    captured = [(path, variable.get_value()) for path, variable in nnx.to_flat_state(state)]
    return _require(_named(captured, where), _named(captured, None))
