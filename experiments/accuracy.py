r"""How far each library's normalization is from the exact result: `python -m experiments accuracy`.

The oracle is float64 NumPy on the exactly represented inputs. An output $y$ of dtype $t$ cannot be nearer to an exact
value $v$ than rounding allows, $\tfrac12\,\mathrm{ulp}_t(v)$; two implementations therefore tie in a row where their
errors differ by no more than $\tfrac12\,\mathrm{ulp}_t(\max|v|)$. The bar: nobody is ahead of normjax in any row by
more than a tie. The exit status is 1 if somebody is.

The table shows the largest error of all. The bar compares its mean over independent statistics (the largest error of
each row, channel or group, averaged): on well-conditioned float32 inputs every right implementation is a few roundings
off, and which of them has the unluckiest single value changes with the seed and the machine.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import flax
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

import normjax as nj
from experiments import UsageError

NORMS = ("LayerNorm", "RMSNorm", "BatchNorm", "GroupNorm")
COLUMNS = (
    "normjax",
    "linen",
    "linen slow",
    "nnx",
    "nnx slow",
    "torch-style",
    "jax.nn.standardize",
)
GROUPS = 4


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Settings of the accuracy table.

    Attributes:
      width: Number of values that each statistic is taken over, a multiple of 8. The default is not a power of two:
        dividing by such a count rounds, which is one error more to survive.
      rows: Number of independent statistics per case; a multiple of 16.
      seed: Seed of the inputs.
      epsilon: Epsilon of every norm.
      offsets: Means of the inputs.
      spreads: Standard deviations of the inputs.
      output: JSON file to write; empty writes none.
    """

    width: int = 768
    rows: int = 128
    seed: int = 0
    epsilon: float = 1e-6
    offsets: tuple[float, ...] = (0.0, 1e2, 1e3, 1e4)
    spreads: tuple[float, ...] = (1.0, 0.1)
    output: str = "results/accuracy.json"

    def __post_init__(self):
        """Rejects sizes that the group norm's layout cannot hold."""
        if self.width < 16 or self.width % 8:
            raise UsageError(f"expected width to be a multiple of 8, at least 16, got width={self.width}.")
        if self.rows < 16 or self.rows % 16:
            raise UsageError(f"expected rows to be a positive multiple of 16, got rows={self.rows}.")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a norm, an input, and every column's largest absolute error.

    Attributes:
      norm: Name of the norm.
      data: Which input.
      input_dtype: Dtype of the input.
      output_dtype: Dtype of the output.
      tie: Half an ulp of the output dtype at the largest exact output.
      errors: Largest absolute error by column; columns that have no such norm are left out.
      typical: Mean over the independent statistics of the largest absolute error of each, by column.
    """

    norm: str
    data: str
    input_dtype: str
    output_dtype: str
    tie: float
    errors: dict[str, float]
    typical: dict[str, float]

    @property
    def ahead(self) -> tuple[str, ...]:
        """Returns the columns that beat normjax by more than a tie."""
        ours = self.typical["normjax"]
        # A NaN of normjax loses against every number, a NaN of another column against nobody.
        return tuple(
            name for name, error in self.typical.items() if not math.isnan(error) and not ours <= error + self.tie
        )


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """JAX's default promotion, which Flax relies on; a test suite may have made it strict."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def reduced_axes(norm: str, ndim: int) -> tuple[int, ...]:
    """Returns the axes that a norm's statistics are taken over, in an input shaped by `shape`."""
    return {"BatchNorm": tuple(range(ndim - 1)), "GroupNorm": (1, 3)}.get(norm, (ndim - 1,))


def shape(norm: str, config: Accuracy) -> tuple[int, ...]:
    """Returns the input shape in which each statistic of `norm` is over `config.width` values."""
    if norm == "BatchNorm":
        return config.width, config.rows
    if norm == "GroupNorm":
        return config.rows // GROUPS, config.width // 8, 8 * GROUPS
    return config.rows, config.width


def exact(norm: str, x: np.ndarray, epsilon: float) -> np.ndarray:
    """The norm of `x` in float64.

    Args:
      norm: Name of the norm.
      x: Input of any float dtype; its values are taken as exact.
      epsilon: Added to the variance.

    Returns:
      The float64 result.
    """
    x = x.astype(np.float64)
    grouped = split_groups(norm, x)
    axes = reduced_axes(norm, grouped.ndim)
    if norm != "RMSNorm":
        grouped = grouped - grouped.mean(axes, keepdims=True)
        # The mean of float64 sums is rounded as well; a second centring takes that out.
        grouped = grouped - grouped.mean(axes, keepdims=True)
    return (grouped / np.sqrt(np.square(grouped).mean(axes, keepdims=True) + epsilon)).reshape(x.shape)


def worst_by_statistic(norm: str, difference: np.ndarray) -> np.ndarray:
    """Returns the largest absolute value among those that share a mean and variance, for each such set."""
    grouped = split_groups(norm, difference)
    return np.abs(grouped).max(reduced_axes(norm, grouped.ndim))


def split_groups(norm: str, x: Any) -> Any:
    """Returns the array with its channels cut into groups where the norm has them."""
    return x.reshape(*x.shape[:-1], GROUPS, -1) if norm == "GroupNorm" else x


def half_ulp(value: float, dtype: Any) -> float:
    """Half the distance from `value` to the next number of `dtype`."""
    info = jnp.finfo(dtype)
    exponent = math.frexp(max(abs(value), float(info.tiny)))[1] - 1
    return 0.5 * float(info.eps) * 2.0**exponent if value else 0.0


def implementations(norm: str, dtype: Any, epsilon: float, features: int) -> dict[str, Callable[[Any], jax.Array]]:
    """One function of the input for each column.

    Args:
      norm: Name of the norm.
      dtype: Output dtype.
      epsilon: Added to the variance.
      features: Size of the last axis, which nnx modules want to know.

    Returns:
      Functions by column; without scale and bias, so that only the normalization is measured.
    """
    common: dict[str, Any] = {"epsilon": epsilon, "dtype": dtype, "use_scale": False}
    if norm != "RMSNorm":
        common["use_bias"] = False
    if norm == "BatchNorm":
        common["use_running_average"] = False
    groups = {"num_groups": GROUPS} if norm == "GroupNorm" else {}

    def linen(library, **more):
        layer = getattr(library, norm)(**common, **groups, **more)
        return lambda x: layer.init_with_output(jax.random.key(0), x)[0]

    def nnx(**more):
        layer_type = getattr(flax.nnx, norm)
        return lambda x: layer_type(features, rngs=flax.nnx.Rngs(0), **common, **groups, **more)(x)

    def split(fn):
        def run(x):
            grouped = split_groups(norm, x.astype(jnp.float32))
            return fn(grouped, reduced_axes(norm, grouped.ndim)).reshape(x.shape).astype(dtype)

        return run

    def two_pass(x, axes):
        centred = x if norm == "RMSNorm" else x - x.mean(axes, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + epsilon)

    columns = {
        "normjax": linen(nj.linen),
        "linen": linen(flax.linen),
        "linen slow": linen(flax.linen, use_fast_variance=False),
        "nnx": nnx(),
        "nnx slow": nnx(use_fast_variance=False),
        "torch-style": split(two_pass),
    }
    if norm != "RMSNorm":
        columns["jax.nn.standardize"] = split(lambda x, axes: jax.nn.standardize(x, axis=axes, epsilon=epsilon))
    return columns


def inputs(config: Accuracy) -> dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]]:
    """The inputs by name, each a float64 array made from a generator and a shape."""

    def normal(mean, spread):
        return lambda rng, shape: mean + spread * rng.standard_normal(shape)

    named = {f"N({mean:g}, {spread:g}²)": normal(mean, spread) for mean in config.offsets for spread in config.spreads}
    # The variance is a hundredth of epsilon, so that errors of the mean are not hidden behind a large denominator.
    tiny = math.sqrt(config.epsilon) / 10
    named["constant 1000.3"] = lambda rng, shape: np.full(shape, 1000.3)
    named["eps-dominated at 0"] = normal(0.0, tiny)
    named["eps-dominated at 1"] = normal(1.0, tiny)
    return named


def measure(config: Accuracy) -> list[Row]:
    """Measures every row of the table.

    Args:
      config: Sizes, seed and inputs.

    Returns:
      The rows, norm by norm.
    """
    rows = []
    for norm in NORMS:
        form = shape(norm, config)
        for source, target in (("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")):
            functions = implementations(norm, jnp.dtype(target), config.epsilon, form[-1])
            compiled = {name: jax.jit(fn) for name, fn in functions.items()}
            for name, make in inputs(config).items():
                x = make(np.random.default_rng(config.seed), form).astype(jnp.dtype(source))
                oracle = exact(norm, x, config.epsilon)
                with lenient():
                    outputs = {column: np.asarray(fn(x), np.float64) for column, fn in compiled.items()}
                worst = {column: worst_by_statistic(norm, y - oracle) for column, y in outputs.items()}
                errors = {column: float(w.max()) for column, w in worst.items()}
                typical = {column: float(w.mean()) for column, w in worst.items()}
                tie = half_ulp(float(np.abs(oracle).max()), target)
                rows.append(Row(norm, name, source, target, tie, errors, typical))
    return rows


def table(rows: list[Row]) -> rich.table.Table:
    """The rows as a table to print; the best of a row and its ties are bold."""
    view = rich.table.Table(title="Largest absolute error against float64 (bold: best, within half an ulp)")
    for title in ("norm", "input", "dtypes"):
        view.add_column(title, no_wrap=True)
    for title in COLUMNS:
        view.add_column(title, justify="right")
    for i, row in enumerate(rows):
        best = min(row.errors.values()) + row.tie
        cells = []
        for column in COLUMNS:
            error = row.errors.get(column)
            text = "–" if error is None else f"{error:.1e}"
            cells.append(f"[bold]{text}[/bold]" if error is not None and error <= best else text)
        dtypes = row.input_dtype if row.input_dtype == row.output_dtype else f"{row.input_dtype} → {row.output_dtype}"
        last = i + 1 == len(rows) or rows[i + 1].norm != row.norm
        view.add_row(row.norm, row.data, dtypes, *cells, end_section=last)
    return view


def provenance() -> dict[str, str]:
    """Versions, device and commit, so that a stored table says what it measured."""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "jax": jax.__version__,
        "flax": flax.__version__,
        "numpy": np.__version__,
        "device": jax.devices()[0].device_kind,
        "commit": commit,
    }


def main(config: Accuracy) -> list[Row]:
    """Measures, prints and stores the table.

    Args:
      config: The settings.

    Returns:
      The rows.

    Raises:
      SystemExit: With status 1 if somebody is ahead of normjax in a row.
    """
    console = rich.console.Console()
    rows = measure(config)
    if not console.is_terminal:
        console = rich.console.Console(width=180)
    console.print(table(rows))
    about = provenance()
    console.print("  ".join(f"{name} {value}" for name, value in about.items()))
    if config.output:
        path = pathlib.Path(config.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"config": dataclasses.asdict(config), **about, "rows": [dataclasses.asdict(row) for row in rows]}
        path.write_text(json.dumps(content, indent=1) + "\n")
        console.print(f"written to {path}")
    behind = [row for row in rows if row.ahead]
    for row in behind:
        console.print(f"[red]behind[/red] {', '.join(row.ahead)}: {row.norm}, {row.data}, {row.output_dtype}")
    if behind:
        raise SystemExit(1)
    console.print(f"Nobody is ahead of normjax in any of {len(rows)} rows.")
    return rows


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Accuracy, prog="python -m experiments.accuracy"))
