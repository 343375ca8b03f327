r"""Where norms sit around the sublayers of a residual network, as values.

Every scheme is one equation with different parts present. With $F$ a sublayer (attention or feed-forward) and $N_\cdot$
norms with parameters of their own,

$$u = N_b(x),\quad r = x \text{ or } u,\quad f = N_o(F(\sigma u)),\quad x' = N_a(\alpha r + \beta f).$$

A `Step` says which norms are there and what the constants are; a `Placement` gives the step of each sublayer at each
depth and the norms at the ends of the stack. Models read them (`normjax.models`), and so does what decides which
weights NaP may project (`scale_invariant_matrices`).
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

from normjax import _checks
from normjax.transform import NormTransform

Kind = Literal["attention", "ffn"]
Gate = Literal["layer_scale", "residual_gate"]
Streams = Literal["one", "residual", "siamese"]


@dataclasses.dataclass(frozen=True)
class Step:
    r"""What surrounds one sublayer: $x' = N_a(\alpha r + \beta N_o(F(\sigma N_b(x))))$.

    Attributes:
      before: Whether $N_b$ is there.
      residual: Whether the residual is $N_b(x)$ too, not $x$.
      inner: Whether a norm stands inside the sublayer, before its last matrix.
      qkv: Whether queries, keys and values are normalized per head.
      output: Whether $N_o$ is there.
      after: Whether $N_a$ is there.
      input_scale: $\sigma$.
      residual_scale: $\alpha$.
      branch_scale: $\beta$.
      gate: What multiplies the branch, learned: LayerScale's factor per feature, or the residual gate's convex pair.
    """

    before: bool = False
    residual: bool = False
    inner: bool = False
    qkv: bool = False
    output: bool = False
    after: bool = False
    input_scale: float = 1.0
    residual_scale: float = 1.0
    branch_scale: float = 1.0
    gate: Gate | None = None

    def __post_init__(self):
        """Rejects what no model could build."""
        if self.residual and not self.before:
            raise ValueError("residual=True takes the normalized input for the residual: it needs before=True.")
        if self.gate is not None:
            _checks.check_choice("gate", self.gate, Gate)


Rule = Callable[[Kind, int, int], Step]


def _unscaled(matrix: str, layers: int) -> float:
    del matrix, layers
    return 1.0


@dataclasses.dataclass(frozen=True)
class Placement:
    """A scheme for a whole stack.

    Attributes:
      norm: The norm that every place gets one of.
      rule: `rule(kind, depth, layers) -> Step` for a sublayer at a depth from 1 to `layers`.
      embedding: Whether the embedding is normalized.
      final: Whether the end of the stack is.
      streams: One residual stream, ResiDual's second one of plain sums, or SiameseNorm's pair.
      parallel: Whether attention and feed-forward read one norm of one input.
      init_scale: `init_scale(matrix, layers)`, by which a matrix's initial values are multiplied.
      gate_init: Initial value of the gates, where steps have one.

    Example:
      >>> import normjax as nj
      >>> place = nj.placements.mix(nj.rms_norm(), post_share=0.25)
      >>> [place.step("ffn", depth, 8).after for depth in range(1, 9)]
      [True, True, False, False, False, False, False, False]
    """

    norm: NormTransform
    rule: Rule
    embedding: bool = False
    final: bool = True
    streams: Streams = "one"
    parallel: bool = False
    init_scale: Callable[[str, int], float] = _unscaled
    gate_init: float = 0.0

    def step(self, kind: Kind, depth: int, layers: int) -> Step:
        """Returns the step of a sublayer at a depth from 1 to `layers`."""
        if kind not in get_args(Kind):
            raise ValueError(f"kind={kind!r} is unknown; expected one of {get_args(Kind)}.")
        if not 1 <= depth <= layers:
            raise ValueError(f"depth={depth} is outside a stack of {layers} layers; depths count from 1.")
        return self.rule(kind, depth, layers)
