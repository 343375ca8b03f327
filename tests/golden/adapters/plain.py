"""Adapters of layer, RMS, batch, group and instance normalization, and of the norms inside real models."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import normjax as nj
from normjax.precision import LLAMA, T5, TORCH, Precision
from tests.golden.adapters._kinds import Adapter, Pointwise, Policies, Stepwise
from tests.golden.vectors import Vector

_AFFINE = {"weight": "scale", "bias": "bias"}


def feature_axis(vector: Vector) -> int:
    return re.sub(r"[() ]", "", vector.sidecar["layout"]).split(",").index("C")


def affine_parameters(vector: Vector) -> dict[str, str]:
    """The recorded parameters under our names; a layer without them has none."""
    return {theirs: ours for theirs, ours in _AFFINE.items() if f"param_{theirs}" in vector.sidecar["keys"]}


def recorded_states(vector: Vector, **names: str) -> dict[str, str]:
    return {theirs: ours for theirs, ours in names.items() if f"state_{theirs}" in vector.sidecar["keys"]}


def _layer_norm(vector: Vector) -> Stepwise:
    # The parameters' rank (behind the axis of steps) is the number of normalized axes.
    shapes = [shape for name, (shape, _) in vector.sidecar["keys"].items() if name.startswith("param_")]
    axes = tuple(range(1 - len(shapes[0]), 0)) if shapes else -1
    return Stepwise(nj.layer_norm(axis=axes, epsilon=vector.hyper["eps"]), affine_parameters(vector), {})


def _batch_norm(vector: Vector) -> Stepwise:
    momentum = vector.hyper["momentum"]
    norm = nj.batch_norm(
        feature_axes=feature_axis(vector),
        momentum=None if momentum is None else 1 - momentum,
        epsilon=vector.hyper["eps"],
        unbiased=True,
    )
    counted = {"num_batches_tracked": "count"} if momentum is None else {}
    states = recorded_states(vector, running_mean="mean", running_var="var", **counted)
    return Stepwise(norm, affine_parameters(vector), states)


def _group_norm(vector: Vector) -> Stepwise:
    norm = nj.group_norm(
        num_groups=vector.hyper["groups"], feature_axis=feature_axis(vector), epsilon=vector.hyper["eps"]
    )
    return Stepwise(norm, affine_parameters(vector), {})


def _instance_norm(vector: Vector) -> Stepwise:
    norm = nj.instance_norm(
        feature_axes=feature_axis(vector),
        epsilon=vector.hyper["eps"],
        track_running=vector.hyper.get("track_running_stats", False),
        momentum=1 - vector.hyper.get("momentum", 0.1),
    )
    return Stepwise(norm, affine_parameters(vector), recorded_states(vector, running_mean="mean", running_var="var"))


def _rms(precision: Precision = TORCH, roundings: int = 0, **options: Any) -> Callable[[Vector], Pointwise]:
    def make(vector: Vector) -> Pointwise:
        def call(inputs, params, epsilon):
            x = inputs["x"]
            scale = params.get("weight", params.get("scale"))
            return nj.rms_normalize(x, scale, params.get("offset"), epsilon=epsilon, precision=precision, **options)

        return Pointwise(call, roundings=roundings)

    return make


def _layer(per_head: bool = False, precision: Precision = TORCH, **options: Any) -> Callable[[Vector], Pointwise]:
    def make(vector: Vector) -> Pointwise:
        def call(inputs, params, epsilon):
            return nj.layer_normalize(
                inputs["x"],
                params.get("weight"),
                params.get("bias"),
                feature_axes=(-2, -1) if per_head else None,
                epsilon=epsilon,
                precision=precision,
                **options,
            )

        return Pointwise(call, centred=True, narrow_params=precision.narrow_offset)

    return make


def _starflow(vector: Vector) -> Pointwise:
    return _rms(scale_offset=float(vector.hyper["add_unit_offset"]))(vector)


def _grouped(vector: Vector) -> Pointwise:
    return _rms(scale_offset=1.0, group_size=vector.hyper["group_size"])(vector)


def _relaxed(vector: Vector) -> Pointwise:
    def call(inputs, params, epsilon):
        # CogView's PB-relax: the largest magnitude of the whole tensor, as a constant, makes epsilon relative.
        x = inputs["x"]
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
        return nj.layer_normalize(x / (largest / 8), params["weight"], params["bias"], epsilon=epsilon)

    return Pointwise(call, centred=True)


def _policies(vector: Vector) -> Policies:
    def call(**options):
        return lambda x, scale, epsilon: nj.rms_normalize(x, scale, epsilon=epsilon, **options)

    # The policy "statistics in bfloat16" is left out: its recorded values depend on the order of a bfloat16 sum.
    return Policies(
        {
            "llama": call(precision=LLAMA),
            "llama4": call(precision=LLAMA),
            "t5": call(precision=T5),
            "olmo2": call(),
            "gemma4": call(),
            "torch_rmsnorm": call(),
            "gemma2_1pw": lambda x, scale, epsilon: call(scale_offset=1.0)(x, _around_zero(scale), epsilon),
            "maxtext_t5x_dtype_bf16": call(precision=Precision(output=jnp.bfloat16, cast_order="cast_then_scale")),
        }
    )


def _around_zero(scale: jax.Array) -> jax.Array:
    return (scale.astype(jnp.float32) - 1).astype(scale.dtype)


_LLAMA_LIKE = "llama|llama4|qwen3|deepseekv3"
_OLMO_LIKE = "olmo2|gptoss|gemma3n|gemma4|gemma4_noscale"
_GEMMA_LIKE = "gemma|gemma2|gemma3|qwen3next"

ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"layernorm_torch_.*": _layer(),
    r"layernorm_pbrelax_.*": _relaxed,
    r"layernorm_.*": _layer_norm,
    r"batchnorm.*": _batch_norm,
    r"groupnorm.*": _group_norm,
    r"instancenorm.*": _instance_norm,
    # Their bfloat16 code rounds the norm, the root mean square, the sum with epsilon, the quotient and the product.
    r"rmsnorm_official_.*": _rms(epsilon_mode="outside", roundings=5),
    r"rmsnorm_torch_.*": _rms(),
    rf"hf_({_LLAMA_LIKE})_rmsnorm_.*": _rms(LLAMA),
    r"hf_t5_rmsnorm_.*": _rms(T5),
    rf"hf_({_OLMO_LIKE})_rmsnorm_.*": _rms(),
    rf"hf_({_GEMMA_LIKE})_rmsnorm_.*": _rms(scale_offset=1.0),
    r"hf_llama4_l2norm_.*": _rms(),
    r"hf_deepseekv4_unweighted_rmsnorm_.*": _rms(Precision(cast_order="cast_then_multiply")),
    r"hf_qwen4exp_group_rmsnorm_.*": _grouped,
    r"hf_(cohere_layernorm|olmo_nonparametric_ln)_.*": _layer(),
    # Nemotron rounds 1 + w to the weight's own dtype.
    r"hf_nemotron_layernorm1p_.*": _layer(scale_offset=1.0, precision=Precision(narrow_offset=True)),
    r"hf_perhead_layernorm_chameleon_.*": _layer(per_head=True, precision=LLAMA),
    r"hf_perhead_layernorm_cohere_.*": _layer(per_head=True),
    r"dtype_policy_rmsnorm_.*": _policies,
    r"starflow_rmsnorm_.*": _starflow,
    r"prerms_rmsnorm_.*": _rms(),
    r"prerms_customizedlayernorm_.*": _layer(),
}
