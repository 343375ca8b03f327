"""The schemes of the literature, each a `Placement` of a norm."""

import math

from normjax import _checks
from normjax.placements.step import Kind, Placement, Rule, Step
from normjax.transform import NormTransform


def _always(step: Step) -> Rule:
    return lambda kind, depth, layers: step


def pre(norm: NormTransform) -> Placement:
    r"""Pre-LN (GPT-2, Llama): $x' = x + F(N(x))$, and a final norm.

    Args:
      norm: The norm.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> nj.placements.pre(nj.layer_norm()).step("ffn", 1, 2).before
      True

    References:
      Xiong et al. 2020, [On Layer Normalization in the Transformer Architecture](https://arxiv.org/abs/2002.04745).
    """
    return Placement(norm, _always(Step(before=True)))


def post(norm: NormTransform, *, embedding: bool = False) -> Placement:
    r"""Post-LN (Transformer, BERT): $x' = N(x + F(x))$, nothing at the end.

    Args:
      norm: The norm.
      embedding: Whether the embedding is normalized, as in BERT.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> nj.placements.post(nj.layer_norm()).final
      False

    References:
      Vaswani et al. 2017, [Attention Is All You Need](https://arxiv.org/abs/1706.03762).
    """
    return Placement(norm, _always(Step(after=True)), embedding=embedding, final=False)


def peri(norm: NormTransform, *, embedding: bool = False) -> Placement:
    r"""Peri-LN or sandwich (Gemma 2, GLM-4, CogView): $x' = x + N_o(F(N_b(x)))$, and a final norm.

    Args:
      norm: The norm.
      embedding: Whether the embedding is normalized: the paper has it, the released models do not.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> step = nj.placements.peri(nj.rms_norm()).step("attention", 1, 2)
      >>> step.before, step.output
      (True, True)

    References:
      Kim et al. 2025, [Peri-LN](https://arxiv.org/abs/2502.02732).
    """
    return Placement(norm, _always(Step(before=True, output=True)), embedding=embedding)


def reordered(norm: NormTransform) -> Placement:
    r"""OLMo 2's order, also Swin V2's: $x' = x + N(F(x))$, and a final norm.

    Args:
      norm: The norm.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> nj.placements.reordered(nj.rms_norm()).step("ffn", 2, 2).output
      True

    References:
      OLMo et al. 2024, [2 OLMo 2 Furious](https://arxiv.org/abs/2501.00656).
    """
    return Placement(norm, _always(Step(output=True)))


def mix(norm: NormTransform, *, post_share: float = 0.25, num_post: int | None = None) -> Placement:
    r"""Mix-LN: Post-LN in the first blocks, Pre-LN in the rest, and a final norm.

    Args:
      norm: The norm.
      post_share: Share of the blocks, rounded, that are Post-LN.
      num_post: Their number, in the place of a share.

    Returns:
      The placement.

    Raises:
      ValueError: If the share is outside [0, 1] or the number negative.

    Example:
      >>> import normjax as nj
      >>> place = nj.placements.mix(nj.rms_norm(), num_post=1)
      >>> place.step("ffn", 1, 4).after, place.step("ffn", 2, 4).before
      (True, True)

    References:
      Li et al. 2024, [Mix-LN](https://arxiv.org/abs/2412.13795).
    """
    _checks.check_fraction("post_share", post_share)
    if num_post is not None:
        _checks.check_count("num_post", num_post, 0)

    def rule(kind: Kind, depth: int, layers: int) -> Step:
        first = round(post_share * layers) if num_post is None else num_post
        return Step(after=True) if depth <= first else Step(before=True)

    return Placement(norm, rule)


def deep(norm: NormTransform, *, alpha: float | None = None) -> Placement:
    r"""DeepNorm: $x' = N(\alpha x + F(x))$ with $\alpha = (2L)^{1/4}$, and smaller initial values.

    The value and output matrices of attention and both of the feed-forward start at $(8L)^{-1/4}$ times Xavier's; an
    encoder or a decoder alone. In an encoder-decoder pair both constants depend on both depths: give `alpha`.

    Args:
      norm: The norm.
      alpha: The residual's factor, if not $(2L)^{1/4}$.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> nj.placements.deep(nj.layer_norm()).step("ffn", 1, 8).residual_scale
      2.0

    References:
      Wang et al. 2022, [DeepNet: Scaling Transformers to 1,000 Layers](https://arxiv.org/abs/2203.00555).
    """

    def rule(kind: Kind, depth: int, layers: int) -> Step:
        return Step(after=True, residual_scale=(2 * layers) ** 0.25 if alpha is None else alpha)

    def init_scale(matrix: str, layers: int) -> float:
        return 1.0 if matrix in ("query", "key") else (8 * layers) ** -0.25

    return Placement(norm, rule, final=False, init_scale=init_scale)


def sub(norm: NormTransform, *, final: bool = True) -> Placement:
    r"""Sub-LN (Magneto, BitNet): Pre-LN with a norm inside each sublayer before its last matrix.

    The value and output matrices of attention and both of the feed-forward start at $\sqrt{\ln 2L}$ times Xavier's.

    Args:
      norm: The norm.
      final: Whether the end of the stack is normalized.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> nj.placements.sub(nj.layer_norm()).step("attention", 1, 1).inner
      True

    References:
      Wang et al. 2022, [Foundation Transformers](https://arxiv.org/abs/2210.06423).
    """

    def init_scale(matrix: str, layers: int) -> float:
        return 1.0 if matrix in ("query", "key") else math.log(2 * layers) ** 0.5

    return Placement(norm, _always(Step(before=True, inner=True)), final=final, init_scale=init_scale)


def layer_norm_scaling(norm: NormTransform) -> Placement:
    r"""LayerNorm Scaling: $x' = x + F(N(x)/\sqrt{l})$ in block $l$; the final norm is not scaled.

    Args:
      norm: The norm.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> nj.placements.layer_norm_scaling(nj.rms_norm()).step("ffn", 4, 4).input_scale
      0.5

    References:
      Sun et al. 2025, [The Curse of Depth in Large Language Models](https://arxiv.org/abs/2502.05795).
    """
    return Placement(norm, lambda kind, depth, layers: Step(before=True, input_scale=depth**-0.5))


def resi_dual(norm: NormTransform) -> Placement:
    r"""ResiDual: a Post-LN stream and beside it the plain sum of all branches, $y = x_L + N(x_0 + \sum F)$.

    Args:
      norm: The norm.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> nj.placements.resi_dual(nj.layer_norm()).streams
      'residual'

    References:
      Xie et al. 2023, [ResiDual](https://arxiv.org/abs/2304.14802).
    """
    return Placement(norm, _always(Step(after=True)), streams="residual")


def hybrid(norm: NormTransform, *, star: bool = False) -> Placement:
    r"""HybridNorm: normalized queries, keys and values, then $z = N(x)$, $x' = z + \mathrm{FFN}(z)$; a final norm.

    Args:
      norm: The norm.
      star: Whether the first block is Pre-LN, as in HybridNorm*; its queries, keys and values are normalized too.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> place = nj.placements.hybrid(nj.rms_norm())
      >>> place.step("attention", 1, 2).qkv, place.step("ffn", 1, 2).residual
      (True, True)

    References:
      Zhuo et al. 2025, [HybridNorm](https://arxiv.org/abs/2503.04598).
    """

    def rule(kind: Kind, depth: int, layers: int) -> Step:
        first = star and depth == 1
        if kind == "attention":
            return Step(before=first, qkv=True)
        return Step(before=True, residual=not first)

    return Placement(norm, rule)


def keel(norm: NormTransform, *, alpha: float | None = None) -> Placement:
    r"""KEEL: $x' = N_a(\alpha x + F(N_b(x)))$ with $\alpha$ the number of sublayers.

    Args:
      norm: The norm.
      alpha: The residual's factor, if not $2L$.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> nj.placements.keel(nj.rms_norm()).step("ffn", 1, 3).residual_scale
      6.0

    References:
      KEEL, 2026, [arXiv 2601.19895](https://arxiv.org/abs/2601.19895).
    """

    def rule(kind: Kind, depth: int, layers: int) -> Step:
        return Step(before=True, after=True, residual_scale=2.0 * layers if alpha is None else alpha)

    return Placement(norm, rule, final=False)


def siamese(norm: NormTransform) -> Placement:
    r"""SiameseNorm: a Post-LN stream $u$ and a Pre-LN stream $v$ share each sublayer.

    $$a = N_a(u),\quad f = F(a + N_b(v)),\quad u' = a + f/\sqrt{2l},\quad v' = v + f,\qquad y = N(u) + N(v)$$

    Args:
      norm: The norm.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> round(nj.placements.siamese(nj.layer_norm()).step("ffn", 2, 2).branch_scale, 3)
      0.5

    References:
      SiameseNorm, 2026, [arXiv 2602.08064](https://arxiv.org/abs/2602.08064).
    """
    rule = lambda kind, depth, layers: Step(before=True, after=True, branch_scale=(2 * depth) ** -0.5)  # noqa: E731
    return Placement(norm, rule, streams="siamese")


def normalized_residual(norm: NormTransform, *, alpha: float = 1.0, beta: float = 1.0) -> Placement:
    r"""MiniMax-01's: $u = N(x)$, $x' = \alpha u + \beta F(u)$, and a final norm.

    Args:
      norm: The norm.
      alpha: The residual's factor.
      beta: The branch's.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> nj.placements.normalized_residual(nj.rms_norm(), alpha=3.5).step("ffn", 1, 2).residual_scale
      3.5

    References:
      MiniMax 2025, [MiniMax-01](https://arxiv.org/abs/2501.08313).
    """
    step = Step(before=True, residual=True, residual_scale=alpha, branch_scale=beta)
    return Placement(norm, _always(step))


def layer_scale(norm: NormTransform, *, initial: float = 0.1) -> Placement:
    r"""LayerScale (CaiT, DINOv2): $x' = x + \lambda \odot F(N(x))$, and a final norm.

    Args:
      norm: The norm.
      initial: Value that every $\lambda$ starts at.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> nj.placements.layer_scale(nj.layer_norm()).step("ffn", 1, 2).gate
      'layer_scale'

    References:
      Touvron et al. 2021, [Going Deeper with Image Transformers](https://arxiv.org/abs/2103.17239).
    """
    return Placement(norm, _always(Step(before=True, gate="layer_scale")), gate_init=initial)


def gated_residual(norm: NormTransform, *, initial: float = 0.0) -> Placement:
    r"""The residual gate of Muse Spark around a sandwich: $x' = \sqrt{1-\beta^2}\,x + \beta\, N_o(F(N_b(x)))$.

    $\beta = \operatorname{sigmoid}(g / 0.3)$ is learned per feature.

    Args:
      norm: The norm.
      initial: Value that every $g$ starts at.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> nj.placements.gated_residual(nj.rms_norm()).step("ffn", 1, 2).gate
      'residual_gate'
    """
    step = Step(before=True, output=True, gate="residual_gate")
    return Placement(norm, _always(step), gate_init=initial)


def parallel(norm: NormTransform) -> Placement:
    r"""Parallel sublayers (GPT-J, Cohere): $x' = x + \mathrm{Attn}(N(x)) + \mathrm{FFN}(N(x))$, one norm a block.

    Args:
      norm: The norm.

    Returns:
      The placement.

    Example:
      >>> import normjax as nj
      >>> nj.placements.parallel(nj.layer_norm()).parallel
      True
    """
    return Placement(norm, _always(Step(before=True)), parallel=True)
