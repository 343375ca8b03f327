"""Adapters of the gates and masks in `normjax.models`; recorded images have their channels first."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

import normjax as nj
from normjax import models
from tests.golden.adapters._hosts import channels_first, channels_last, check, filled, linear, norm
from tests.golden.adapters._kinds import Adapter
from tests.golden.vectors import Vector


def _polarized(vector: Vector):
    hyper = vector.hyper
    features = hyper["planes"]
    layers = {"channel_query": "conv_q_right", "channel_value": "conv_v_right"}
    layers |= {"spatial_query": "conv_q_left", "spatial_value": "conv_v_left"}
    layers = {f"queries.{ours}": theirs for ours, theirs in layers.items()}

    def parallel():
        return models.ParallelPolarizedAttention(features, rngs=nnx.Rngs(0))

    def sequential():
        inner = nj.layer_norm(epsilon=hyper["ln_eps"])
        return models.SequentialPolarizedAttention(features, norm=inner, ratio=hyper["ratio"], rngs=nnx.Rngs(0))

    def call(inputs, params):
        if "sequential" in vector.name:
            build, own = sequential, {"down": "conv_up.0", "up": "conv_up.3"}
            values = norm(params, "norm", "conv_up.1")
        else:
            build, own, values = parallel, {"up": "conv_up"}, {}
        for ours, theirs in (layers | own).items():
            values |= linear(params, ours, theirs)
        return {"out": channels_first(filled(build, values)(channels_last(inputs["x"])))}

    return call


def _local(vector: Vector):
    hyper = vector.hyper

    def call(inputs, params):
        x = channels_last(inputs["x"])
        build = lambda: models.EfficientLocalAttention(
            x.shape[-1],
            kernel_size=hyper["kernel"],
            conv_groups=hyper["conv_groups"],
            norm=nj.group_norm(num_groups=hyper["gn_groups"], epsilon=hyper["eps"]),
            rngs=nnx.Rngs(0),
        )
        values = {"convolution.kernel": jnp.moveaxis(params["conv.weight"], (0, 1), (2, 1))}
        return {"out": channels_first(filled(build, values | norm(params, "norm", "gn"))(x))}

    return call


def _mixture_mask(vector: Vector):
    hyper = vector.hyper

    def call(inputs, params):
        side = round(inputs["dots"].shape[-1] ** 0.5)
        build = lambda: models.GaussianMixtureMask(
            (side, side), heads=hyper["heads"], components=hyper["kernels"], epsilon=hyper["eps"], rngs=nnx.Rngs(0)
        )
        values = {name: params[name][..., 0, 0] for name in ("sigma", "alpha")}
        return {"out": filled(build, values)(inputs["dots"])}

    return call


def _equalization(vector: Vector):
    hyper = vector.hyper

    def call(inputs, params):
        x = channels_last(inputs["x"])
        features = x.shape[-1]
        build = lambda: models.FeatureEqualization(
            features, reduction=hyper["se_reduction"], sigma=hyper["sigma"], scrambled=True, rngs=nnx.Rngs(0)
        )
        values = linear(params, "squeeze", "model.0.fc.0") | linear(params, "excite", "model.0.fc.2")
        # Recorded before fusing.
        values |= {"fuse.kernel": jnp.zeros((2 * features, features), x.dtype)}
        return {"out": channels_first(filled(build, values).averages(x))}

    return call


ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"psa_(parallel|sequential)_.*": check(_polarized),
    r"ela_.*": check(_local),
    r"gmm_mask_basic_.*": check(_mixture_mask),
    r"medfe_bpa_prefuse_.*": check(_equalization),
}
