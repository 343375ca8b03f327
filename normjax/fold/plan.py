"""What is to be folded into what, as data: made for the library's models, written by hand for any other tree."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

import rich.table

from normjax import _checks

Rule = Literal["before", "after", "query-key", "center"]
Kind = Literal["affine", "running", "factor"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A linear layer of a parameter tree.

    Attributes:
      path: Of the layer; its leaves are `path/kernel` and `path/bias`. Empty for a leaf of the tree itself.
      kernel: Name of the kernel; `"embedding"` for a table whose rows are written to the stream.
      in_axes: Axes of the kernel that read, `(-2,)` for Dense and HWIO convolutions.
      out_axes: Axes that write, `(-1,)`.
      groups: Feature groups of a convolution.
      padded: Whether it is a convolution that pads its input with zeros.
      repeats: How often the norm's features follow each other on the input axis: a norm of each head repeats.
      input_scale: A constant between the norm and the layer.
      takes_bias: Whether the module can be built with a bias.
    """

    path: str
    kernel: str = "kernel"
    in_axes: tuple[int, ...] = (-2,)
    out_axes: tuple[int, ...] = (-1,)
    groups: int = 1
    padded: bool = False
    repeats: int = 1
    input_scale: float = 1.0
    takes_bias: bool = True

    @property
    def kernel_path(self) -> str:
        """The leaf of the kernel."""
        return f"{self.path}/{self.kernel}" if self.path else self.kernel

    @property
    def bias_path(self) -> str:
        """The leaf of the bias, whether there is one or not."""
        return f"{self.path}/bias" if self.path else "bias"


@dataclasses.dataclass(frozen=True)
class NormAt:
    """A norm of a parameter tree.

    Attributes:
      path: Of its parameters: leaves `scale` and `bias`, and `alpha` for RepBN; a factor may be the leaf itself.
      kind: `"affine"`: gain and bias fold, the statistics stay; `"running"`: all of it folds (batch norm, Unified
        Normalization, RepBN); `"factor"`: a gain alone (LayerScale).
      state: Path of the running statistics, leaves `mean` and `var`; `None` for that of the parameters.
      epsilon: Of a norm with running statistics.
      scale_offset: Added to the stored gain, 1 for Gemma's.
      skips: How many of the layer's first features another norm has (IBN's instance half), which the fold leaves alone.
    """

    path: str
    kind: Kind = "affine"
    state: str | None = None
    epsilon: float = 1e-5
    scale_offset: float = 0.0
    skips: int = 0

    def __post_init__(self):
        """Rejects an unknown kind."""
        _checks.check_choice("kind", self.kind, Kind)


@dataclasses.dataclass(frozen=True)
class Edge:
    """One fold.

    Attributes:
      rule: `"before"`: the norm precedes the layers; `"after"`: it follows them; `"query-key"`: two norms, of queries
        and keys, share one gain; `"center"`: the layers write to a stream that only layer norms read.
      norms: The norm; two of them for `"query-key"`, none for `"center"`.
      layers: All layers that read the norm (`"before"`), or the one that it follows.
      stacked: Number of leading axes over which layers and norms are stacked (scanned blocks).
      rotated, interleaved, kv_heads: Of `"query-key"`, as in `qk_gains`.
    """

    rule: Rule
    norms: tuple[NormAt, ...]
    layers: tuple[Layer, ...] = ()
    stacked: int = 0
    rotated: int = 0
    interleaved: bool = False
    kv_heads: int = 1

    def __post_init__(self):
        """Rejects what no rule could apply."""
        _checks.check_choice("rule", self.rule, Rule)
        expected = {"before": 1, "after": 1, "query-key": 2, "center": 0}[self.rule]
        if len(self.norms) != expected or bool(self.layers) == (self.rule == "query-key"):
            raise ValueError(
                f"rule {self.rule!r} takes {expected} norms and {'no' if self.rule == 'query-key' else 'some'} layers; "
                f"got {len(self.norms)} norms and {len(self.layers)} layers."
            )

    @property
    def name(self) -> str:
        """The norms of the edge, for messages."""
        return ", ".join(norm.path for norm in self.norms) or self.rule


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A norm that stays, and why."""

    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """Folds in the order in which they are applied, and what is not folded.

    Attributes:
      edges: The folds.
      refusals: Norms that stay.

    Example:
      >>> from normjax import fold
      >>> edge = fold.Edge("before", (fold.NormAt("params/norm"),), (fold.Layer("params/dense"),))
      >>> plan = fold.Plan((edge,))
      >>> fold.Plan.from_json(plan.to_json()) == plan
      True
    """

    edges: tuple[Edge, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    def to_json(self) -> str:
        """The plan as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The plan that `to_json` wrote.

        Args:
          text: JSON.

        Returns:
          The plan.

        Raises:
          ValueError: If the text is no plan.
        """
        try:
            tree = json.loads(text)
            edges = tuple(_edge(edge) for edge in tree["edges"])
            return cls(edges, tuple(Refusal(**refusal) for refusal in tree.get("refusals", ())))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is no plan: {error!r}; expected what Plan.to_json writes.") from error

    def table(self) -> rich.table.Table:
        """The plan for a terminal, one row a norm."""
        columns = [rich.table.Column(name, overflow="fold") for name in ("norm", "rule", "into, or why not")]
        table = rich.table.Table(*columns, title="folding plan", title_justify="left")
        for edge in self.edges:
            into = ", ".join(layer.path or layer.kernel for layer in edge.layers) or "the gain of the queries"
            table.add_row(edge.name, edge.rule, into + (" (stacked)" if edge.stacked else ""))
        for refusal in self.refusals:
            table.add_row(refusal.path, "[yellow]refused[/yellow]", refusal.reason)
        return table


def _layer(tree: Mapping[str, Any]) -> Layer:
    given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in tree.items()}
    return Layer(**given)


def _edge(tree: Mapping[str, Any]) -> Edge:
    norms = tuple(NormAt(**norm) for norm in tree["norms"])
    layers = tuple(_layer(layer) for layer in tree["layers"])
    return Edge(**{**tree, "norms": norms, "layers": layers})
