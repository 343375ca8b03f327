"""Flax nnx models in which the norm and its placement are arguments."""

from normjax.models import presets as presets
from normjax.models.attention import Attention as Attention
from normjax.models.attention import AttentionKind as AttentionKind
from normjax.models.language_model import LanguageModel as LanguageModel
from normjax.models.mlp import MLP as MLP
from normjax.models.residual import Residual as Residual
from normjax.models.rope import Rope as Rope
from normjax.models.transformer import Transformer as Transformer
from normjax.models.transformer import TransformerConfig as TransformerConfig
