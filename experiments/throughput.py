"""Tokens per second of a Pre-RMS language model with each library's norm: `python -m experiments throughput`.

Both models are one: the same parameters, the same step, the norm alone is exchanged. They take steps in turn in the
same process, so that what disturbs the machine disturbs both. The exit status is 1 if normjax's is over 5 % slower.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import optax
import rich.console
import rich.table
from flax import nnx

import normjax as nj
from experiments import UsageError, records, timing
from experiments.training_steps import language_model, training_step

ALLOWED = 0.95


@dataclasses.dataclass(frozen=True)
class Config:
    """Tokens per second of a language model with two implementations of its norm.

    Attributes:
      rounds: How often each model takes a step, in turn.
      layers: Blocks.
      width: Features of the stream.
      length: Tokens of a sequence.
      batch_size: Sequences per step.
      out: JSON file to write, besides the printed table.
    """

    rounds: int = 25
    layers: int = 8
    width: int = 128
    length: int = 128
    batch_size: int = 8
    out: Path | None = None

    def __post_init__(self):
        """Rejects sizes that make no model."""
        if min(self.rounds, self.layers, self.length, self.batch_size) < 1 or self.width < 8 or self.width % 8:
            raise UsageError("all sizes must be at least 1, and --width a multiple of 8.")


def with_flax_norms(model: nj.models.LanguageModel, epsilon: float) -> nj.models.LanguageModel:
    """Exchanges every norm of a Pre-RMS model for `flax.nnx.RMSNorm`, in place."""
    width = model.stack.config.features

    def made() -> nnx.RMSNorm:
        return nnx.RMSNorm(width, epsilon=epsilon, rngs=nnx.Rngs(0))

    stack: Any = model.stack
    for block in stack.blocks:
        block.attention.before, block.ffn.before = made(), made()
    stack.final_norm = made()
    return model


def measure(config: Config) -> dict[str, Any]:
    """Times both models in turn.

    Args:
      config: Sizes and number of rounds.

    Returns:
      Tokens per second by model, medians, and `"ratio"`, the median over rounds of normjax's over Flax's.

    Raises:
      RuntimeError: If the two do not compute the same loss.
    """
    epsilon = 1e-6
    placement = nj.placements.pre(nj.rms_norm(epsilon=epsilon))
    models = {name: language_model(placement, layers=config.layers, width=config.width) for name in ("normjax", "flax")}
    with_flax_norms(models["flax"], epsilon)
    sizes = {"batch_size": config.batch_size, "length": config.length}
    calls = {name: training_step(model, optax.adamw(1e-3), **sizes) for name, model in models.items()}
    losses = {name: float(call()[0]) for name, call in calls.items()}
    # A few roundings of float32 per layer; anything else would be another function.
    if not np.isclose(losses["normjax"], losses["flax"], rtol=1e-4):
        raise RuntimeError(f"the models differ before any step, by their losses {losses}; their times say nothing.")
    times = timing.interleaved(calls, config.rounds)
    tokens = config.batch_size * config.length
    return {
        "setting": records.plain(config),
        "tokens_per_second": {name: tokens / float(np.median(seconds)) for name, seconds in times.items()},
        "ratio": timing.ratio(times, "flax", "normjax"),
        "ratio_of_fastest": timing.ratio_of_fastest(times, "flax", "normjax"),
    }


def run(config: Config) -> None:
    """Measures, prints the table and writes the JSON file if one is asked for.

    Raises:
      SystemExit: With status 1 if normjax is more than 5 % slower by medians and by the fastest rounds.
    """
    result = measure(config)
    table = rich.table.Table(title="training steps of a Pre-RMS language model, medians of interleaved runs")
    table.add_column("norm")
    table.add_column("tokens per second", justify="right")
    for name, speed in result["tokens_per_second"].items():
        table.add_row(name, f"{speed:,.0f}")
    console = rich.console.Console()
    console.print(table)
    console.print(f"normjax over flax: {result['ratio']:.3f}; by fastest rounds {result['ratio_of_fastest']:.3f}")
    if config.out is not None:
        records.write_json(config.out, {**records.environment(), **result})
    if max(result["ratio"], result["ratio_of_fastest"]) < ALLOWED:
        raise SystemExit(1)
