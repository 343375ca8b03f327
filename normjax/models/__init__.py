"""Architectures from the literature as small nnx modules in which the norm is an argument."""

from normjax.models.cswin import CSWinBlock as CSWinBlock
from normjax.models.efficient_local_attention import EfficientLocalAttention as EfficientLocalAttention
from normjax.models.feature_equalization import FeatureEqualization as FeatureEqualization
from normjax.models.fit import FIT as FIT
from normjax.models.gaussian_mixture_mask import GaussianMixtureMask as GaussianMixtureMask
from normjax.models.graph_transformer import EdgeGraphTransformerLayer as EdgeGraphTransformerLayer
from normjax.models.graph_transformer import GraphTransformerLayer as GraphTransformerLayer
from normjax.models.hyper_connections import HyperConnection as HyperConnection
from normjax.models.hyper_connections import sinkhorn as sinkhorn
from normjax.models.polarized_attention import ParallelPolarizedAttention as ParallelPolarizedAttention
from normjax.models.polarized_attention import SequentialPolarizedAttention as SequentialPolarizedAttention
from normjax.models.residual_gate import ResidualGate as ResidualGate
from normjax.models.residual_gate import residual_gate as residual_gate
from normjax.models.siamese_dit import SiameseDiTBlock as SiameseDiTBlock
from normjax.models.simplified_linear_attention import SimplifiedLinearAttention as SimplifiedLinearAttention
from normjax.models.wide_net import WideNet as WideNet
