"""Coupled networks: a free run and its projected twins: `python -m experiments twin`.

A weight that feeds a norm may be projected after every step without changing the network, if its learning rate falls
as the growth of its norm would have made it fall. The free run and each twin start alike and see the same batches in
float64: the twin with a schedule per layer is the same network to rounding, with SGD as it is and with Adam if the
moments are rescaled with the weights. The other twins are not, and the figure shows how far off they are. The exit
status is 1 if an exact twin is off by more than 1e-12.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.console
import rich.progress
import rich.table

import normjax as nj
from experiments import UsageError, data, records
from experiments.plasticity import model, training

EXACT = 1e-12
# An epsilon inside a norm or an optimizer sees the scale of the weights: these are nothing beside float64's rounding.
NORM = nj.layer_norm(epsilon=1e-30)
_MASK = nj.hidden_weights(readout=(model.READOUT,))


class Sizes(NamedTuple):
    """What is trained, on what, for how long."""

    dataset: str
    images: int
    steps: int
    batch_size: int
    width: int
    depth: int


PRESETS: dict[str, Sizes] = {
    "cpu": Sizes("digits", images=512, steps=200, batch_size=64, width=32, depth=3),
    "gpu": Sizes("mnist", images=4_096, steps=2_000, batch_size=128, width=256, depth=3),
    # Figure 3 has a small convolutional network on these images and does not say for how long.
    "paper": Sizes("cifar10", images=50_000, steps=20_000, batch_size=128, width=512, depth=4),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Free networks and their projected twins.

    Attributes:
      preset: Sizes of the run. `cpu`: half a minute. `gpu` and `paper` (float64, on whole batches of logits) have not
        been timed.
      dataset: Embedded `digits` or `mnist`, else any TFDS name; by default the preset's, as all sizes.
      data_dir: Where prepared datasets lie.
      images: How many images are learned.
      steps: Optimizer steps.
      batch_size: Images per step.
      width: Units per hidden layer.
      depth: Hidden layers.
      sgd_rate: Learning rate of SGD.
      adam_rate: Learning rate of Adam.
      seed: Of weights and batches.
      out: Folder for the table as JSON and the figure; nothing is written without one.
    """

    preset: Literal["cpu", "gpu", "paper"] = "cpu"
    dataset: str | None = None
    data_dir: Path | None = None
    images: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    width: int | None = None
    depth: int | None = None
    sgd_rate: float = 0.6
    adam_rate: float = 1e-2
    seed: int = 0
    out: Path | None = None

    def __post_init__(self):
        """Refuses what cannot be run."""
        sizes = self.sizes()
        for name in ("images", "steps", "batch_size", "width", "depth"):
            if getattr(sizes, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(sizes, name)}.")
        if sizes.batch_size > sizes.images:
            raise UsageError(f"--batch-size {sizes.batch_size} is larger than --images {sizes.images}.")

    def sizes(self) -> Sizes:
        """Those of the preset, but for what is given."""
        given = {name: getattr(self, name) for name in Sizes._fields}
        return PRESETS[self.preset]._replace(**{name: size for name, size in given.items() if size is not None})


class Twin(NamedTuple):
    """One projected run: its label, the free optimizer, its own, and whether theory says that it is exact."""

    label: str
    free: optax.GradientTransformation
    projected: optax.GradientTransformation
    exact: bool


def twins(config: Config) -> list[Twin]:
    """The runs under comparison."""
    sgd = optax.sgd(config.sgd_rate)
    adam = optax.chain(optax.scale_by_adam(eps=1e-30), optax.scale(-config.adam_rate))
    per_layer = lambda inner, like: optax.chain(inner, nj.optim.implicit_schedule(like=like, mask=_MASK))  # noqa: E731
    nap = lambda inner, rescale=False: nj.nap(inner, mask=_MASK, rescale_moments=rescale)  # noqa: E731
    return [
        Twin("SGD, a rate per layer", sgd, nap(per_layer(sgd, "sgd")), True),
        Twin("SGD, one rate for all", sgd, nap(optax.chain(sgd, _scale_by_factor(2))), False),
        Twin("SGD, constant rate", sgd, nap(sgd), False),
        Twin("Adam, a rate per layer, moments rescaled", adam, nap(per_layer(adam, "adam"), True), True),
        Twin("Adam, a rate per layer", adam, nap(per_layer(adam, "adam")), False),
        Twin(
            "Adam, one rate for all, moments rescaled", adam, nap(optax.chain(adam, _scale_by_factor(1)), True), False
        ),
        Twin("Adam, constant rate", adam, nap(adam, True), False),
    ]


def _scale_by_factor(power: int) -> optax.GradientTransformationExtraArgs:
    """Multiplies all updates of hidden weights by a power of what is given to `update` as `factor`."""

    def update(updates: Any, state: Any, params: Any = None, *, factor: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        scaled = jax.tree.map(lambda u, hidden: u * factor**power if hidden else u, updates, _MASK(params))
        return scaled, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def measure(twin: Twin, config: Config, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Runs a free network and its twin side by side.

    Args:
      twin: What is compared.
      config: The settings.
      images: `(n, ...)` uint8.
      labels: `(n,)` int32.

    Returns:
      `"label"`, `"exact"`, `"difference"`, the largest difference of the logits on all images relative to the largest
      logit, after each step, `"growth"` of the free run's hidden norms, and its final `"loss"`.
    """
    with jax.enable_x64(True):
        x = training.standardize(images).astype(jnp.float64)
        sizes = config.sizes()
        units = (x.shape[1], *[sizes.width] * sizes.depth, int(labels.max()) + 1)
        wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)  # noqa: E731
        params = wide(model.init(jax.random.key(config.seed), units, NORM))
        order = training.batches(jax.random.key(config.seed + 1), len(x), sizes.steps, sizes.batch_size)
        optimizers = [optax.with_extra_args_support(tx) for tx in (twin.free, twin.projected)]

        def loss(params: Any, batch: jax.Array) -> jax.Array:
            logits = model.apply(params, NORM, x[batch]).logits
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)[batch]))

        def step(carry: Any, batch: jax.Array) -> tuple[Any, Any]:
            # The projected run's hidden weights keep their norms, so that the ratio of all is the free run's growth.
            norms = [optax.tree.norm(_hidden(params)) for params, _ in carry]
            after = []
            for tx, (params, state) in zip(optimizers, carry, strict=True):
                grads = jax.grad(loss)(params, batch)
                updates, state = tx.update(grads, state, params, factor=norms[1] / norms[0])
                after.append((optax.apply_updates(params, updates), state))
            free, other = (model.apply(params, NORM, x).logits for params, _ in after)
            return after, (jnp.max(jnp.abs(free - other)) / jnp.max(jnp.abs(free)), loss(after[0][0], batch))

        start = [(params, tx.init(params)) for tx in optimizers]
        ((free, _), _), (difference, losses) = jax.jit(lambda c: jax.lax.scan(step, c, order))(start)
        growth = [float(optax.tree.norm(w) / optax.tree.norm(params[name])) for name, w in _hidden(free).items()]
    return {
        "label": twin.label,
        "exact": twin.exact,
        "difference": np.asarray(difference),
        "growth": growth,
        "loss": float(losses[-1]),
    }


def _hidden(params: Any) -> dict[str, Any]:
    return {name: layer["kernel"] for name, layer in params.items() if name.startswith("hidden_")}


def run(config: Config) -> list[dict[str, Any]]:
    """Measures all twins, prints the table, and writes JSON and figure if a folder is given.

    Args:
      config: The settings.

    Returns:
      The rows.

    Raises:
      SystemExit: With status 1 if an exact twin is off.
    """
    console = rich.console.Console()
    sizes = config.sizes()
    loaded = data.load(sizes.dataset, f"train[:{sizes.images}]", config.data_dir)
    rows = []
    for twin in rich.progress.track(twins(config), "twins", console=console):
        rows.append(measure(twin, config, loaded.images, loaded.labels))
    console.print(table(rows, sizes.steps))
    if config.out is not None:
        records.write_json(config.out / "twin.json", {**records.environment(), "setting": config, "rows": rows})
        figure(rows, config.out / "twin.png")
        console.print(f"written to {config.out}")
    wrong = [row["label"] for row in rows if row["exact"] and not row["difference"].max() <= EXACT]
    if wrong:
        console.print(f"not exact to {EXACT:g}: {', '.join(wrong)}")
        sys.exit(1)
    return rows


def table(rows: list[dict[str, Any]], steps: int) -> rich.table.Table:
    """Differences after the first step, half of them and all."""
    result = rich.table.Table(
        title="largest difference of the logits, relative, between a free run and its projected twin"
    )
    columns = ("twin", "growth of the free norms", "step 1", f"step {max(1, steps // 2)}", f"step {steps}")
    for column in columns:
        result.add_column(column, justify="left" if column == "twin" else "right")
    for row in rows:
        shown = (row["difference"][i] for i in (0, max(1, steps // 2) - 1, steps - 1))
        growth = f"{min(row['growth']):.2f} to {max(row['growth']):.2f}"
        result.add_row(row["label"], growth, *(f"{value:.1e}" for value in shown))
    return result


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Difference over steps, logarithmic, one panel for each optimizer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    drawn, panels = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for panel, optimizer in zip(panels, ("SGD", "Adam"), strict=True):
        for row in rows:
            name, _, rest = row["label"].partition(", ")
            if name == optimizer:
                steps = np.arange(1, len(row["difference"]) + 1)
                panel.plot(
                    steps, np.maximum(row["difference"], 1e-17), label=rest, linewidth=2.4 if row["exact"] else 1.2
                )
        panel.axhline(EXACT, color="grey", linestyle=":", linewidth=1)
        panel.set(title=optimizer, xlabel="step", yscale="log")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    panels[0].set_ylabel("relative difference of the logits")
    drawn.savefig(path, dpi=150)
    plt.close(drawn)
