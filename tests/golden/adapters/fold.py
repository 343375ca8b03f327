"""Adapters of folding rules and quantization."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj
from normjax import fold
from tests.golden.adapters._kinds import Adapter, check
from tests.golden.comparison import assert_close, is_close
from tests.golden.vectors import Vector

# The cards' tolerance of one primitive in float32; float64 vectors agree to 1e-12.
FLOAT32, FLOAT64, EPS32 = 1e-5, 1e-12, float(np.finfo(np.float32).eps)
Arrays = dict[str, Any]


def _kernel(arrays: Arrays, name: str) -> np.ndarray:
    """torch's (out, in) or OIHW kernel as Flax's, in float64."""
    return np.moveaxis(np.asarray(arrays[name], np.float64), (0, 1), (-1, -2))


def _wide(arrays: Arrays) -> Arrays:
    return {k: np.asarray(v, np.float64) for k, v in arrays.items()}


def _convolved(x, kernel, bias, padding, pad_value=0.0, stride=1):
    """A convolution of NCHW by an HWIO kernel, of the input padded with one value per channel."""
    x = np.moveaxis(np.asarray(x, np.float64), 1, -1)
    padded = np.broadcast_to(pad_value, x.shape[-1:]) * np.ones_like(
        x, shape=(x.shape[0], x.shape[1] + 2 * padding, x.shape[2] + 2 * padding, x.shape[3])
    )
    inside = slice(padding, -padding or None)
    padded[:, inside, inside] = x
    h, w = kernel.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), (1, 2))[:, ::stride, ::stride]
    y = np.einsum("byxihw,hwio->byxo", windows, kernel)
    return np.moveaxis(y if bias is None else y + bias, -1, 1)


def _padding(x, kernel, y, stride=1) -> int:
    """What a recorded convolution of NCHW padded on each side, by the shapes."""
    return -(-((y.shape[-1] - 1) * stride + kernel.shape[0] - x.shape[-1]) // 2)


def _check_primitives(vector: Vector) -> None:
    a, epsilon = _wide(vector.arrays()), vector.sidecar["params"]["bn_eps"]
    close = lambda actual, name: assert_close(actual, a[name], FLOAT32, name)
    torch_layout = lambda kernel: np.moveaxis(kernel, (-1, -2), (0, 1))
    statistics = lambda p: (a[f"{p}_gamma"], a[f"{p}_beta"], a[f"{p}_mean"], a[f"{p}_var"], epsilon)

    kernel, bias = fold.bn_after(_kernel(a, "c2b_W"), a["c2b_b"], *statistics("c2b"))
    close(torch_layout(kernel), "c2b_Wf")
    close(bias, "c2b_bf")
    stride = vector.sidecar["params"]["conv_stride_c2b"]
    padding = _padding(a["c2b_x"], kernel, a["c2b_y"], stride)
    close(_convolved(a["c2b_x"], kernel, bias, padding, stride=stride), "c2b_y")

    scale, shift = fold.running_affine(*statistics("b2c"))
    kernel, bias = fold.affine_before(_kernel(a, "b2c_W"), a["b2c_b"], scale, shift)
    close(torch_layout(kernel), "b2c_Wf")
    close(bias, "b2c_bf")
    pad = fold.conv_pad_value(scale, shift)
    close(pad, "b2c_padvalue")
    padding = _padding(a["c2b_x"], kernel, a["b2c_y"])
    close(_convolved(a["c2b_x"], kernel, bias, padding, pad), "b2c_y")
    naive = _convolved(a["c2b_x"], kernel, bias, padding)
    close(naive, "b2c_y_naive_zero_pad")
    assert np.max(np.abs(naive - a["b2c_y"])) > 0.1, "zeros on the border should be wrong"

    kernel, bias = fold.bn_after(_kernel(a, "l2b_W"), a["l2b_b"], *statistics("l2b"))
    close(kernel.T, "l2b_Wf")
    close(bias, "l2b_bf")
    close(a["l2b_x"] @ kernel + bias, "l2b_y")
    kernel, bias = fold.affine_before(_kernel(a, "l2b_W"), a["l2b_b"], *fold.running_affine(*statistics("b2l")))
    close(kernel.T, "b2l_Wf")
    close(bias, "b2l_bf")
    close(a["l2b_x"] @ kernel + bias, "b2l_y")
    _check_token_norms(vector, a, close)
    _check_skips(a, close, epsilon)


def _check_token_norms(vector: Vector, a: Arrays, close) -> None:
    x, params = a["ln_x"], vector.sidecar["params"]
    with jax.enable_x64(True):
        normalized = np.asarray(jax.jit(functools.partial(nj.layer_normalize, epsilon=params["ln_eps"]))(x))
        rms = np.asarray(jax.jit(functools.partial(nj.rms_normalize, epsilon=params["rms_eps"]))(x))
    for index, bias in (("1", a["ln_b1"]), ("2", None)):
        kernel, bias = fold.affine_before(_kernel(a, f"ln_W{index}"), bias, a["ln_gamma"], a["ln_beta"])
        close(kernel.T, f"ln_W{index}f")
        close(bias, f"ln_b{index}f")
        close(normalized @ kernel + bias, f"ln_y{index}")
    kernel, bias = fold.affine_before(_kernel(a, "rms_W"), None, a["rms_w"])
    assert bias is None
    close(kernel.T, "rms_Wf")
    close(rms @ kernel, "rms_y")
    kernel, bias = fold.center_out(_kernel(a, "bake_W"), a["bake_b"])
    close(kernel.T, "bake_Wf")
    close(bias, "bake_bf")
    close(a["bake_x"] @ kernel + bias, "bake_y")


def _check_skips(a: Arrays, close, epsilon: float) -> None:
    """RepBN before and after a layer, with the published bias that lacks alpha * b; Unified Normalization."""
    x = a["ln_x"]
    statistics = (a["rep_gamma"], a["rep_beta"], a["rep_mean"], a["rep_var"], epsilon)
    scale, shift = fold.running_affine(*statistics, alpha=a["rep_alpha"])
    close(x * scale + shift, "rep_norm_y")
    kernel, bias = fold.affine_before(_kernel(a, "rep_W"), a["rep_b"], scale, shift)
    close(kernel.T, "rep_Wf")
    close(bias, "rep_bf")
    close(x @ kernel + bias, "rep_y")
    kernel, bias = fold.affine_after(_kernel(a, "repafter_W"), a["repafter_b"], scale, shift)
    close(kernel.T, "repafter_Wf")
    close(bias, "repafter_bf")
    close(a["repafter_x"] @ kernel + bias, "repafter_y")
    without = fold.bn_after(_kernel(a, "repafter_W"), a["repafter_b"], *statistics)[1]
    close(without, "repafter_bf_official_formula")
    assert not is_close(bias, without, 1e-2), "the published bias should be wrong"
    scale, shift = fold.running_affine(a["un_w"], a["un_b"], None, a["un_var"], epsilon)
    close(x * scale + shift, "un_norm_y")
    kernel, bias = fold.affine_before(_kernel(a, "rep_W"), a["rep_b"], scale, shift)
    close(kernel.T, "un_Wf")
    close(bias, "un_bf")
    close(x @ kernel + bias, "un_y")


def _check_prepbn(vector: Vector) -> None:
    a, epsilon = vector.arrays(), vector.hyper["bn_eps"]
    close = lambda actual, name: assert_close(actual, a[name], FLOAT64, name)

    def affine(norm: str):
        read = lambda name: a[f"{norm}.{name}"]
        own = [read(f"bn.{name}") for name in ("weight", "bias", "running_mean", "running_var")]
        return fold.running_affine(*own, epsilon, alpha=read("alpha"))

    for norm, layer in (("block_norm1", "qkv"), ("block_norm2", "fc1")):
        kernel, bias = a[f"block_{layer}.weight"].T, a[f"block_{layer}.bias"]
        kernel, bias = fold.affine_before(kernel, bias, *affine(norm))
        close(kernel.T, f"block_fused_{layer}.weight")
        close(bias, f"block_fused_{layer}.bias")
        close(a["block_x"] @ kernel + bias, f"block_{layer}_y")
    kernel, bias = fold.affine_before(a["merge_reduction.weight"].T, None, *affine("merge_norm"))
    close(kernel.T, "merge_fused_reduction.weight")
    close(bias, "merge_fused_reduction.bias")
    close(a["merge_x"] @ kernel + bias, "merge_y")
    kernel = np.moveaxis(a["embed_proj.weight"], (0, 1), (-1, -2))
    folded, bias = fold.affine_after(kernel, a["embed_proj.bias"], *affine("embed_norm"))
    close(np.moveaxis(folded, (-1, -2), (0, 1)), "embed_correctfused_weight")
    close(bias, "embed_correctfused_bias")
    tokens = lambda y: np.moveaxis(y, 1, -1).reshape(y.shape[0], -1, y.shape[1])
    stride = kernel.shape[0]
    close(tokens(_convolved(a["embed_x"], folded, bias, 0, stride=stride)), "embed_y")
    wrong = a["embed_officialfused_proj.bias"]
    alpha = a["embed_norm.alpha"]
    close(bias - alpha * a["embed_proj.bias"], "embed_officialfused_proj.bias")
    close(tokens(_convolved(a["embed_x"], folded, wrong, 0, stride=stride)), "embed_officialfused_y")
    assert not is_close(a["embed_officialfused_y"], a["embed_y"], 1e-3), "the published fusion should be wrong"


def _check_adaquant(vector: Vector) -> None:
    a, params = _wide(vector.arrays()), vector.sidecar["params"]
    epsilon = params["bn_eps"]
    # The recorded weights are float32 throughout.
    close = lambda actual, name: assert_close(actual, a[name], FLOAT32, name)
    statistics = (a["gamma"], a["beta"], a["run_mean"], a["run_var"], epsilon)
    kernel, bias = fold.bn_after(_kernel(a, "W0"), None, *statistics)
    torch_layout = lambda kernel: np.moveaxis(kernel, (-1, -2), (0, 1))
    close(torch_layout(kernel), "W_folded")
    close(bias, "b_folded")
    padding = _padding(a["x"][0], kernel, a["y_float"])
    close(_convolved(a["x"][0], kernel, bias, padding), "y_float")
    units = (0, 1, 2)
    low, high = kernel.min(units), kernel.max(units)
    close(np.minimum(low, 0), "wq_min")
    close(np.maximum(high, 0) - np.minimum(low, 0), "wq_range")
    # Rounded as recorded: an entry half-way between two codes may fall to either side in another precision.
    stored = _kernel(a, "W_folded")
    delta, zero = fold.range_quantizer(a["wq_min"], a["wq_min"] + a["wq_range"], params["weight_bits"])
    quantized = fold.quantize_uniform(stored, delta, zero, params["weight_bits"])
    close(torch_layout(quantized), "W_q")
    low, high = (f(a["x"][0], axis=(1, 2, 3)).mean() for f in (np.min, np.max))
    assert_close(low.reshape(1, 1, 1), a["act_min"], FLOAT32, "act_min")
    assert_close((high - low).reshape(1, 1, 1), a["act_range"], FLOAT32, "act_range")
    for name, whole in (("x0_q", False), ("x0_q_integer_zp", True)):
        delta, zero = fold.range_quantizer(low, high, params["act_bits"], integer_zero=whole)
        close(fold.quantize_uniform(a["x"][0], delta, zero, params["act_bits"]), name)
    _check_retuning(a, params, close, torch_layout)


def _check_retuning(a: Arrays, params: Arrays, close, torch_layout) -> None:
    quantized = _kernel(a, "W_q")
    padding = _padding(a["x"][0], quantized, a["y_float"])
    norm = nj.batch_norm(momentum=params["momentum_old"], unbiased=True)
    state = {"mean": a["beta"], "var": a["gamma"] ** 2}
    with jax.enable_x64(True):
        train = jax.jit(functools.partial(norm.apply, train=True))
        for x in a["x"][: params["calib_batches"]]:
            y = np.moveaxis(_convolved(x, quantized, a["b_folded"], padding), 1, -1)
            state = train({}, state, y)[1]
    mean, var = (np.asarray(state[name]) for name in ("mean", "var"))
    close(mean, "tune_mean")
    close(var, "tune_var")
    kernel, bias = fold.retune_bn_stats(quantized, a["b_folded"], a["gamma"], a["beta"], mean, var, params["bn_eps"])
    close(torch_layout(kernel), "W_tuned")
    close(bias, "b_tuned")
    close(_convolved(a["x"][0], kernel, bias, padding), "y_tuned")
    close(np.sqrt(a["gamma"] ** 2 + params["bn_eps"]), "tune_bn_weight")


def _check_repq(vector: Vector) -> None:
    a, params = _wide(vector.arrays()), vector.sidecar["params"]
    with jax.enable_x64(True):
        normalized = np.asarray(jax.jit(functools.partial(nj.layer_normalize, epsilon=params["ln_eps"]))(a["x"]))
    for name in ("qkv", "fc1"):
        own = lambda key, name=name: a[f"{name}_{key}"]
        close = lambda actual, key, tolerance=FLOAT32: assert_close(actual, a[key], tolerance, key)
        output = normalized * own("gamma") + own("beta")
        delta, zero = fold.percentile_quantizer(output, params["bits"], percentiles=params["percentiles"])
        close(delta, f"{name}_delta_c")
        close(zero, f"{name}_zp_c")
        found = fold.equalization(own("delta_c"), own("zp_c"), integer_zero=False)
        close(found.delta, f"{name}_delta_layer")
        close(found.zero, f"{name}_zp_layer")
        linear = (own("W").T, own("b"))
        scale, bias, [(kernel, offset)] = fold.equalize_ln_linear(
            own("gamma"), own("beta"), [linear], found.factor, found.shift
        )
        for actual, key in ((scale, "gamma_new"), (bias, "beta_new"), (kernel.T, "W_new"), (offset, "b_new")):
            close(actual, f"{name}_{key}")
        # The card's: outputs in float32 within 1e-4.
        close(output @ linear[0] + linear[1], f"fp_{name}", 1e-4)
        close((normalized * scale + bias) @ kernel + offset, f"fp_{name}_after", 1e-4)
    codes = fold.quantize_log_sqrt2(a["softmax_p"], a["logsqrt2_delta"], params["bits"])
    assert_close(codes, a["softmax_logsqrt2_q"], FLOAT32, "softmax_logsqrt2_q")


def _check_integers(vector: Vector) -> None:
    """Integer layer normalization; the recorded GELU, softmax and linear layer in integers are no norms."""
    a = vector.arrays()
    codes, scale = fold.integer_layer_normalize(
        a["x_int"].astype(np.int64), a["ln_gamma"], a["ln_beta"], compatible=True
    )
    np.testing.assert_array_equal(codes, a["iln_y_int_exact"])
    assert_close(scale, a["iln_scale"], FLOAT32, "iln_scale")
    # The sidecar's: the float32 simulation within 1e-4 of the exact integers.
    np.testing.assert_allclose(codes * scale, a["iln_y"], rtol=0, atol=1e-4)
    _check_that_the_exact_root_is_better(a)


def _check_that_the_exact_root_is_better(a: Arrays) -> None:
    x = a["x_int"].astype(np.int64)
    error = lambda compatible: np.max(np.abs(_normalized(x, a, compatible) - a["ln_float"]))
    assert error(False) <= error(True)


def _normalized(x, a: Arrays, compatible: bool) -> np.ndarray:
    codes, scale = fold.integer_layer_normalize(x, a["ln_gamma"], a["ln_beta"], compatible=compatible)
    return codes * scale


def _check_maps(vector: Vector) -> None:
    a, weight = vector.arrays(), vector.sidecar["params"]["alpha"]
    close = lambda actual, name: assert_close(actual, a[name], FLOAT32, name)
    scale, bias = fold.apply_map_norm(a["gamma0"], a["beta0"], a["t_in"], (a["gamma1"], a["beta1"]), weight)
    close(scale, "gamma_fused")
    close(bias, "beta_fused")
    activations = {"residual_activations": a["resid_acts"], "block_activations": a["in_acts"]}
    for policy, name in {
        "mean": "pol_mean",
        "residual": "pol_only_resid",
        "block": "pol_no_resid",
        "weighted scalar": "pol_weighted_scalar",
        "weighted matrix": "pol_weighted_matrix",
    }.items():
        close(fold.residual_map(policy, a["t_in"], a["t_block"], **activations), name)


def _check_binarization(vector: Vector) -> None:
    """Recurrent binarization: each step codes what the unit vector of the last reconstruction leaves."""
    a = vector.arrays()
    sign = lambda v: jnp.sign(v)
    linear = lambda x, name: x @ jnp.asarray(a[f"{name}_weight"]).T

    @jax.jit
    def binarized(x):
        code = sign(linear(x, "W"))
        for i in range(vector.sidecar["params"]["num_layers"]):
            reconstruction = nj.l2_normalize(linear(code, f"B{i}"))
            code = code + 2.0 ** -(i + 1) * sign(linear(x - reconstruction, f"R{i}"))
        return code

    np.testing.assert_array_equal(np.asarray(binarized(a["x"])), a["out"])


ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"fold_primitives_.*": check(_check_primitives),
    r"prepbn_fuse_.*": check(_check_prepbn),
    r"adaquant_bn_.*": check(_check_adaquant),
    r"repq_reparam_.*": check(_check_repq),
    r"ivit_integer_.*": check(_check_integers),
    r"otfusion_ln_.*": check(_check_maps),
    r"bebr_recurrent_.*": check(_check_binarization),
}
