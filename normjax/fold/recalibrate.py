r"""Running statistics of batch norms estimated anew from a few batches.

A running average forgets at the momentum's rate and lags behind weights that were averaged, pruned, quantized or
trained with drop-path (SLAB's authors train statistics alone for ten epochs). Here every batch counts the same:

$$\bar\mu = \langle \mu_b \rangle,\qquad
\bar\sigma^2 = \langle \sigma_b^2 \rangle + \langle (\mu_b - \bar\mu)^2 \rangle$$

which for batches of one size are the statistics of all of them together.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from normjax.optim._paths import flatten


def recalibrate(
    step: Callable[[Any, Any], Any], statistics: Any, batches: Iterable[Any], *, between: bool = True
) -> Any:
    r"""Estimates running statistics from calibration batches.

    Any layer whose running values move as $s \leftarrow m s + (1 - m) b$ is served, Flax's own too: the batch's value
    $b$ is read off from a step that starts at 0, $m$ from one that starts at 1. Counters and windows stay.

    Args:
      step: `step(statistics, batch) -> statistics`, a forward pass in training mode, without an optimizer:
        `lambda s, x: module.apply({"params": p, "batch_stats": s}, x, mutable="batch_stats")[1]["batch_stats"]`.
        For nnx models see `recalibrate_model`.
      statistics: The tree of running statistics; leaves called `mean` and `var` are estimated anew.
      batches: At least one.
      between: Whether the variance of the batches' means is added to the variances that belong to them.

    Returns:
      The new tree.

    Raises:
      ValueError: If there are no batches, or a layer keeps its statistics in training (frozen, evaluation mode).

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> from normjax import fold
      >>> layer = nj.linen.Norm(nj.batch_norm(), use_running_average=False)
      >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])]
      >>> variables = layer.init(jax.random.key(0), batches[0])
      >>> def step(statistics, x):
      ...     given = {**variables, "batch_stats": statistics}
      ...     return layer.apply(given, x, mutable="batch_stats")[1]["batch_stats"]
      >>> new = fold.recalibrate(step, variables["batch_stats"], batches)
      >>> print(new["mean"].round(2), new["var"].round(2))
      [4.] [5.]

    References:
      Hubara et al. 2020, [Improving Post Training Neural Quantization](https://arxiv.org/abs/2006.10518); Guo et al.
      2024, [SLAB](https://arxiv.org/abs/2405.11582).
    """
    flat = flatten(statistics)
    chosen = [path for path in flat.leaves if path.split("/")[-1] in ("mean", "var")]
    rates: dict[str, np.ndarray] | None = None
    found: list[dict[str, np.ndarray]] = []
    for batch in batches:
        ends = [_read(step, flat, chosen, start, batch) for start in ((0.0,) if rates else (0.0, 1.0))]
        if rates is None:
            rates = {path: 1 - (ends[1][path] - ends[0][path]) for path in chosen}
            still = [path for path, rate in rates.items() if np.any(rate <= 0)]
            if still or not chosen:
                raise ValueError(
                    f"the statistics {still or 'are none and'} do not move; is the model in training mode?"
                )
        found.append({path: ends[0][path] / rates[path] for path in chosen})
    if not found:
        raise ValueError("batches is empty: there is nothing to estimate the statistics from.")
    means = {path: np.mean([batch[path] for batch in found], 0) for path in chosen}
    for path in chosen:
        centre = path.removesuffix("var") + "mean"
        if between and path.endswith("var") and centre in means:
            means[path] = means[path] + np.var([batch[centre] for batch in found], 0)
    return flat.replace({path: jnp.asarray(means[path], flat.leaves[path].dtype) for path in chosen})


def _read(step, flat, chosen, start: float, batch) -> dict[str, np.ndarray]:
    given = flat.replace({path: jnp.full_like(flat.leaves[path], start) for path in chosen})
    moved = flatten(step(given, batch)).leaves
    return {path: np.asarray(moved[path], np.float64) for path in chosen}


def recalibrate_model(model: nnx.Module, batches: Iterable[Any], *, between: bool = True) -> None:
    """`recalibrate` for an nnx model, whose running statistics are replaced.

    Args:
      model: Called with one batch, in training mode (`model.train()`); afterwards switch to `model.eval()`.
      batches: As in `recalibrate`.
      between: As in `recalibrate`.

    Returns:
      Nothing; the model's `nnx.BatchStat` variables hold the new values.

    Raises:
      ValueError: As in `recalibrate`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> from normjax import fold
      >>> layer = nj.nnx.Norm(nj.batch_norm(), 1, rngs=nnx.Rngs(0))
      >>> fold.recalibrate_model(layer, [jnp.array([[1.0], [3.0]])])
      >>> print(layer.mean[...].round(2), layer.var[...].round(2))
      [2.] [1.]
    """
    graph, statistics, rest = nnx.split(model, nnx.BatchStat, ...)

    def step(statistics, batch):
        copy = nnx.merge(graph, statistics, rest, copy=True)
        copy(batch)
        return nnx.state(copy, nnx.BatchStat)

    nnx.update(model, recalibrate(step, statistics, batches, between=between))
