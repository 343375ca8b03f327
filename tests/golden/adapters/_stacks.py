"""The comparison of a whole stack of blocks with a recorded one, given its configuration and a table of names."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normjax.loaders.rules import Table, at_every, to_ours
from normjax.models import Transformer, TransformerConfig
from tests.golden.adapters._compilation import quick_compilation
from tests.golden.adapters._kinds import Check
from tests.golden.comparison import assert_close
from tests.golden.vectors import Vector, find, group

Arrays = dict[str, Any]


class Layout(NamedTuple):
    """How a recorded model is laid out.

    Attributes:
      table: What each recorded array holds; `{i}` is the block.
      outputs: Name of the recorded stream after block `i`.
    """

    table: Table
    outputs: str = "layer_{i}"


def _converted(layout: Layout, layers: int, recorded: Arrays) -> Arrays:
    """Our paths and the recorded arrays in our layout; what was not recorded is left out."""
    rules = at_every(layout.table, layers)
    found = (to_ours(rule, recorded[name]) for name, rule in rules.items() if name in recorded)
    return {path: value for arrays in found for path, value in arrays.items()}


def stack(
    layout: Layout | Callable[[Vector], Layout], configure: Callable[[Vector], TransformerConfig]
) -> Callable[[Vector], Check]:
    def adapter(vector: Vector) -> Check:
        own = layout if isinstance(layout, Layout) else layout(vector)
        return Check(lambda vector: _check(own, configure(vector), vector))

    return adapter


def _check(layout: Layout, config: TransformerConfig, vector: Vector) -> None:
    arrays = vector.arrays()
    combo = vector.sidecar["compute_dtype"]
    dtype = {"f32": jnp.float32, "bf16": jnp.bfloat16}[combo]
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    # A recorded parameter without a gradient takes no part: the modules of some stacks have a norm too many.
    extra = group(arrays, "param")
    used = {name: v for name, v in extra.items() if f"{combo}/gparam/{name}" in arrays}
    given = _converted(layout, config.layers, used)
    ours = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}
    assert ours == set(given), f"ours only: {sorted(ours - set(given))}, recorded only: {sorted(set(given) - ours)}"

    def forward(params, x):
        flat = [(path, v.replace(params[".".join(map(str, path))])) for path, v in nnx.to_flat_state(state)]
        stack = nnx.merge(graph, nnx.from_flat_state(flat))
        carries = list(stack.carries(_embedded(x, extra)))
        first = [c[0] if isinstance(c, tuple) else c for c in carries]
        return stack.ended(carries[-1]), dict(_named(layout, first))

    # Operation by operation: the recorded stacks have most of theirs in common, and each is compiled once for all.
    def run(params, x, cotangent):
        y, pullback, hidden = jax.vjp(forward, params, x, has_aux=True)
        return y, hidden, pullback(cotangent)

    params = {path: np.asarray(value).astype(dtype) for path, value in given.items()}
    with quick_compilation():
        y, hidden, (gparams, gx) = run(params, *(arrays[name].astype(dtype) for name in ("in/x", "cot/y")))
    # A recorded last stream may be the normalized one.
    last = {k for k, v in group(arrays, combo, "out").items() if np.array_equal(v, arrays[f"{combo}/out/y"])}
    actual = {f"out/{k}": v for k, v in ({"y": y} | {k: v for k, v in hidden.items() if k not in last}).items()}
    actual |= {"gin/x": gx} | {f"gparam/{k}": v for k, v in gparams.items()}
    expected, exact = (_recorded(layout, config.layers, v) for v in (vector, _in_float32(vector)))
    zero = [k for k in expected if k.endswith("key.bias") and config.kinds[0].rope is None]
    for name in sorted(set(actual) & set(expected)):
        if name in zero:
            # Softmax does not see it: what is left are roundings of a sum of the size of the query's gradient.
            size = np.max(np.abs(np.asarray(actual[name.replace("key", "query")], np.float32)))
            assert np.max(np.abs(np.asarray(actual[name], np.float32))) <= 64 * jnp.finfo(dtype).eps * size, name
        elif combo == "f32":
            assert_close(actual[name], expected[name], 1e-4, name)
        else:
            _assert_close_in_bfloat16(actual[name], expected[name], exact[name], name)
    assert {k for k in expected if k.startswith(("gin", "gparam", "out/y"))} <= set(actual)


def _recorded(layout: Layout, layers: int, vector: Vector) -> Arrays:
    arrays, combo = vector.arrays(), vector.sidecar["compute_dtype"]
    found = {f"{kind}/{k}": v for kind in ("out", "gin") for k, v in group(arrays, combo, kind).items()}
    return found | {f"gparam/{k}": v for k, v in _converted(layout, layers, group(arrays, combo, "gparam")).items()}


def _in_float32(vector: Vector) -> Vector:
    """The same stack as recorded in float32."""
    name = vector.name.replace("_bf16", "_f32")
    return next(v for v in find() if v.name == name)


def _assert_close_in_bfloat16(actual, recorded: np.ndarray, exact: np.ndarray, what: str) -> None:
    """No further from the float32 result than 3e-2 of its norm (the card's bound), or than twice the recorded one."""
    actual, recorded, exact = (np.asarray(a, np.float64) for a in (actual, recorded, exact))
    error, theirs = (np.linalg.norm(a - exact) for a in (actual, recorded))
    bound = max(3e-2 * np.linalg.norm(exact), 2 * theirs)
    assert error <= bound, f"{what}: {error:.3g} from float32, the recorded bfloat16 {theirs:.3g}"


def _named(layout: Layout, streams: list[jax.Array]) -> Iterator[tuple[str, jax.Array]]:
    start = 0 if layout.outputs == "hidden_{i}" else -1
    return ((layout.outputs.format(i=start + n), s) for n, s in enumerate(streams))


def _embedded(x: jax.Array, recorded: Arrays) -> jax.Array:
    """What the recorded model adds to an embedding that it is given."""
    for name in ("wpe.weight", "embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight"):
        if name in recorded:
            x = x + jnp.asarray(recorded[name]).astype(x.dtype)
    return x
