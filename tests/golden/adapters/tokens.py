"""Adapters of per-token norms, QK-norm, temperatures and interpolations."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

import normjax as nj
from normjax import models
from normjax.precision import LLAMA, Precision
from tests.golden.adapters._hosts import below, filled, linear
from tests.golden.adapters._kinds import Adapter, Check, Pointwise
from tests.golden.comparison import assert_close, assert_same_bits
from tests.golden.vectors import Vector

EPS32 = float(np.finfo(np.float32).eps)


def _crms(vector: Vector) -> Pointwise:
    return Pointwise(lambda inputs, params, epsilon: nj.crms_normalize(inputs["x"], epsilon=epsilon))


def _partial(vector: Vector) -> Pointwise:
    def call(inputs, params, epsilon):
        fraction = vector.hyper["p"]
        return nj.partial_rms_normalize(
            inputs["x"], params["scale"], params.get("offset"), fraction=fraction, epsilon=epsilon
        )

    # Its bfloat16 code rounds the norm, the root mean square, the sum with epsilon, the quotient and the product.
    return Pointwise(call, roundings=5)


def _scale_norm(vector: Vector) -> Pointwise:
    def call(inputs, params, epsilon):
        return nj.scale_normalize(inputs["x"], params["scale"].reshape(()), epsilon=epsilon)

    # Its bfloat16 code rounds the norm, the quotient with the scale and the product.
    return Pointwise(call, roundings=3)


def _gated(**options: Any) -> Callable[[Vector], Pointwise]:
    def make(vector: Vector) -> Pointwise:
        named = re.search(r"group(\d+)", vector.name)
        group_size = int(named.group(1)) if named else vector.hyper.get("group_size")

        def call(inputs, params, epsilon):
            x, gate, weight = inputs["x"], inputs["gate"], params["weight"]
            return nj.gated_rms_normalize(x, gate, weight, epsilon=epsilon, group_size=group_size, **options)

        return Pointwise(call)

    return make


def _input_scaled(vector: Vector) -> Pointwise:
    normalize = functools.partial(nj.input_scaled_rms_normalize, precision=Precision(narrow_offset=True))

    def call(inputs, params, epsilon):
        return normalize(inputs["x"], params["weight"], epsilon=epsilon)

    return Pointwise(call, narrow_params=True)


def _logits(q: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.einsum("...qd,...kd->...qk", q, k)


def _rms_scores(vector: Vector) -> Pointwise:
    def call(inputs, params, epsilon):
        epsilon = vector.hyper.get("eps", 1e-6)  # the model's default, where none is recorded
        norm = functools.partial(nj.rms_normalize, epsilon=epsilon, precision=LLAMA)
        query, key = (functools.partial(norm, scale=params[f"{name}_norm.weight"]) for name in "qk")
        q, k = nj.qk_normalize(inputs["q"], inputs["k"], query=query, key=key)
        # torch multiplies by a Python number, and takes the softmax, in float32 and rounds after each.
        wide, narrow = nj.precision.promote(q.dtype, jnp.float32), q.dtype
        logits = (_logits(q, k).astype(wide) * q.shape[-1] ** -0.5).astype(narrow)
        return jax.nn.softmax(logits.astype(wide)).astype(narrow)

    return Pointwise(call)


def _swin(vector: Vector) -> Pointwise:
    def call(inputs, params, epsilon):
        q, k = nj.qk_normalize(inputs["q"], inputs["k"], query=nj.l2_normalize, key=nj.l2_normalize)
        tempered = {"log_temperature": params["logit_scale"].reshape(-1)}
        temperature = nj.attention_temperature(head_axis=-3, maximum=vector.hyper.get("max_scale", 100.0))
        q, _ = temperature.apply(tempered, {}, q, train=True)
        return jax.nn.softmax(_logits(q, k))

    return Pointwise(call)


def _dimr(vector: Vector) -> Pointwise:
    def call(inputs, params, epsilon):
        x = inputs["x"]
        temperature = nj.attention_temperature(
            head_axis=-3,
            maximum=vector.hyper["max_scale"],
            clamp="parameter",
            power=0.5,
            gain=x.shape[-1] ** -0.25,
        )
        norm = nj.chain(nj.rms_norm(use_scale=False, epsilon=epsilon), temperature)
        tempered = {"log_temperature": params["scale"].reshape(-1)}
        return norm.apply({"0": {}, "1": tempered}, {"0": {}, "1": {}}, x, train=True)[0]

    return Pointwise(call)


def _ssmax(vector: Vector) -> Pointwise:
    def call(inputs, params, epsilon):
        q, k = inputs["q"], inputs["k"]
        mask = jnp.ones((q.shape[-2], k.shape[-2]), bool)
        mask = jnp.tril(mask) if "causal" in vector.name else mask
        logits = _logits(q, k) * q.shape[-1] ** -0.5
        direct = nj.scalable_softmax(logits, params["s"], mask=mask)
        # The cheap form, whose gradients these are, is the same function.
        scaled = nj.ssmax_scale(q, params["s"], nj.visible_keys(mask), head_axis=-3)
        cheap = jax.nn.softmax(jnp.where(mask, _logits(scaled, k) * q.shape[-1] ** -0.5, -jnp.inf))
        return (direct + cheap) / 2

    return Pointwise(call)


def _matrices(vector: Vector) -> Check:
    def run(vector: Vector) -> None:
        arrays = vector.arrays()
        outputs = {key: re.fullmatch(r"out/norm_dim(\d+)(_bf16)?", key) for key in arrays if key.startswith("out/")}
        assert all(outputs.values()), sorted(outputs)
        for key, named in outputs.items():
            w, axis = arrays["in/w" + (named.group(2) or "")], int(named.group(1))
            normalize = jax.jit(
                functools.partial(nj.l2_normalize, axis=axis, epsilon=0.0),
                compiler_options={"xla_allow_excess_precision": False},
            )
            if w.dtype == ml_dtypes.bfloat16:
                with jax.enable_x64(True):
                    exact = normalize(jnp.asarray(w, jnp.float64))
                assert_same_bits(normalize(jnp.asarray(w)), arrays[key], exact, key)
            else:
                assert_close(normalize(jnp.asarray(w)), arrays[key], 8 * EPS32, key)
                # The same as a step of an optimizer that leaves the weights where they are.
                params, project = {"w": jnp.asarray(w)}, nj.project_weights(1.0, axes=axis, mask=True)
                step, _ = project.update({"w": jnp.zeros_like(w)}, project.init(params), params)
                assert_close(params["w"] + step["w"], arrays[key], 64 * EPS32, key)

    return Check(run)


def _published_turn(q, positions):
    """Not a rotation: the published table interleaves sine and cosine and is cut into halves (see the sidecar)."""
    features = q.shape[-1]
    angles = positions[:, None] / 10000 ** (np.arange(0, features, 2, dtype=np.float32) / features)[None]
    table = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(-1, 1, features)
    sine, cosine = jnp.split(table, 2, axis=-1)
    even, odd = q[..., ::2], q[..., 1::2]
    return jnp.stack([-odd * cosine, even * sine], axis=-1).reshape(q.shape)


def _ngpt_blocks(vector: Vector) -> Pointwise:
    hyper = vector.hyper
    width, heads = hyper["hidden"], hyper["heads"]
    layers = {"query": "query", "key": "key", "value": "value", "out": "att_c_proj"}
    layers |= {"up": "up", "gate": "gate", "down": "mlp_c_proj"}

    def call(inputs, params, epsilon):
        h = inputs["x"]
        for layer in range(hyper["layers"]):
            own = below(params, f"b.{layer}.")
            hidden = own["mlp_c_proj.weight"].shape[1]
            # Theirs is one matrix for both.
            own |= dict(zip(("up.weight", "gate.weight"), np.split(own["c_fc.weight"], 2), strict=True))
            build = lambda hidden=hidden: models.NGPTBlock(
                width, heads, hidden, rope=_published_turn, step_init=hyper["alpha_init"], rngs=nnx.Rngs(0)
            )
            values = {k: v for ours, theirs in layers.items() for k, v in linear(own, ours, theirs).items()}
            values |= dict(zip(("up_scale", "gate_scale"), np.split(own["suv"], 2), strict=True))
            values |= {"qk_norm.scale": own["sqk"].reshape(heads, -1)}
            values |= {"attention_step.alpha": own["attn_alpha"], "ffn_step.alpha": own["mlp_alpha"]}
            h = filled(build, values)(h)
        return h

    return Pointwise(call)


ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"prerms_crmsnorm_.*": _crms,
    r"prmsnorm_.*": _partial,
    r"scalenorm_.*": _scale_norm,
    r"hf_musespark_inputscaled_rmsnorm_.*": _input_scaled,
    r"hf_gated_rmsnorm_mamba2_.*": _gated(gate_first=True, precision=LLAMA),
    r"hf_gated_rmsnorm_qwen3next_.*": _gated(precision=Precision(cast_order="cast_then_scale")),
    r"hf_gated_rmsnorm_kimilinear_.*": _gated(activation=jax.nn.sigmoid),
    r"qknorm_rms_scores_.*": _rms_scores,
    r"qknorm_swinv2_cosine_.*": _swin,
    r"qknorm_cosine_dimr_.*": _dimr,
    r"ssmax_.*": _ssmax,
    r"ngpt_normalize_matrices_.*": _matrices,
    r"ngpt_blocks_.*": _ngpt_blocks,
}
