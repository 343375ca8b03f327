"""Applies a plan to a parameter tree, wide, and says what it did."""

import dataclasses
from typing import Any, Literal

import jax
import rich.table

from normjax import _checks
from normjax.fold._edges import attempt
from normjax.fold._tree import Leaves
from normjax.fold.plan import Edge, Plan, Refusal
from normjax.optim._paths import InferenceOnly

Dtype = Literal["float64", "float32"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Folded(InferenceOnly):
    """A folded parameter tree, for inference only.

    The type is the tag: optimizers that keep account of norms (`nap`, `project_weights`, `track_effective_lr`) refuse
    it, through `jax.tree.map` and inside larger trees. In an nnx tree the changed variables carry the metadata
    `inference_only` besides, which survives `nnx.split` and `nnx.merge`.

    Attributes:
      params: The tree for the model, as it was structured, with the biases that were made.
      needs_bias: Layers that have a bias now and had none: their modules must be built with one.
    """

    params: Any
    needs_bias: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Report:
    """What a plan did to a tree.

    Attributes:
      applied: The edges that were folded.
      refusals: The plan's, and edges that were skipped where the plan was not applied strictly.
      needs_bias: As in `Folded`.
    """

    applied: tuple[Edge, ...]
    refusals: tuple[Refusal, ...]
    needs_bias: tuple[str, ...]

    def table(self) -> rich.table.Table:
        """The report for a terminal."""
        return Plan(self.applied, self.refusals).table()


def apply(
    params: Any, plan: Plan, *, dtype: Dtype = "float64", keep_dtype: bool = True, strict: bool = True
) -> tuple[Folded, Report]:
    """Folds what a plan names.

    Folded norms stay in the tree as identities (gain 1, bias 0, running mean 0 and variance 1 - epsilon), so that the
    model runs unchanged and a second application changes nothing.

    Args:
      params: Nested dicts or an `nnx.State`: parameters, and running statistics where the plan names some. linen's
        `variables` are such a tree; so is `nnx.state(model)`. Boxes stay around their arrays.
      plan: The plan.
      dtype: Dtype to compute in: `"float64"` on the host, `"float32"` where the arrays are, sharded as they are; this
        one also works under `jit`, where every shift counts as one that needs a bias.
      keep_dtype: Whether results are rounded to the dtype that each leaf had; otherwise they stay at least in float32
        (or the wider `dtype`).
      strict: Whether an edge that cannot be applied is an error; otherwise it is left out and reported.

    Returns:
      `(folded, report)`.

    Raises:
      ValueError: Where strict: if a leaf of the plan is missing, a shape does not fit, a bias cannot be made, a border
        would be wrong, or gains do not commute with a rotation.
      TypeError: If the tree is no tree of nested dicts.

    Example:
      >>> import numpy as np
      >>> from normjax import fold
      >>> params = {"norm": {"scale": np.full(2, 2.0)}, "dense": {"kernel": np.ones((2, 1))}}
      >>> plan = fold.Plan((fold.Edge("before", (fold.NormAt("norm"),), (fold.Layer("dense"),)),))
      >>> folded, report = fold.apply(params, plan)
      >>> print(folded.params["dense"]["kernel"].T, folded.params["norm"]["scale"])
      [[2. 2.]] [1. 1.]
    """
    tree, report = applied(params, plan, dtype, keep_dtype, strict, mark=True)
    return Folded(tree, report.needs_bias), report


def applied(
    params: Any, plan: Plan, dtype: Dtype, keep_dtype: bool = True, strict: bool = True, *, mark: bool
) -> tuple[Any, Report]:
    """`apply` without the wrapper; `mark` says whether changed nnx variables are for inference only."""
    _checks.check_choice("dtype", dtype, Dtype)
    if isinstance(params, Folded):
        params = params.params
    leaves, done, refusals = Leaves(params, dtype), [], list(plan.refusals)
    for edge in plan.edges:
        reason, changes = attempt(leaves, edge)
        if reason is None:
            for path, value in changes.items():
                leaves.set(path, value)
            done.append(edge)
        elif strict:
            raise ValueError(f"cannot fold {edge.name}: {reason} strict=False leaves out what cannot be folded.")
        else:
            refusals.append(Refusal(edge.name, reason))
    made = tuple(path.rpartition("/")[0] for path in leaves.made)
    return leaves.tree(params, keep_dtype, mark), Report(tuple(done), tuple(refusals), made)
