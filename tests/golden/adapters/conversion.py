"""Adapters of exact conversions: Pre-LN to Pre-RMS and Pre-CRMS, single layers and whole transformers."""

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj
from normjax import fold
from tests.golden.adapters._compilation import quick_compilation
from tests.golden.adapters._kinds import Adapter, Pointwise, check
from tests.golden.comparison import assert_close
from tests.golden.vectors import Vector

# The cards' tolerance of one primitive in float32; float64 vectors agree to 1e-12.
FLOAT32, FLOAT64, EPS32 = 1e-5, 1e-12, float(np.finfo(np.float32).eps)
Arrays = dict[str, Any]


def _zero_mean_linear(vector: Vector) -> Pointwise:
    def call(inputs, params, epsilon):
        kernel, bias = fold.center_out(params["weight"].T, params["bias"])
        return inputs["x"] @ kernel + bias

    # In bfloat16 the recorded layer rounds means, differences, the product and the sum.
    return Pointwise(call, roundings=8)


_BLOCK = ("ai", "ao", "mi", "mo")
# Writers to the residual stream, with their bias, and readers of it, by the norm before them.
_WRITERS = {"patch_w": "patch_b", "ao_w": "ao_b", "mo_w": "mo_b", "pos": None, "cls": None}
_READERS = {"ln1": "ai", "ln2": "mi", "lnf": "hd"}


def _flax_layout(weights: Arrays) -> Arrays:
    """torch's (out, in) matrices, stacked over blocks or not, as (in, out)."""
    return {k: np.swapaxes(v, -1, -2) if k.endswith("_w") else np.asarray(v) for k, v in weights.items()}


def _over_blocks(fn, stacked: bool, *arrays):
    if not stacked:
        return fn(*arrays)
    pairs = [fn(*(a[i] for a in arrays)) for i in range(len(arrays[0]))]
    return tuple(np.stack(part) for part in zip(*pairs, strict=True))


def _folded(w: Arrays) -> Arrays:
    """The gains and biases of the norms in the layers that read them."""
    new = dict(w)
    for norm, layer in _READERS.items():
        names = (f"{layer}_w", f"{layer}_b", f"{norm}_g", f"{norm}_b")
        new[names[0]], new[names[1]] = _over_blocks(fold.affine_before, norm != "lnf", *(w[n] for n in names))
    return {k: v for k, v in new.items() if not k.startswith("ln")}


def _centred(w: Arrays) -> Arrays:
    new = dict(w)
    for kernel, bias in _WRITERS.items():
        if bias is None:
            new[kernel] = fold.center_rows(w[kernel])
        else:
            new[kernel], new[bias] = _over_blocks(fold.center_out, kernel != "patch_w", w[kernel], w[bias])
    return new


def _compressed(w: Arrays) -> Arrays:
    new = dict(w)
    for kernel, bias in _WRITERS.items():
        new |= {name: fold.compress_out(w[name]) for name in (kernel, bias) if name is not None}
    return new | {f"{layer}_w": fold.compress_in(w[f"{layer}_w"]) for layer in _READERS.values()}


def _transformer(w: Arrays, x, heads: int, norm) -> jax.Array:
    """The recorded vision transformer: `norm(x, name, block)` before attention, feed-forward and head."""
    h = x @ w["patch_w"] + w["patch_b"] + w["pos"]
    h = jnp.concatenate([jnp.broadcast_to(w["cls"], (h.shape[0], 1, h.shape[-1])), h], 1)
    for i in range(len(w["ai_w"])):
        ai, ao, mi, mo = ((w[f"{n}_w"][i], w[f"{n}_b"][i]) for n in _BLOCK)
        qkv = norm(h, "ln1", i) @ ai[0] + ai[1]
        q, k, v = (a.reshape(*a.shape[:-1], heads, -1) for a in jnp.split(qkv, 3, -1))
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5, -1)
        h = h + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*h.shape[:-1], -1) @ ao[0] + ao[1]
        h = h + jax.nn.gelu(norm(h, "ln2", i) @ mi[0] + mi[1], approximate=False) @ mo[0] + mo[1]
    return norm(h[:, 0], "lnf", None) @ w["hd_w"] + w["hd_b"]


def _forms(w: Arrays, epsilon: float) -> dict[str, tuple[Arrays, Callable]]:
    """The weights and the norm of every form of the network with these weights, by its recorded name."""

    def affine(h, name, block):
        scale, bias = (w[f"{name}_{p}"] if block is None else w[f"{name}_{p}"][block] for p in "gb")
        return nj.layer_normalize(h, jnp.asarray(scale, h.dtype), jnp.asarray(bias, h.dtype), epsilon=epsilon)

    plain = lambda h, name, block: nj.layer_normalize(h, epsilon=epsilon)
    rms = lambda h, name, block: nj.rms_normalize(h, epsilon=epsilon)
    crms = lambda h, name, block: nj.crms_normalize(h, epsilon=epsilon)
    folded = _folded(w)
    centred = _centred(folded)
    forms = {"preln_affine": (w, affine), "preln_folded": (folded, plain), "preln_zeromean": (centred, plain)}
    return forms | {"prermsnorm": (centred, rms), "precrmsnorm": (_compressed(centred), crms)}


def _original(vector: Vector) -> tuple[Vector, Arrays, Arrays]:
    """The float64 vector that a conversion vector belongs to, its arrays, and its weights in Flax's layout."""
    path = vector.path.parent / f"convert_preln_prerms_precrms_weights_f64_orig_{vector.name.rpartition('_')[2]}.npz"
    own = Vector(path.stem, json.loads(path.with_suffix(".json").read_text()), path)
    arrays = own.arrays()
    return own, arrays, _flax_layout({k.removeprefix("orig/"): v for k, v in arrays.items() if k.startswith("orig/")})


def _check_conversion(vector: Vector) -> None:
    own, a, w = _original(vector)
    # Two of the forms have one norm, and so one program.
    compiled = functools.cache(lambda norm: jax.jit(lambda w, x: _transformer(w, x, own.hyper["heads"], norm)))
    with jax.enable_x64(True), quick_compilation():
        for name, (weights, norm) in _forms(w, own.hyper["eps"]).items():
            assert_close(compiled(norm)(weights, a["in/x"]), a[f"out/{name}"], FLOAT64, name)


def _check_converted_weights(vector: Vector) -> None:
    recorded = vector.arrays()
    own, _, w = _original(vector)
    forms = _forms(w, own.hyper["eps"])
    names = {"fold": "preln_folded", "rms": "prermsnorm", "crms": "precrmsnorm"}
    for key, value in recorded.items():
        form, _, leaf = key.partition("/")
        # Rounded to float32 as recorded.
        assert_close(_flax_layout(forms[names[form]][0])[leaf].astype(np.float32), value, 4 * EPS32, key)


def _check_converted_outputs(vector: Vector) -> None:
    recorded = vector.arrays()
    own, a, w = _original(vector)
    narrow = lambda tree: jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), tree)
    forms, x = _forms(w, own.hyper["eps"]), jnp.asarray(a["in/x"], jnp.float32)
    for key, name in {"preln": "preln_affine", "rms": "prermsnorm", "crms": "precrmsnorm"}.items():
        weights, norm = forms[name]

        @jax.jit
        def run(w, x, norm=norm):
            y, pullback = jax.vjp(lambda x: _transformer(w, x, own.hyper["heads"], norm), x)
            return y, pullback(jnp.ones_like(y))[0]

        with quick_compilation():
            y, gradient = run(narrow(weights), x)
        # The card's, for two blocks in float32.
        assert_close(y, recorded[f"f32/out/{key}"], 2e-5, f"y of {key}")
        assert_close(gradient, recorded[f"f32/gin/{key}"], 2e-5, f"gradient of {key}")


_DEMO = {"patch_linear": "patch", "att_in_linear": "ai", "att_out_linear": "ao", "mlp_in_linear": "mi"}
_DEMO |= {"mlp_out_linear": "mo", "cls_head_linear": "hd"}


def _check_demo(vector: Vector) -> None:
    """The authors' own float64 demonstration, whose norms have no gains."""
    a, params = vector.arrays(), vector.sidecar["params"]
    short = {f"{long}_{kind}": f"{name}_{kind[0]}" for long, name in _DEMO.items() for kind in ("weight", "bias")}
    own = {short[k]: v for k, v in a.items() if k in short}
    w = _flax_layout(own | {"pos": a["pos_embedding"], "cls": a["cls_token"]})
    depth, width = len(w["ai_w"]), w["patch_w"].shape[-1]
    for norm in ("ln1", "ln2", "lnf"):
        shape = (width,) if norm == "lnf" else (depth, width)
        w |= {f"{norm}_g": np.ones(shape), f"{norm}_b": np.zeros(shape)}
    forms = _forms(w, params["eps"])
    for prefix, form in (("zm", "prermsnorm"), ("compressed", "precrmsnorm")):
        found = _flax_layout(forms[form][0])
        for key in (k for k in a if k.startswith(f"{prefix}_")):
            assert_close(found[short[key.removeprefix(f"{prefix}_")]], a[key], FLOAT64, key)
    with jax.enable_x64(True), quick_compilation():
        for key, name in {"pre_ln": "preln_folded", "pre_rms": "prermsnorm", "pre_crms": "precrmsnorm"}.items():
            weights, norm = forms[name]
            run = jax.jit(lambda w, x, norm=norm: _transformer(w, x, params["heads"], norm))
            assert_close(run(weights, a["x"]), a[f"{key}_result"], FLOAT64, key)


ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"prerms_linearzeromeanoutput_.*": _zero_mean_linear,
    r"convert_preln_prerms_precrms_weights_f64_orig_.*": check(_check_conversion),
    r"convert_preln_prerms_precrms_weights_converted_f32_.*": check(_check_converted_weights),
    r"convert_f32_outputs_.*": check(_check_converted_outputs),
    r"fold_preln_vit_.*": check(_check_demo),
}
