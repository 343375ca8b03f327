"""Adapters of norms modulated by vectors, and divisive normalization."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import normjax as nj
from normjax import models
from normjax.precision import Precision
from tests.golden.adapters._hosts import below, filled, linear
from tests.golden.adapters._kinds import Adapter, Check, Pointwise
from tests.golden.comparison import assert_close
from tests.golden.vectors import Vector, group

EPS32, EPS_BF16 = float(jnp.finfo(jnp.float32).eps), float(jnp.finfo(jnp.bfloat16).eps)
Arrays = dict[str, Any]


def _compare(call: Callable[[Arrays, Arrays], Arrays], arrays: Arrays, prefix: tuple[str, ...], dtype, tolerances):
    """Outputs and gradients of `call(inputs, params)` in `dtype` against the recorded ones of that prefix."""
    cast = lambda tree: {k: v.astype(dtype) for k, v in tree.items()}
    cotangents = group(arrays, "cot") or group(arrays, "dy")

    # What is recorded was rounded after every operation.
    @functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": False})
    def run(inputs, params, cotangents):
        outputs, pullback = jax.vjp(call, inputs, params)
        sent = {
            k: jnp.asarray(cotangents[k]).astype(v.dtype) if k in cotangents else jnp.zeros_like(v)
            for k, v in outputs.items()
        }
        return outputs, pullback(sent)

    outputs, (gin, gparam) = run(cast(group(arrays, "in")), cast(group(arrays, "param")), cotangents)
    for kind, actual, tolerance in (
        ("out", outputs, tolerances[0]),
        ("gin", gin, tolerances[1]),
        ("gparam", gparam, tolerances[1]),
    ):
        expected = group(arrays, *prefix, kind)
        assert kind == "gparam" or expected, f"nothing recorded for {kind}"
        for name, value in expected.items():
            assert_close(actual[name], value, tolerance, f"{kind} {name}")


def _recorded_in_float64(make: Callable[[Vector], Callable[[Arrays, Arrays], Arrays]]) -> Callable[[Vector], Check]:
    def adapter(vector: Vector) -> Check:
        def run(vector: Vector) -> None:
            arrays = vector.arrays()
            with jax.enable_x64(True):
                buffers = {k: jnp.asarray(v) for k, v in group(arrays, "buf").items()}
                _compare(
                    lambda inputs, params: make(vector)(inputs, params | buffers),
                    arrays,
                    (),
                    jnp.float64,
                    (1e-12, 1e-12),
                )

        return Check(run)

    return adapter


def _linear(params: Arrays, name: str) -> Arrays:
    """torch's linear layer or 1x1 convolution as ours."""
    weight = params[f"{name}.weight"]
    return {"kernel": weight.reshape(weight.shape[:2]).T, "bias": params.get(f"{name}.bias")}


# DiMR's parameter: `nodecay_weight` is u, `nodecay_bias` b.
_AT_TIME = {"p0": "param0", "p1": "param1", "u": "nodecay_weight", "b": "nodecay_bias"}


def _time_dependent(factory, **names: str) -> Callable[[Vector], Pointwise]:
    def make(vector: Vector) -> Pointwise:
        def call(inputs, params, epsilon):
            tree = {
                ours: {k: params[f"{theirs}.{v}"] for k, v in _AT_TIME.items()}
                for ours, theirs in names.items()
                if f"{theirs}.param0" in params
            }
            norm = factory(epsilon=epsilon, use_bias="bias" in tree)
            return norm.apply(tree, {}, inputs["x"], train=True, time=inputs["log_snr"])[0]

        return Pointwise(call, centred=factory is nj.time_dependent_layer_norm)

    return make


def _ada_rms(vector: Vector) -> Pointwise:
    def call(inputs, params, epsilon):
        # In one dtype the published order and ours round alike only if the product is rounded before x multiplies it.
        norm = nj.ada_rms_norm(epsilon=epsilon, precision=Precision(cast_order="cast_then_multiply"))
        kernel = params["linear.weight"].T
        return norm.apply({"kernel": kernel}, {}, inputs["x"], train=True, condition=inputs["cond"])[0]

    return Pointwise(call)


def _time_depth(vector: Vector) -> Pointwise:
    hyper = vector.hyper

    def call(inputs, params, epsilon):
        norm = nj.ada_time_depth_norm(
            nj.layer_norm(epsilon=epsilon, use_scale=False, use_bias=False),
            embedding_features=hyper["time_channels"],
            time_scale=hyper["timestep_scale"],
            max_period=hyper["max_period"],
            flip_sin_to_cos=hyper["flip_sin_to_cos"],
            downscale_freq_shift=hyper["downscale_freq_shift"],
        )
        embedders = {
            ours: {"hidden": _linear(params, f"{theirs}.linear_1"), "out": _linear(params, f"{theirs}.linear_2")}
            for ours, theirs in (("time", "timestep_embedder"), ("depth", "control_index_embedder"))
        }
        tree = {"norm": {}, **_linear(params, "linear"), **embedders}
        context = {"time": inputs["timestep"], "depth": inputs["control_index"]}
        return norm.apply(tree, {}, inputs["x"], train=True, **context)[0]

    return Pointwise(call, centred=True)


def _dense(x, params: Arrays, name: str):
    layer = _linear(params, name)
    dtype = x.dtype
    y = jnp.matmul(x.astype(jnp.float32), layer["kernel"].astype(jnp.float32))
    return (y if layer["bias"] is None else y + layer["bias"].astype(jnp.float32)).astype(dtype)


def _chunks(inputs: Arrays, params: Arrays, chunks: int):
    layer = _linear(params, "adaLN_modulation.1")
    parts = nj.ada_modulation(inputs["c"], layer["kernel"], layer["bias"], chunks=chunks)
    return [part[:, None, :] for part in parts]


def _final_layer(vector: Vector):
    def call(inputs, params):
        shift, scale = _chunks(inputs, params, 2)
        y = nj.modulate(nj.layer_normalize(inputs["x"], epsilon=vector.hyper["eps"]), scale, shift)
        return {"y": _dense(y, params, "linear")}

    return call


def _halved(own: Arrays, name: str, halves: tuple[str, ...]) -> Arrays:
    """One linear layer for all sublayers as one of each: its outputs in equal parts."""
    parts = {k: jnp.split(v, len(halves), -1) for k, v in _linear(own, name).items() if v is not None}
    return {f"{half}.{k}": v[i] for k, v in parts.items() for i, half in enumerate(halves)}


def _qkv(own: Arrays, ours: str, theirs: str) -> Arrays:
    """A fused projection as our three; where it has no bias, theirs are zero."""
    layers = tuple(f"{ours}.{name}" for name in ("query", "key", "value"))
    values = _halved(own, theirs, layers)
    zeros = {f"{layer}.bias": jnp.zeros(values[f"{layer}.kernel"].shape[1:]) for layer in layers}
    return {name: zero.astype(values[layers[0] + ".kernel"].dtype) for name, zero in zeros.items()} | values


def _dit_block(vector: Vector):
    hyper = vector.hyper
    inner = nj.layer_norm(epsilon=hyper["eps"], use_scale=False, use_bias=False)

    def call(inputs, params):
        width = params["mlp.fc1.weight"].shape[0]
        build = lambda: models.DiTBlock(
            hyper["hidden"],
            hyper["heads"],
            width,
            conditioning=models.ada_layer_norm_zero(inner),
            rngs=nnx.Rngs(0),
        )
        values = _qkv(params, "attention", "attn.qkv") | linear(params, "attention.out", "attn.proj")
        values |= linear(params, "ffn.up", "mlp.fc1") | linear(params, "ffn.down", "mlp.fc2")
        values |= _halved(params, "adaLN_modulation.1", ("attention_norm", "ffn_norm"))
        block = filled(build, values)
        # Neither norm reads the time.
        return {"y": block(inputs["x"], condition=inputs["c"], time=inputs["c"][:, 0])}

    return call


def _timed_transformer(vector: Vector):
    """DiMR's blocks: x + attention(TD-RMS(x)), then x + GEGLU(TD-RMS(x))."""
    hyper = vector.hyper
    names = sorted({int(k.split(".")[1]) for k in vector.sidecar["arrays"] if k.startswith("param/b.")})
    norm = nj.time_dependent_rms_norm(epsilon=hyper.get("eps", 1e-8))

    def call(inputs, params):
        build = lambda: models.DiTBlock(
            hyper["dim"],
            hyper["heads"],
            hyper["hidden"],
            conditioning=models.Conditioning(norm, norm),
            activation=functools.partial(jax.nn.gelu, approximate=False),
            gated=True,
            rngs=nnx.Rngs(0),
        )
        outputs, x = {}, inputs["x"]
        for i in names:
            own = below(params, f"b.{i}.")
            values = _qkv(own, "attention", "block1.query_key_value") | linear(own, "attention.out", "block1.dense")
            for ours, theirs in {"gate": "w0", "up": "w1", "down": "w2"}.items():
                values |= linear(own, f"ffn.{ours}", f"block2.{theirs}")
            for ours, theirs in {"attention_norm": "block1", "ffn_norm": "block2"}.items():
                values |= {f"{ours}.scale.{k}": own[f"{theirs}.norm.scale.{v}"] for k, v in _AT_TIME.items()}
            x = filled(build, values)(x, condition=x[:, 0], time=inputs["log_snr"])
            outputs[f"layer_{i}"] = x
        return outputs | {"y": x}

    return call


def _block(make: Callable, roundings: int) -> Callable[[Vector], Check]:
    """The official block around our norm: float32 by the usual formula, bfloat16 by the roundings on the way."""

    def adapter(vector: Vector) -> Check:
        def run(vector: Vector) -> None:
            arrays, name = vector.arrays(), vector.sidecar["compute_dtype"]
            if name == "bf16":
                # A gradient passes the forward roundings, and backwards two rounded products for each of them.
                dtype, tolerances = jnp.bfloat16, (roundings * EPS_BF16 / 2, 3 * roundings * EPS_BF16 / 2)
            else:
                dtype, tolerances = jnp.float32, (80 * EPS32, 800 * EPS32)
            _compare(make(vector), arrays, (name,), dtype, tolerances)

        return Check(run)

    return adapter


def _timed_convolutions(vector: Vector):
    """DiMR's ConvNeXt blocks: x + depthwise(x), then x + GEGLU(TD-RMS(x))."""
    names = sorted({int(k.split(".")[1]) for k in vector.sidecar["arrays"] if k.startswith("param/b.")})
    norm = nj.time_dependent_rms_norm(epsilon=vector.hyper.get("eps", 1e-8))

    def call(inputs, params):
        outputs, x = {}, inputs["x"]
        for i in names:
            own = below(params, f"b.{i}.")
            x = x + _depthwise(x, own)
            tree = {"scale": {k: own[f"block2.norm.scale.{v}"] for k, v in _AT_TIME.items()}}
            h = norm.apply(tree, {}, x, train=True, time=inputs["log_snr"])[0]
            gate = jax.nn.gelu(_dense(h, own, "block2.w0"), approximate=False)
            x = x + _dense(gate * _dense(h, own, "block2.w1"), own, "block2.w2")
            outputs[f"layer_{i}"] = x
        return outputs | {"y": x}

    return call


def _depthwise(x, own: Arrays):
    kernel = jnp.moveaxis(own["block1.1.weight"], (0, 1), (3, 2))
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )
    return y + own["block1.1.bias"]


def _gdn(vector: Vector):
    hyper = vector.hyper
    norm = nj.gdn(feature_axis=1, inverse=hyper["inverse"], absolute="gdn1" in vector.name, beta_min=hyper["beta_min"])

    def call(inputs, params):
        return {"out": norm.apply(params, {}, inputs["x"], train=True)[0]}

    return call


def _sal(vector: Vector):
    hyper = vector.hyper
    kernel, stride = hyper["kernel"], hyper["stride"]
    up = "_up" in vector.name
    norm = nj.gdn(feature_axis=1)

    def call(inputs, params):
        hidden, out = _linear(params, "scales_bias.0"), _linear(params, "scales_bias.2")
        modulated = lambda x: nj.self_modulate(x, hidden, out, feature_axis=1)
        weight, bias = params["conv_groups.0.weight"], params["conv_groups.0.bias"][:, None, None]
        divided = lambda x: norm.apply({k: params[f"conv_groups.1.{k}"] for k in ("beta", "gamma")}, {}, x, train=True)[
            0
        ]
        if up:
            # A transposed convolution, output_padding 1: the flipped kernel over an input spread by the stride.
            pad = kernel - 1 - kernel // 2
            y = jax.lax.conv_general_dilated(
                modulated(inputs["x"]),
                jnp.flip(weight, (2, 3)).swapaxes(0, 1),
                (1, 1),
                [(pad, pad + 1)] * 2,
                lhs_dilation=(stride, stride),
            )
            return {"out": divided(y + bias)}
        y = jax.lax.conv_general_dilated(inputs["x"], weight, (stride, stride), [(kernel // 2, kernel // 2)] * 2)
        return {"out": modulated(divided(y + bias))}

    return call


def _layer_masking(vector: Vector):
    hyper = vector.hyper

    def call(inputs, params):
        x, mask = inputs["x"], jax.lax.stop_gradient(inputs["mask"])
        weight = params["conv.weight"]
        kernel = weight.shape[-1]
        pad = [(kernel // 2, kernel // 2)] * 2
        window = lambda v, init, op, size, strides, pads: jax.lax.reduce_window(
            v, np.asarray(init, v.dtype), op, (1, 1, size, size), (1, 1, strides, strides), [(0, 0), (0, 0), *pads]
        )
        if hyper["it"] > 0:
            x, _ = nj.fill_holes(x, mask, rounds=kernel, spatial_axes=(2, 3), epsilon=hyper["eps_fmm"])
        elif hyper["it"] == 0:
            x = jnp.where(mask > 0, x, 0)
        # With it < 0 the published code convolves the input as it is: what the mask removes still enters.
        y = jax.lax.conv_general_dilated(x, weight, (1, 1), pad)
        if hyper["it"] < 0:
            coverage = window(mask, 0, jax.lax.add, kernel, 1, pad) / kernel**2
            y = y / (coverage + 1e-8)
        else:
            y = y + params["conv.bias"][:, None, None]
        mask = window(mask, -jnp.inf, jax.lax.max, kernel, 1, pad)
        y = y * mask
        norm = nj.mask_carrying_norm(nj.batch_norm(feature_axes=1))
        affine = {"scale": params["bn.weight"], "bias": params["bn.bias"]}
        state = {"mean": params["bn.running_mean"], "var": params["bn.running_var"]}
        normalized, _ = norm.apply(affine, state, y, train=False, mask=mask)
        half = [(0, 0), (0, 0)]
        pool_mask = window(mask, -jnp.inf, jax.lax.max, 2, 2, half)
        pooled = window(jax.nn.relu(normalized), -jnp.inf, jax.lax.max, 2, 2, half) * pool_mask
        mean = nj.masked_global_mean(pooled, pool_mask, axis=(2, 3))
        return {
            "conv": y,
            "convmask": mask,
            "bn": normalized,
            "pool": pooled,
            "poolmask": pool_mask,
            "out": mean,
        }

    return call


ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"td_layernorm_.*": _time_dependent(nj.time_dependent_layer_norm, scale="n.weight", bias="n.bias"),
    r"td_rmsnorm_.*": _time_dependent(nj.time_dependent_rms_norm, scale="n.scale", bias="n.offset"),
    r"ada_rmsnorm_.*": _ada_rms,
    r"adaln_t_layer_.*": _time_depth,
    # Norm, modulation, its two operands, SiLU, both linear layers.
    r"adaln_dit_finallayer_.*": _block(_final_layer, roundings=8),
    r"adaln_zero_dit_block_.*": _block(_dit_block, roundings=16),
    # Their float32 matrix products, as those of the DiT block, are inside the usual formula.
    r"tdln_transformer_block_.*": _block(_timed_transformer, roundings=16),
    r"tdln_convnext_block_.*": _block(_timed_convolutions, roundings=16),
    r"gdn_.*": _recorded_in_float64(_gdn),
    r"sal_.*": _recorded_in_float64(_sal),
    r"layermask_.*": _recorded_in_float64(_layer_masking),
}
