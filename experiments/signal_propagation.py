"""How signals and gradients grow with depth at initialization: `python -m experiments signal_propagation`.

A stack of random blocks gets a random sequence of unit variance, and the loss is a random projection of its output. The
mean square of the stream after each block and the norm of the gradient of the block's last matrix say what a placement
does before anything is learned. What is said of trained networks (exponential growth under Pre-LN) does not show here.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress
import rich.table
from flax import nnx

import normjax as nj
from experiments import UsageError, records
from experiments.placements import PLACEMENTS
from normjax.models import Transformer, TransformerConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Signals and gradients at initialization.

    Attributes:
      only: Names of placements; empty takes all of them.
      layers: Blocks of the stack.
      features: Width of the stream.
      heads: Heads of attention.
      hidden: Width of the feed-forward layer.
      tokens: Length of the sequence.
      gain: Every matrix starts normal with variance gain² / inputs, times what the placement says.
      seed: Of weights, input and loss.
      out: Folder for the table as JSON and the figure; nothing is written without one.
    """

    only: tuple[str, ...] = ()
    layers: int = 32
    features: int = 64
    heads: int = 4
    hidden: int = 256
    tokens: int = 32
    gain: float = 1.0
    seed: int = 0
    out: Path | None = None

    def __post_init__(self):
        """Rejects names of no placement."""
        if unknown := set(self.only) - set(PLACEMENTS):
            raise UsageError(
                f"--only {' '.join(sorted(unknown))} names no placement; there are: {', '.join(PLACEMENTS)}."
            )


def measure(name: str, config: Config) -> dict[str, Any]:
    """One placement at initialization.

    Args:
      name: Of the placement.
      config: The settings.

    Returns:
      The name, `"mean_square"` of the stream after each block, `"gradient"`, the norm of that of each block's last
      matrix, and `"input_gradient"`, the norm of that of the input.
    """
    init = nnx.initializers.variance_scaling(config.gain**2, "fan_in", "normal")
    stack_config = TransformerConfig(
        layers=config.layers,
        features=config.features,
        heads=config.heads,
        hidden=config.hidden,
        placement=PLACEMENTS[name](nj.rms_norm()),
        activation=functools.partial(jax.nn.gelu, approximate=False),
        kernel_init=init,
        scan=True,
    )
    keys = jax.random.split(jax.random.key(config.seed), 2)
    shape = (1, config.tokens, config.features)
    x, projection = (jax.random.normal(key, shape) for key in keys)

    @nnx.jit
    def run(stack, x):
        def loss(stack, x):
            *carries, last = stack.carries(x)
            streams = [c if stack_config.placement.streams == "one" else c[0] for c in (*carries[1:], last)]
            return jnp.sum(stack.ended(last) * projection), jnp.stack([jnp.mean(s**2) for s in streams])

        gradient = nnx.grad(loss, argnums=(0, 1), has_aux=True)
        (weights, inputs), squares = gradient(stack, x)
        last = [b["ffn"]["branch"]["down"]["kernel"][...] for b in weights["blocks"].values()]
        norms = jnp.concatenate([jnp.sqrt(jnp.sum(g**2, axis=(1, 2))) for g in last])
        return squares, norms, jnp.sqrt(jnp.sum(inputs**2))

    squares, norms, inputs = (
        np.asarray(a, np.float64) for a in run(Transformer(stack_config, rngs=nnx.Rngs(config.seed)), x)
    )
    return {"name": name, "mean_square": squares, "gradient": norms, "input_gradient": float(inputs)}


def run(config: Config) -> list[dict[str, Any]]:
    """Measures, prints the table, and writes JSON and figure if a folder is given.

    Args:
      config: The settings.

    Returns:
      The rows.
    """
    console = rich.console.Console()
    names = config.only or tuple(PLACEMENTS)
    rows = [measure(name, config) for name in rich.progress.track(names, "stacks", console=console)]
    console.print(table(rows, config.layers))
    if config.out is not None:
        records.write_json(
            config.out / "signal_propagation.json", {**records.environment(), "setting": config, "rows": rows}
        )
        figure(rows, config.out / "signal_propagation.png")
        console.print(f"written to {config.out}")
    return rows


def depths(layers: int) -> list[int]:
    """Powers of two up to the depth of the stack, and that."""
    return sorted({*(2**k for k in range(layers.bit_length()) if 2**k <= layers), layers})


def table(rows: list[dict[str, Any]], layers: int) -> rich.table.Table:
    """Mean squares by depth; gradients of the first and the last block, and their ratio."""
    shown = depths(layers)
    result = rich.table.Table(title="mean square of the stream after block l; norm of the gradient of W_down")
    for column in ("placement", *(f"l={d}" for d in shown), "first", "last", "last/first"):
        result.add_column(column, justify="left" if column == "placement" else "right")
    for row in rows:
        squares, gradient = row["mean_square"], row["gradient"]
        numbers = [squares[d - 1] for d in shown] + [gradient[0], gradient[-1], gradient[-1] / gradient[0]]
        result.add_row(row["name"], *(f"{n:.3g}" for n in numbers))
    return result


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Two panels over depth, both axes of the second logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    drawn, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    styles = ("-", "--", ":")
    for index, row in enumerate(rows):
        steps = np.arange(1, len(row["gradient"]) + 1)
        style = {"color": f"C{index % 10}", "linestyle": styles[index // 10]}
        panels[0].plot(steps, row["mean_square"], label=row["name"], **style)
        panels[1].plot(steps, row["gradient"], **style)
    for panel, title in zip(panels, ("mean square of the stream", "norm of the gradient of W_down"), strict=True):
        panel.set(xlabel="block", title=title, yscale="log")
        panel.grid(alpha=0.3)
    drawn.legend(loc="outside right center")
    drawn.savefig(path, dpi=150)
    plt.close(drawn)
