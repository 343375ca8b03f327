"""What a norm costs in inference, before and after it is folded away: time, operations and memory traffic.

`python -m experiments inference_cost` evaluates one transformer with each norm and with what folding leaves of it, all
in one process and in turn. Ratios are to Pre-LN as it was trained. The papers' own claims are printed beside them: Yang
et al. 2022 about 31 % faster inference with Unified Normalization than with layer norm, Jiang et al. 2023 1 to 10 %
less time with Pre-RMSNorm. With libtpu installed, `--chip v5e` compiles every form for that TPU and reads bytes and the
lower bound of its time from the program.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from flax import nnx

import normjax as nj
from experiments import UsageError, records
from experiments.timing import interleaved, ratio
from normjax import fold
from normjax.models import AttentionKind, LanguageModel, TransformerConfig
from pallas_kernels import analysis

BASELINE = "Pre-LN"
NORMS = {BASELINE: nj.layer_norm(), "BN": nj.batch_norm(), "UN": nj.unified_norm(), "PRepBN": nj.prep_batch_norm()}
# Time saved against layer norm, as the papers state it.
CLAIMS = {"UN, folded": "31 % faster", "Pre-RMS": "1-10 % less", "Pre-CRMS": "1-10 % less"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Cost of norms in inference.

    Attributes:
      layers: Blocks of the transformer.
      features: Of its stream.
      tokens: Of a sequence.
      batch: Sequences.
      rounds: How often every form is timed, in turn.
      chip: A TPU to compile for besides, or `None`.
      out: JSON file to write, besides the printed table.
    """

    layers: int = 4
    features: int = 256
    tokens: int = 196
    batch: int = 1
    rounds: int = 30
    chip: str | None = None
    out: Path | None = None


def model_with(norm: nj.NormTransform, config: Config) -> LanguageModel:
    """A bidirectional transformer with biases, gains and statistics that differ from those of a new one."""
    stack = TransformerConfig(
        layers=config.layers,
        features=config.features,
        heads=max(config.features // 64, 1),
        hidden=4 * config.features,
        placement=nj.placements.pre(norm),
        kinds=(AttentionKind(causal=False),),
        use_bias=True,
    )
    model = LanguageModel(stack, vocabulary=256, tied=False, max_tokens=config.tokens, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)

    def moved(leaf: jax.Array) -> jax.Array:
        # A schedule counts down in training; here it has ended.
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.zeros_like(leaf)
        return leaf * jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)

    nnx.update(model, jax.tree.map(moved, nnx.state(model)))
    model.eval()
    return model


def forms(config: Config) -> dict[str, tuple[LanguageModel, str]]:
    """Every form by name, with the name of the one whose function it shares."""
    found = {name: (model_with(norm, config), name) for name, norm in NORMS.items()}
    for name in NORMS:
        found[f"{name}, folded"] = _folded(found[name][0]), name
    rms = fold.to_pre_rms(found[BASELINE][0])
    found |= {"Pre-RMS": (rms, BASELINE), "Pre-RMS, folded": (_folded(rms), BASELINE)}
    found["Pre-CRMS"] = fold.to_pre_crms(found[BASELINE][0]), BASELINE
    return found


def _folded(model: LanguageModel) -> LanguageModel:
    folded, _ = fold.fold_model(model, drop=True)
    folded.eval()
    return folded


def instructions(compiled: jax.stages.Compiled) -> int:
    """Counts the instructions of a compiled program, those inside of fusions too."""
    return len(re.findall(r"(?m)^\s+(?:ROOT )?%?[\w.-]+ = ", compiled.as_text() or ""))


def measure(config: Config) -> dict[str, Any]:
    """Compiles and times every form.

    Args:
      config: Sizes and number of rounds.

    Returns:
      `{"forms": {name: {"milliseconds", "ratio", "instructions", "bytes", "error", ...}}, ...}`: the median time of a
      forward pass, the median ratio to Pre-LN's of the same round, what XLA's cost analysis says is accessed, and the
      relative difference of the logits from those of the form that was trained.

    Raises:
      UsageError: If a chip is named that cannot be compiled for.
    """
    if config.chip is not None and not (config.chip in analysis.CHIPS and analysis.available(config.chip)):
        raise UsageError(f"cannot compile for --chip {config.chip}; a TPU needs libtpu: pip install 'normjax[tpu]'.")
    tokens = jax.random.randint(jax.random.key(0), (config.batch, config.tokens), 0, 256, jnp.int32)
    built, calls, rows = forms(config), {}, {}
    for name, (model, source) in built.items():
        compiled, state, function = _compiled(model, tokens)
        calls[name] = lambda compiled=compiled, state=state: compiled(state, tokens)
        cost = compiled.cost_analysis() or {}
        error = fold.verify(calls[source], calls[name]).outputs["."].relative_error
        rows[name] = {"instructions": instructions(compiled), "bytes": cost["bytes accessed"], "error": error}
        if config.chip is not None:
            report = analysis.analyse(function, (state, tokens), config.chip)
            rows[name] |= {"chip_bytes": report.hbm_bytes, "chip_microseconds": 1e6 * report.seconds}
    times = interleaved(calls, config.rounds)
    for name, row in rows.items():
        row |= {"milliseconds": 1e3 * float(np.median(times[name])), "ratio": ratio(times, name, BASELINE)}
    return {"setting": records.plain(config), "forms": rows}


def _compiled(model: LanguageModel, tokens: jax.Array) -> tuple[jax.stages.Compiled, Any, Callable[..., jax.Array]]:
    graph, state = nnx.split(model)

    def run(state: Any, tokens: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(tokens)

    return jax.jit(run).lower(state, tokens).compile(), state, run


def table(result: dict[str, Any], chip: str | None) -> rich.table.Table:
    """The forms as a table."""
    columns = ["form", "ms", "time", "instructions", "bytes", "error", "paper"]
    columns[-1:-1] = [] if chip is None else [f"{chip} bytes", f"{chip} µs"]
    found = rich.table.Table(title="inference: medians of interleaved runs; time, instructions and bytes to Pre-LN's")
    for column in columns:
        found.add_column(column, justify="left" if column in ("form", "paper") else "right", no_wrap=column == "form")
    first = result["forms"][BASELINE]
    for name, row in result["forms"].items():
        shares = [f"{row[key] / first[key]:.3f}" for key in ("instructions", "bytes")]
        cells = [name, f"{row['milliseconds']:.2f}", f"{row['ratio']:.3f}", *shares, f"{row['error']:.1e}"]
        if chip is not None:
            cells += [f"{row['chip_bytes'] / first['chip_bytes']:.3f}", f"{row['chip_microseconds']:.1f}"]
        found.add_row(*cells, CLAIMS.get(name, ""))
    return found


def run(config: Config) -> None:
    """Measures, prints the table and writes the JSON file if one is asked for."""
    result = measure(config)
    rich.console.Console().print(table(result, config.chip))
    if config.out is not None:
        records.write_json(config.out, {**records.environment(), **result})
