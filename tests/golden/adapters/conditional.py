"""Adapters of norms modulated by vectors, and divisive normalization."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj
from normjax.precision import Precision
from tests.golden.adapters._kinds import Adapter, Check, Pointwise
from tests.golden.comparison import assert_close
from tests.golden.vectors import Vector, group

EPS32, EPS_BF16 = float(jnp.finfo(jnp.float32).eps), float(jnp.finfo(jnp.bfloat16).eps)
Arrays = dict[str, Any]


def _compare(call: Callable[[Arrays, Arrays], Arrays], arrays: Arrays, prefix: tuple[str, ...], dtype, tolerances):
    """Outputs and gradients of `call(inputs, params)` in `dtype` against the recorded ones of that prefix."""
    cast = lambda tree: {k: jnp.asarray(v).astype(dtype) for k, v in tree.items()}
    inputs, params = cast(group(arrays, "in")), cast(group(arrays, "param"))
    cotangents = group(arrays, "cot") or group(arrays, "dy")
    outputs, pullback = jax.jit(lambda *a: jax.vjp(call, *a))(inputs, params)
    sent = {
        k: jnp.asarray(cotangents[k]).astype(v.dtype) if k in cotangents else jnp.zeros_like(v)
        for k, v in outputs.items()
    }
    gin, gparam = pullback(sent)
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


def _dit_block(vector: Vector):
    hyper = vector.hyper

    def call(inputs, params):
        x = inputs["x"]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = _chunks(inputs, params, 6)
        normalize = lambda x: nj.layer_normalize(x, epsilon=hyper["eps"])
        x = x + gate_a * _attention(nj.modulate(normalize(x), scale_a, shift_a), params, "attn", hyper["heads"])
        inner = _dense(nj.modulate(normalize(x), scale_m, shift_m), params, "mlp.fc1")
        return {"y": x + gate_m * _dense(jax.nn.gelu(inner, approximate=True), params, "mlp.fc2")}

    return call


def _attention(x, params: Arrays, name: str, heads: int):
    batch, length, width = x.shape
    qkv = _dense(x, params, f"{name}.qkv").reshape(batch, length, 3, heads, width // heads)
    q, k, v = (a.astype(jnp.promote_types(a.dtype, jnp.float32)) for a in jnp.moveaxis(qkv, 2, 0))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width // heads) ** 0.5, axis=-1)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, width)
    return _dense(mixed.astype(x.dtype), params, f"{name}.proj")


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


def _timed_blocks(half: Callable) -> Callable[[Vector], Callable]:
    """DiMR's blocks: a first half of their own, then x + GEGLU(TD-RMS(x))."""

    def make(vector: Vector):
        names = sorted({int(k.split(".")[1]) for k in vector.sidecar["arrays"] if k.startswith("param/b.")})
        epsilon = vector.hyper.get("eps", 1e-8)

        def call(inputs, params):
            outputs, x = {}, inputs["x"]
            for i in names:
                own = {k.removeprefix(f"b.{i}."): v for k, v in params.items() if k.startswith(f"b.{i}.")}

                def norm(x, name, own=own):
                    tree = {"scale": {k: own[f"{name}.norm.scale.{v}"] for k, v in _AT_TIME.items()}}
                    timed = nj.time_dependent_rms_norm(epsilon=epsilon)
                    return timed.apply(tree, {}, x, train=True, time=inputs["log_snr"])[0]

                x = x + half(x, own, norm, vector.hyper)
                h = norm(x, "block2")
                gate = jax.nn.gelu(_dense(h, own, "block2.w0"), approximate=False)
                x = x + _dense(gate * _dense(h, own, "block2.w1"), own, "block2.w2")
                outputs[f"layer_{i}"] = x
            return outputs | {"y": x}

        return call

    return make


def _attention_half(x, own: Arrays, norm, hyper):
    renamed = {"qkv": "query_key_value", "proj": "dense"}
    parts = {f"attn.{k}.{p}": own.get(f"block1.{v}.{p}") for k, v in renamed.items() for p in ("weight", "bias")}
    return _attention(norm(x, "block1"), parts, "attn", hyper["heads"])


def _convolution_half(x, own: Arrays, norm, hyper):
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
    r"tdln_transformer_block_.*": _block(_timed_blocks(_attention_half), roundings=16),
    r"tdln_convnext_block_.*": _block(_timed_blocks(_convolution_half), roundings=16),
    r"gdn_.*": _recorded_in_float64(_gdn),
    r"sal_.*": _recorded_in_float64(_sal),
    r"layermask_.*": _recorded_in_float64(_layer_masking),
}
