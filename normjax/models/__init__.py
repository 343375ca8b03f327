"""Flax nnx models and blocks of the literature in which the norm, and where it can be its placement, are arguments."""

from normjax.models import presets as presets
from normjax.models.attention import Attention as Attention
from normjax.models.attention import AttentionKind as AttentionKind
from normjax.models.cswin import CSWinBlock as CSWinBlock
from normjax.models.efficient_local_attention import EfficientLocalAttention as EfficientLocalAttention
from normjax.models.feature_equalization import FeatureEqualization as FeatureEqualization
from normjax.models.fit import FIT as FIT
from normjax.models.gaussian_mixture_mask import GaussianMixtureMask as GaussianMixtureMask
from normjax.models.graph_transformer import EdgeGraphTransformerLayer as EdgeGraphTransformerLayer
from normjax.models.graph_transformer import GraphTransformerLayer as GraphTransformerLayer
from normjax.models.hyper_connections import HyperConnection as HyperConnection
from normjax.models.hyper_connections import sinkhorn as sinkhorn
from normjax.models.language_model import LanguageModel as LanguageModel
from normjax.models.mlp import MLP as MLP
from normjax.models.polarized_attention import ParallelPolarizedAttention as ParallelPolarizedAttention
from normjax.models.polarized_attention import SequentialPolarizedAttention as SequentialPolarizedAttention
from normjax.models.residual import Residual as Residual
from normjax.models.residual_gate import ResidualGate as ResidualGate
from normjax.models.residual_gate import residual_gate as residual_gate
from normjax.models.rope import Rope as Rope
from normjax.models.siamese_dit import SiameseDiTBlock as SiameseDiTBlock
from normjax.models.simplified_linear_attention import SimplifiedLinearAttention as SimplifiedLinearAttention
from normjax.models.transformer import Transformer as Transformer
from normjax.models.transformer import TransformerConfig as TransformerConfig
from normjax.models.wide_net import WideNet as WideNet
