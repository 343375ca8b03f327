"""Which weights a placement makes scale-invariant."""

from typing import Literal, get_args

from normjax.placements.step import Kind, Step

Granularity = Literal["per head", "joint"]


def scale_invariant_matrices(
    step: Step,
    kind: Kind,
    *,
    gated: bool = False,
    homogeneous: bool = False,
    qk_norm: Literal["head", "projection"] | None = None,
) -> dict[str, Granularity]:
    """Which matrices of a sublayer a step makes scale-invariant, given a norm that is (RMS, layer norm; not DyT).

    A matrix is one where the sublayer is linear, or homogeneous, from it to a norm that nothing bypasses; a bias on the
    way has to be scaled along. NaP may project these (`normjax.nap(mask=...)`).

    Args:
      step: The step.
      kind: The sublayer.
      gated: Whether the feed-forward is `act(gate) * up`, which is linear in `up`.
      homogeneous: Whether the activation is, `act(c x) = c act(x)` for c > 0, as ReLU's.
      qk_norm: What a norm of queries and keys reduces, if there is one.

    Returns:
      Names of matrices with the granularity of their invariance.

    Raises:
      ValueError: If the kind is unknown.

    Example:
      >>> import normjax as nj
      >>> step = nj.placements.peri(nj.rms_norm()).step("ffn", 1, 2)
      >>> nj.placements.scale_invariant_matrices(step, "ffn", gated=True)
      {'down': 'joint', 'up': 'joint'}
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} is unknown; expected one of {get_args(Kind)}.")
    found: dict[str, Granularity] = {}
    if kind == "attention":
        if step.qkv or qk_norm:
            each: Granularity = "joint" if qk_norm == "projection" and not step.qkv else "per head"
            found |= {"query": each, "key": each}
        if step.qkv:
            found["value"] = "per head"
        elif step.inner or step.output:
            found["value"] = "joint"
        if step.output:
            found["out"] = "joint"
        return found
    if step.output:
        found["down"] = "joint"
    if step.inner or step.output:
        if gated or homogeneous:
            found["up"] = "joint"
        if gated and homogeneous:
            found["gate"] = "joint"
    return found
