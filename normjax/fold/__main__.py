"""`python -m normjax.fold CHECKPOINT --verify` folds a model's norms and writes a new checkpoint."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import rich.console
from flax import nnx

from normjax.fold._rebuild import arguments_of
from normjax.fold.checkpoint import format_of, load_model, save_model
from normjax.fold.models import fold_model, plan_for
from normjax.fold.plan import Plan
from normjax.fold.verify import verify
from normjax.models import Encoder, LanguageModel, MLPClassifier, ResNet, ViT

try:
    import tyro
except ModuleNotFoundError as missing:
    raise SystemExit('the command needs tyro: pip install "normjax[checkpoints]".') from missing

# What the documentation promises of whole models.
PROMISED = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 3e-2, "float16": 3e-2}


@dataclasses.dataclass(frozen=True)
class Command:
    """Folds the norms of a model into its linear layers; the checkpoint itself is only read.

    Attributes:
      checkpoint: Folder that `normjax.fold.checkpoint.save_model` wrote.
      out: Folder to write; it must not exist. Default: the checkpoint's name and `-folded`.
      plan: `auto`, or a JSON file of a plan (`Plan.to_json`).
      verify: Whether to compare outputs on random inputs, and to write nothing if they differ by more than is promised.
      drop: Whether folded norms lose their parameters instead of staying as identities.
      untie: Whether a tied head may become a matrix of its own.
      tolerance: Greatest relative difference of the outputs; by default what is promised for the parameters' dtype.
      batch: Number of random inputs: sequences of tokens, images (ViT, ResNet) or vectors (MLP), standard normal ones.
      length: Tokens of a sequence; at most as many as a learned position embedding has.
      size: Height and width of the images for a ResNet.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    plan: str = "auto"
    verify: bool = False
    drop: bool = False
    untie: bool = False
    tolerance: float | None = None
    batch: int = 2
    length: int = 16
    size: int = 32


def run(command: Command, console: rich.console.Console) -> int:
    """Folds, prints plan and verification, writes; returns the exit status, 1 where the verification fails."""
    out = command.out or command.checkpoint.with_name(command.checkpoint.name + "-folded")
    if out.exists():
        raise FileExistsError(f"{out} exists; checkpoints are not written over. Give another --out.")
    model = load_model(command.checkpoint)
    model.eval()
    if command.plan == "auto":
        plan = plan_for(model, untie=command.untie)
    else:
        plan = Plan.from_json(Path(command.plan).read_text(encoding="utf-8"))
    console.print(plan.table())
    folded, report = fold_model(model, plan, drop=command.drop, untie=command.untie)
    folded.eval()
    if report.needs_bias:
        console.print(f"{len(report.needs_bias)} layers have a bias now; the new configuration says so.")
    if command.verify:
        # One program each: compiling a deep model operation by operation takes longer.
        forward = nnx.jit(lambda model, x: model(x))
        calls = (functools.partial(forward, m) for m in (model, folded))
        result = verify(*calls, _inputs(model, command), tolerance=_tolerance(model, command))
        console.print(result.table())
        if not result.passed:
            console.print("[red]nothing was written[/red]")
            return 1
    save_model(out, folded, format=format_of(command.checkpoint))
    console.print(f"wrote {out}")
    return 0


def _inputs(model: Any, command: Command) -> jax.Array:
    key = jax.random.key(0)
    if isinstance(model, LanguageModel | Encoder):
        longest = command.length if model.position_embedding is None else model.position_embedding.num_embeddings
        shape = (command.batch, min(command.length, longest))
        return jax.random.randint(key, shape, 0, model.embedding.num_embeddings, jnp.int32)
    return jax.random.normal(key, (command.batch, *_shape(model, command)), jnp.float32)


def _shape(model: ViT | ResNet | MLPClassifier, command: Command) -> tuple[int, ...]:
    if isinstance(model, ResNet):
        return command.size, command.size, model.channels
    return model.shape if isinstance(model, ViT) else (arguments_of(model)["features"],)


def _tolerance(model: Any, command: Command) -> float:
    if command.tolerance is not None:
        return command.tolerance
    arguments = arguments_of(model)
    config = arguments.get("config")
    given = (arguments["dtype"], arguments["param_dtype"]) if config is None else (config.dtype, config.param_dtype)
    # The narrower of the two dtypes rounds.
    return max(PROMISED[jnp.dtype(dtype).name] for dtype in given if dtype is not None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 1 if the verification failed, 2 if the call was wrong."""
    command = tyro.cli(Command, prog="python -m normjax.fold", args=None if arguments is None else list(arguments))
    try:
        return run(command, rich.console.Console())
    except (FileExistsError, FileNotFoundError, ModuleNotFoundError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
