"""The arms under comparison: a placement, a norm, and whether NaP holds the weights that both make scale-invariant.

An arm is written `placement`, `placement/norm` or either with `+nap`: `peri`, `pre/layer`, `hybrid+nap`.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import normjax as nj
from experiments import UsageError
from experiments.placements import PLACEMENTS
from normjax.models import AttentionKind, Rope, TransformerConfig

NORMS: Mapping[str, Callable[[], nj.NormTransform]] = {
    "rms": nj.rms_norm,
    "layer": nj.layer_norm,
    "crms": nj.crms_norm,
    "dyt": nj.dyt,
}
# DyT divides by nothing, so no weight before it is scale-invariant.
_DIVIDING = ("rms", "layer", "crms")
TRACK_EVERY = 10


class Arm(NamedTuple):
    """One line of the comparison: names of `PLACEMENTS` and `NORMS`, and whether NaP projects."""

    placement: str
    norm: str = "rms"
    nap: bool = False

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.placement + (f"/{self.norm}" if self.norm != "rms" else "") + ("+nap" if self.nap else "")


DEFAULT = (
    *PLACEMENTS,
    "peri+nap",
    "reordered+nap",
    "sub+nap",
    "hybrid+nap",
    "pre/layer",
    "pre/crms",
    "pre/dyt",
)


def parse(name: str) -> Arm:
    """The arm of that name.

    Raises:
      UsageError: If a part of the name is unknown, or NaP would have nothing to project.
    """
    rest, plus, nap = name.partition("+")
    placement, slash, norm = rest.partition("/")
    if placement not in PLACEMENTS or (slash and norm not in NORMS) or (plus and nap != "nap"):
        raise UsageError(
            f"--arms {name}: an arm is PLACEMENT, PLACEMENT/NORM or either with +nap; placements: "
            f"{', '.join(PLACEMENTS)}; norms: {', '.join(NORMS)}."
        )
    return Arm(placement, norm or "rms", bool(plus))


def stack(arm: Arm, config: Any, stream_sharding: Any = None) -> TransformerConfig:
    """The transformer of an arm at the sizes of a configuration."""
    return TransformerConfig(
        layers=config.layers,
        features=config.width,
        heads=config.heads,
        hidden=4 * config.width,
        placement=PLACEMENTS[arm.placement](NORMS[arm.norm]()),
        kinds=(AttentionKind(rope=Rope()),),
        qk_norm=NORMS["rms"]() if config.qk_norm else None,
        dtype=jnp.bfloat16 if config.bfloat16 else None,
        scan=config.scan,
        remat=config.remat,
        stream_sharding=stream_sharding,
    )


def invariant(arm: Arm, stack: TransformerConfig) -> list[str]:
    """Paths of the kernels whose scale the norms after them take away; the norm of heads counts for its own two."""
    plans = [stack.block(depth) for depth in range(1, stack.layers + 1)]
    if stack.scan:
        plans = [plan for plan, _ in itertools.groupby(plans)]
    found = []
    for index, plan in enumerate(plans):
        heads = None if stack.qk_norm is None else "head"
        attention = nj.placements.scale_invariant_matrices(plan.attention, "attention", qk_norm=heads)
        ffn = nj.placements.scale_invariant_matrices(plan.ffn, "ffn", gated=stack.gated)
        if arm.norm not in _DIVIDING:
            attention, ffn = ("query", "key") if heads else (), ()
        found += [f"stack/blocks/{index}/attention/branch/{name}/kernel" for name in attention]
        found += [f"stack/blocks/{index}/ffn/branch/{name}/kernel" for name in ffn]
    return found


def schedule(config: Any, rate: Any) -> Callable[[Any], jax.Array]:
    """Linear warm-up to the rate, which may be traced, and a cosine to a tenth of it."""
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, config.warmup, config.steps, 0.1)
    return lambda step: rate * shape(step)


def optimizer(arm: Arm, config: Any, rate: Any) -> optax.GradientTransformationExtraArgs:
    """AdamW, NaP around it if the arm says so, and telemetry of every matrix of the blocks.

    Args:
      arm: The arm.
      config: Sizes, steps, warm-up and weight decay.
      rate: Highest learning rate, a float32 scalar.

    Returns:
      The transformation.
    """
    rates = schedule(config, rate)
    kernels = _mask(lambda path, leaf: path.endswith(("kernel", "embedding")))
    inner = optax.adamw(rates, b2=0.95, weight_decay=config.weight_decay, mask=kernels)
    held = invariant(arm, stack(arm, config)) if arm.nap else []
    # What nap holds it also measures.
    free = _mask(lambda path, leaf: "/blocks/" in path and path.endswith("kernel") and path not in held)
    options: dict[str, Any] = {"axes": matrices}
    if held:
        chosen = _mask(lambda path, leaf: path in held)
        inner = nj.nap(inner, mask=chosen, learning_rate=rates, track_every=TRACK_EVERY, **options)
    return optax.chain(inner, nj.track_effective_lr(rates, every_k=TRACK_EVERY, mask=free, **options))


def matrices(path: str, leaf: Any) -> tuple[int, int]:
    """The axes of one matrix: stacked blocks have an axis before them."""
    del path
    return leaf.ndim - 2, leaf.ndim - 1


def _mask(wanted: Callable[[str, Any], bool]) -> Callable[[Any], Any]:
    def mask(params: Any) -> Any:
        def one(path: Any, leaf: Any) -> bool:
            return wanted(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)

        return jax.tree_util.tree_map_with_path(one, params, is_leaf=lambda node: isinstance(node, nnx.Variable))

    return mask
