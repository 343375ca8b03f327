"""What projection and tracking add to a training step of the flagship: interleaved runs, medians, one command.

`python -m experiments overhead` trains the flagship's network (all seeds at once) under several optimizers in the same
process, one task of each in turn, and compares the medians of the time per step with plain Adam's. It also counts how
often each function was compiled (once, if nothing changes between steps) and what in it would wait for the host. Then
the same for AdamW on a language model of eight blocks, whose step is what projection is measured against in practice.
"""

import dataclasses
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.table

import normjax as nj
from experiments import records, timing
from experiments.plasticity import training
from experiments.plasticity.arms import TRACK_EVERY, Arm, Strengths, hidden_kernels, per_seed, tracker
from experiments.plasticity.config import Config as Setting
from experiments.training_steps import language_model, training_step


def _adam(rate: Any, strengths: Strengths) -> optax.GradientTransformation:
    del strengths
    return optax.adam(rate)


def _projected(rate: Any, strengths: Strengths) -> optax.GradientTransformation:
    del strengths
    return optax.chain(optax.adam(rate), nj.project_weights(mask=hidden_kernels, axes=per_seed))


def _tracked(rate: Any, strengths: Strengths) -> optax.GradientTransformation:
    del strengths
    return optax.chain(optax.adam(rate), tracker(rate, hidden_kernels))


def _nap(learning_rate: Any, strengths: Strengths, **options: Any) -> optax.GradientTransformation:
    del strengths
    return nj.nap(
        optax.adam(learning_rate),
        mask=hidden_kernels,
        axes=per_seed,
        learning_rate=learning_rate,
        track_every=TRACK_EVERY,
        **options,
    )


def _nap_decay(rate: Any, strengths: Strengths) -> optax.GradientTransformation:
    return _nap(rate, strengths, scale_offset="decay", rate=strengths.affine_decay)


OPTIMIZERS: dict[str, Callable[[Any, Strengths], optax.GradientTransformation]] = {
    "adam": _adam,
    "adam + projection": _projected,
    f"adam + tracking every {TRACK_EVERY}": _tracked,
    f"nap(adam), tracking every {TRACK_EVERY}": _nap,
    "the same, affine decayed": _nap_decay,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Time that projection and tracking add to a step.

    Attributes:
      rounds: How often every optimizer is timed, in turn.
      seeds: Seeds trained together, as in the flagship.
      width: Units per hidden layer.
      batch_size: Images per step.
      steps: Steps per timed call.
      layers: Blocks of the language model; 0 leaves it out.
      features: Its width.
      sequences: Sequences per step.
      length: Their tokens.
      out: JSON file to write, besides the printed table.
    """

    rounds: int = 15
    seeds: int = 5
    width: int = 64
    batch_size: int = 64
    steps: int = 150
    layers: int = 8
    features: int = 128
    sequences: int = 8
    length: int = 128
    out: Path | None = None


def host_calls(lowered: jax.stages.Lowered) -> int:
    """Counts the places where a compiled program waits for the host: callbacks, infeeds, outfeeds, sends, receives."""
    pattern = r"custom_call @\w*callback\w*|stablehlo\.(?:infeed|outfeed|send|recv)\b"
    return len(re.findall(pattern, lowered.as_text()))


def measure(config: Config) -> dict[str, Any]:
    """Times every optimizer in turn.

    Args:
      config: Sizes and number of rounds.

    Returns:
      `{"optimizers": {name: {"microseconds_per_step", "ratio", "compilations", "host_calls"}}, ...}` with medians over
      the rounds; the ratio is the median of the ratios to Adam's time in the same round.
    """
    setting = Setting(seeds=config.seeds, width=config.width, batch_size=config.batch_size, steps=config.steps)
    inputs = jax.random.normal(jax.random.key(0), (setting.images, 64), jnp.float32)
    seeds, rate, task = jnp.arange(config.seeds, dtype=jnp.int32), jnp.float32(1e-3), jnp.int32(0)
    tasks = training.draw_task(seeds, task, setting.images, setting.steps, setting.batch_size)
    trainers, states, waits = {}, {}, {}
    for name, optimizer in OPTIMIZERS.items():
        trainers[name] = training.make_trainer(Arm(name, True, optimizer), setting, inputs)
        state = trainers[name].init(seeds, rate, task)
        waits[name] = host_calls(trainers[name].train.lower(state, rate, tasks))  # pyright: ignore[reportFunctionMemberAccess]
        states[name], _ = jax.block_until_ready(trainers[name].train(state, rate, tasks))

    times: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for _ in range(config.rounds):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            # A transfer on the way into or out of the call would raise here; `host_calls` looks inside it.
            with jax.transfer_guard("disallow"):
                states[name], _ = trainer.train(states[name], rate, tasks)
            jax.block_until_ready(states[name])
            times[name].append((time.perf_counter() - start) / config.steps)
    baseline = times["adam"]
    return {
        "setting": records.plain(config),
        "optimizers": {
            name: {
                "microseconds_per_step": 1e6 * statistics.median(values),
                "ratio": statistics.median(v / b for v, b in zip(values, baseline, strict=True)),
                "compilations": trainers[name].train._cache_size(),  # pyright: ignore[reportFunctionMemberAccess]
                "host_calls": waits[name],
            }
            for name, values in times.items()
        },
    }


def measure_language_model(config: Config) -> dict[str, Any]:
    """Times a step of the language model under AdamW, alone and with every matrix of its blocks projected and tracked.

    Args:
      config: Sizes and number of rounds.

    Returns:
      `{name: {"milliseconds_per_step", "ratio", "ratio_of_fastest"}}`; ratios to AdamW alone, the first a median over
      rounds.
    """
    hidden = nj.hidden_weights(readout=("head",))
    adamw = optax.adamw(1e-3)
    transforms = {
        "adamw": adamw,
        f"nap(adamw), tracking every {TRACK_EVERY}": nj.nap(
            adamw, mask=hidden, learning_rate=1e-3, track_every=TRACK_EVERY
        ),
        "nap(adamw), tracking every step": nj.nap(adamw, mask=hidden, learning_rate=1e-3),
    }
    sizes = {"batch_size": config.sequences, "length": config.length}
    model = language_model(nj.placements.peri(nj.rms_norm()), layers=config.layers, width=config.features)
    calls = {name: training_step(model, tx, **sizes) for name, tx in transforms.items()}
    times = timing.interleaved(calls, config.rounds)
    return {
        name: {
            "milliseconds_per_step": 1e3 * float(np.median(seconds)),
            "ratio": timing.ratio(times, name, "adamw"),
            "ratio_of_fastest": timing.ratio_of_fastest(times, name, "adamw"),
        }
        for name, seconds in times.items()
    }


def run(config: Config) -> None:
    """Measures, prints the tables and writes the JSON file if one is asked for."""
    console = rich.console.Console()
    result = measure(config)
    table = rich.table.Table(title="time per training step, medians of interleaved runs")
    for column in ("optimizer", "µs per step", "ratio to adam", "compilations", "host calls"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for name, row in result["optimizers"].items():
        counts = (str(row["compilations"]), str(row["host_calls"]))
        table.add_row(name, f"{row['microseconds_per_step']:.1f}", f"{row['ratio']:.3f}", *counts)
    console.print(table)
    if config.layers:
        result["language_model"] = measure_language_model(config)
        table = rich.table.Table(title=f"the same for a language model of {config.layers} blocks")
        for i, column in enumerate(("optimizer", "ms per step", "ratio to adamw", "by fastest rounds")):
            table.add_column(column, justify="right" if i else "left")
        for name, row in result["language_model"].items():
            table.add_row(name, *(f"{row[key]:.3f}" for key in row))
        console.print(table)
    if config.out is not None:
        records.write_json(config.out, {**records.environment(), **result})
