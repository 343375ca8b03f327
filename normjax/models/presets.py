"""Known layouts as configurations: norm, placement, positions and activation as released; the sizes are arguments.

Each function takes the sizes (`layers`, `features`, `heads`, `hidden`, ...) and whatever else differs between the
released checkpoints, and passes on any other field of `TransformerConfig`.
"""

import functools
from typing import Any

import jax

from normjax import placements
from normjax.models.attention import AttentionKind
from normjax.models.rope import Rope
from normjax.models.transformer import TransformerConfig
from normjax.norms import layer_norm, rms_norm
from normjax.precision import LLAMA, T5

_exact_gelu = functools.partial(jax.nn.gelu, approximate=False)
_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)


def gpt2(*, epsilon: float = 1e-5, **sizes: Any) -> TransformerConfig:
    """GPT-2: Pre-LN, biases, learned positions (`LanguageModel(max_tokens=)`), GELU by tanh.

    Args:
      epsilon: Of the norms.
      **sizes: Fields of `TransformerConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.presets.gpt2(layers=12, features=768, heads=12, hidden=3072).use_bias
      True
    """
    place = placements.pre(layer_norm(epsilon=epsilon))
    return TransformerConfig(**{"placement": place, "activation": _tanh_gelu, "use_bias": True} | sizes)


def bert(*, epsilon: float = 1e-12, **sizes: Any) -> TransformerConfig:
    """BERT: Post-LN after a normalized embedding, biases, every token sees every other, exact GELU.

    Args:
      epsilon: Of the norms.
      **sizes: Fields of `TransformerConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.presets.bert(layers=12, features=768, heads=12, hidden=3072).placement.embedding
      True
    """
    place = placements.post(layer_norm(epsilon=epsilon), embedding=True)
    fields = {"placement": place, "kinds": (AttentionKind(causal=False),), "activation": _exact_gelu, "use_bias": True}
    return TransformerConfig(**fields | sizes)


def vit(*, epsilon: float = 1e-6, **sizes: Any) -> TransformerConfig:
    """Vision transformer: Pre-LN, biases, every patch sees every other, exact GELU; for `ViT`.

    Args:
      epsilon: Of the norms.
      **sizes: Fields of `TransformerConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.presets.vit(layers=12, features=768, heads=12, hidden=3072).kinds[0].causal
      False
    """
    place = placements.pre(layer_norm(epsilon=epsilon))
    fields = {"placement": place, "kinds": (AttentionKind(causal=False),), "activation": _exact_gelu, "use_bias": True}
    return TransformerConfig(**fields | sizes)


def llama(*, epsilon: float = 1e-6, theta: float = 1e4, **sizes: Any) -> TransformerConfig:
    """Llama 2 and 3, Mistral: Pre-RMS, rotary positions, SwiGLU.

    Args:
      epsilon: Of the norms: 1e-5 or 1e-6 by checkpoint.
      theta: Of the rotation: 1e4 for Llama 2, 5e5 for Llama 3.
      **sizes: Fields of `TransformerConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.presets.llama(layers=32, features=4096, heads=32, hidden=11008).gated
      True
    """
    place = placements.pre(rms_norm(epsilon=epsilon, precision=LLAMA))
    fields = {"placement": place, "kinds": (AttentionKind(rope=Rope(theta)),), "activation": jax.nn.silu, "gated": True}
    return TransformerConfig(**fields | sizes)


def qwen3(*, epsilon: float = 1e-6, theta: float = 1e6, **sizes: Any) -> TransformerConfig:
    """Qwen 3: Llama's layout with RMS norms of each head's queries and keys before the rotation.

    Args:
      epsilon, theta: As in `llama`.
      **sizes: Fields of `TransformerConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.presets.qwen3(layers=28, features=1024, heads=16, hidden=3072).qk_norm_over
      'head'
    """
    return llama(epsilon=epsilon, theta=theta, **{"qk_norm": rms_norm(epsilon=epsilon, precision=LLAMA)} | sizes)


def olmo2(*, epsilon: float = 1e-6, theta: float = 5e5, **sizes: Any) -> TransformerConfig:
    """OLMo 2: norms after the sublayers and inside the residual, RMS norms of whole queries and keys.

    Args:
      epsilon, theta: As in `llama`.
      **sizes: Fields of `TransformerConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.presets.olmo2(layers=16, features=2048, heads=16, hidden=8192).qk_norm_over
      'projection'
    """
    norm = rms_norm(epsilon=epsilon)
    fields = {"placement": placements.reordered(norm), "qk_norm": norm, "qk_norm_over": "projection"}
    return llama(theta=theta, **fields | sizes)


def exaone4(*, epsilon: float = 1e-5, theta: float = 1e6, **sizes: Any) -> TransformerConfig:
    """EXAONE 4 without windows: norms after the sublayers and inside the residual, RMS norms of each head.

    Args:
      epsilon, theta: As in `llama`.
      **sizes: Fields of `TransformerConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.presets.exaone4(layers=30, features=2048, heads=32, hidden=4096).placement.final
      True
    """
    norm = rms_norm(epsilon=epsilon, precision=LLAMA)
    return llama(theta=theta, **{"placement": placements.reordered(norm), "qk_norm": norm} | sizes)


def glm4(*, epsilon: float = 1.5625e-07, theta: float = 1e4, fraction: float = 0.5, **sizes: Any) -> TransformerConfig:
    """GLM-4-0414: a sandwich of RMS norms, half of each head rotated in neighbouring pairs.

    Args:
      epsilon, theta: As in `llama`.
      fraction: Share of a head that is rotated.
      **sizes: Fields of `TransformerConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.presets.glm4(layers=40, features=4096, heads=32, hidden=13696).kinds[0].rope.interleaved
      True
    """
    place = placements.peri(rms_norm(epsilon=epsilon, precision=LLAMA))
    kinds = (AttentionKind(rope=Rope(theta, interleaved=True, fraction=fraction)),)
    return llama(**{"placement": place, "kinds": kinds} | sizes)


def gemma2(
    *, epsilon: float = 1e-6, theta: float = 1e4, window: int = 4096, softcap: float | None = 50.0, **sizes: Any
) -> TransformerConfig:
    """Gemma 2: a sandwich of RMS norms with 1 + w, windows on every other layer, bounded scores, GeGLU.

    Args:
      epsilon, theta: As in `llama`.
      window: Of the layers with odd depth.
      softcap: Bound of the scores, or `None`.
      **sizes: Fields of `TransformerConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> [k.window for k in nj.models.presets.gemma2(layers=26, features=2304, heads=8, hidden=9216).kinds]
      [4096, None]
    """
    rope = Rope(theta)
    kinds = (AttentionKind(window=window, rope=rope), AttentionKind(rope=rope))
    place = placements.peri(rms_norm(epsilon=epsilon, scale_offset=1.0))
    fields = {"placement": place, "kinds": kinds, "softcap": softcap, "activation": _tanh_gelu, "gated": True}
    return TransformerConfig(**fields | sizes)


def gemma3(
    *, epsilon: float = 1e-6, theta: float = 1e6, local_theta: float = 1e4, window: int = 1024, **sizes: Any
) -> TransformerConfig:
    """Gemma 3: Gemma 2's sandwich with norms of queries and keys for the bound, one whole context in six layers.

    Args:
      epsilon: Of the norms.
      theta: Of the layers that see the whole context.
      local_theta: Of the others.
      window: Of those.
      **sizes: Fields of `TransformerConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> len(nj.models.presets.gemma3(layers=26, features=1152, heads=4, hidden=6912).kinds)
      6
    """
    kinds = (AttentionKind(window=window, rope=Rope(local_theta)),) * 5 + (AttentionKind(rope=Rope(theta)),)
    norm = rms_norm(epsilon=epsilon, scale_offset=1.0)
    return gemma2(epsilon=epsilon, **{"softcap": None, "kinds": kinds, "qk_norm": norm} | sizes)


def cohere2(*, epsilon: float = 1e-5, theta: float = 5e4, window: int = 4096, **sizes: Any) -> TransformerConfig:
    """Command R7B: parallel sublayers after one bias-free layer norm; three rotated windows, then a whole context.

    Args:
      epsilon, theta: As in `llama`.
      window: Of three layers in four; the fourth sees everything and is not rotated.
      **sizes: Fields of `TransformerConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.presets.cohere2(layers=32, features=4096, heads=32, hidden=14336).kinds[3].rope is None
      True
    """
    local = AttentionKind(window=window, rope=Rope(theta, interleaved=True))
    place = placements.parallel(layer_norm(epsilon=epsilon, use_bias=False))
    return llama(**{"placement": place, "kinds": (local, local, local, AttentionKind())} | sizes)


def t5_encoder(*, epsilon: float = 1e-6, relative_buckets: int = 32, **sizes: Any) -> TransformerConfig:
    """T5 1.1's encoder: Pre-RMS, a bias by distance, unscaled scores, GeGLU.

    Args:
      epsilon: Of the norms.
      relative_buckets: Number of distances that are told apart.
      **sizes: Fields of `TransformerConfig`.

    Returns:
      The configuration.

    Example:
      >>> import normjax as nj
      >>> nj.models.presets.t5_encoder(layers=8, features=512, heads=6, hidden=1024).attention_scale
      1.0
    """
    place = placements.pre(rms_norm(epsilon=epsilon, precision=T5))
    fields: dict[str, Any] = {"placement": place, "activation": _tanh_gelu, "gated": True, "attention_scale": 1.0}
    fields |= {"kinds": (AttentionKind(causal=False),), "relative_buckets": relative_buckets}
    return TransformerConfig(**fields | sizes)
