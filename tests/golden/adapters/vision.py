"""Adapters of norms conditioned on regions, maps, styles and coordinates."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj
from normjax.norms._coloring import coloring_basis
from tests.golden.adapters._kinds import Adapter, Check
from tests.golden.comparison import assert_close
from tests.golden.vectors import Vector

Arrays = Mapping[str, jax.Array]
# All of them were recorded in float64.
OUTPUT, GRADIENT = 1e-12, 1e-12


def _group(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def _wide(arrays: Mapping[str, Any]) -> dict[str, jax.Array]:
    return {key: jnp.asarray(value, jnp.float64) for key, value in arrays.items()}


def _recorded(call: Callable[[Vector, Arrays, Arrays], dict[str, jax.Array]]) -> Callable[[Vector], Check]:
    """Compares `call(vector, inputs, params)`, a dict of outputs, and the gradients of all that were recorded."""

    def run(vector: Vector) -> None:
        with jax.enable_x64(True):
            arrays = vector.arrays()
            inputs, params = (_wide(_group(arrays, prefix)) for prefix in ("in.", "param."))
            expected, cotangents = _group(arrays, "out."), _wide(_group(arrays, "dy."))

            @jax.jit
            def step(inputs, params, cotangents):
                outputs, pullback = jax.vjp(lambda *args: call(vector, *args), inputs, params)
                used = {k: cotangents.get(k, jnp.zeros_like(v)) for k, v in outputs.items()}
                return outputs, pullback(used)

            outputs, gradients = step(inputs, params, cotangents)
            for key, value in {**expected, **_group(arrays, "aux.")}.items():
                if key in outputs or key in expected:
                    assert_close(outputs[key], value, OUTPUT, key)
            for kind, gradient in zip(("gin.", "gparam."), gradients, strict=True):
                for key, value in _group(arrays, kind).items():
                    assert_close(gradient[key], value, GRADIENT, kind + key)

    return lambda vector: Check(run)


def _kernel(weight: jax.Array) -> jax.Array:
    """torch's (out, in, *window) as (*window, in, out)."""
    return jnp.moveaxis(weight, (0, 1), (-1, -2))


def _layer(params: Arrays, name: str) -> dict[str, jax.Array]:
    layer = {"kernel": _kernel(params[f"{name}.weight"])}
    return {**layer, "bias": params[f"{name}.bias"]} if f"{name}.bias" in params else layer


def _train(norm: nj.NormTransform, params: Any, x: jax.Array, **context: Any) -> jax.Array:
    return norm.apply(params, {}, x, train=True, **context)[0]


def _region(vector: Vector, inputs: Arrays, params: Arrays) -> dict[str, jax.Array]:
    rows = {
        ours: jnp.stack([params[f"background_{theirs}"], params[f"foreground_{theirs}"]])
        for ours, theirs in (("scale", "gamma"), ("bias", "beta"))
    }
    norm = nj.region_norm(feature_axis=1, epsilon=vector.hyper["eps"])
    return {"out": _train(norm, rows, inputs["x"], region=inputs["mask"])}


def _learned_region(vector: Vector, inputs: Arrays, params: Arrays) -> dict[str, jax.Array]:
    names = {"mask": "sa.conv1", "scale": "sa.gamma_conv", "bias": "sa.beta_conv"}
    ours = {name: _layer(params, theirs) for name, theirs in names.items()}
    norm = nj.learned_region_norm(
        kernel_size=vector.hyper["kernel_size"],
        threshold=vector.hyper["threshold"],
        feature_axis=1,
        epsilon=vector.hyper["eps"],
    )
    return {"out": _train(norm, ours, inputs["x"])}


def _spade_norm(vector: Vector, **options: Any) -> nj.NormTransform:
    plain = {"use_scale": False, "use_bias": False, "epsilon": 1e-5}
    if "groups" in vector.hyper:
        inner = nj.group_norm(num_groups=vector.hyper["groups"], feature_axis=1, **plain)
    elif vector.hyper["norm"] == "instance":
        inner = nj.instance_norm(feature_axes=1, **plain)
    else:
        momentum = 1 - vector.hyper["momentum"]
        inner = nj.batch_norm(feature_axes=1, momentum=momentum, unbiased=True, **plain)
    return nj.spade(inner, feature_axis=1, **options)


def _spade_params(params: Arrays) -> dict[str, Any]:
    names = {"hidden": "mlp_shared.0", "scale": "mlp_gamma", "bias": "mlp_beta"}
    return {"norm": {}, **{ours: _layer(params, theirs) for ours, theirs in names.items()}}


def _spade(vector: Vector, inputs: Arrays, params: Arrays) -> dict[str, jax.Array]:
    activation = {"ReLU": jax.nn.relu, "SiLU": jax.nn.silu}[vector.hyper.get("act", "ReLU")]
    norm = _spade_norm(vector, activation=activation)
    return {"out": _train(norm, _spade_params(params), inputs["x"], segmentation=inputs["segmap"])}


def _spade_batch(vector: Vector) -> None:
    with jax.enable_x64(True):
        arrays = vector.arrays()
        params, segmentation = _wide(_group(arrays, "param.")), jnp.asarray(arrays["in.segmap"], jnp.float64)
        norm = _spade_norm(vector)
        steps = sum(key.startswith("dy.") for key in arrays)
        struct = jax.ShapeDtypeStruct(arrays["in.x0"].shape, jnp.float64)
        _, state = jax.jit(lambda key: norm.init(key, struct, segmentation=segmentation))(jax.random.key(0))

        @jax.jit
        def step(params, state, x, dy):
            def loss(params, x):
                y, new = norm.apply(_spade_params(params), state, x, train=True, segmentation=segmentation)
                return jnp.sum(y * dy), (y, new)

            return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)

        gradients = {}
        for t in range(steps):
            x, dy = (jnp.asarray(arrays[key], jnp.float64) for key in (f"in.x{t}", f"dy.{t}"))
            (gradients, gx), (y, state) = step(params, state, x, dy)
            assert_close(y, arrays[f"out.{t}"], OUTPUT, f"y at step {t}")
            assert_close(gx, arrays[f"gin.x{t}"], GRADIENT, f"gx at step {t}")
            assert_close(state["mean"], arrays[f"state.running_mean{t}"], OUTPUT, f"mean after step {t}")
            assert_close(state["var"], arrays[f"state.running_var{t}"], OUTPUT, f"var after step {t}")
        for key, value in _group(arrays, f"gparam{steps - 1}.").items():
            assert_close(gradients[key], value, GRADIENT, f"grad {key}")
        x = jnp.asarray(arrays[f"in.x{steps}"], jnp.float64)
        evaluate = functools.partial(norm.apply, train=False)
        y, _ = jax.jit(lambda p, s, x: evaluate(_spade_params(p), s, x, segmentation=segmentation))(params, state, x)
        assert_close(y, arrays["out.eval"], OUTPUT, "eval y")


def _adain(vector: Vector, inputs: Arrays, params: Arrays) -> dict[str, jax.Array]:
    del params
    norm = nj.adain(feature_axis=1, epsilon=vector.hyper["eps"], alpha=vector.hyper.get("alpha", 1.0))
    return {"out": _train(norm, {}, inputs["content"], style=inputs["style"])}


def _content_aware(vector: Vector, inputs: Arrays, params: Arrays) -> dict[str, jax.Array]:
    del params
    norm = nj.content_aware_adain(
        style_weight=vector.hyper["alpha_s"],
        content_weight=vector.hyper["alpha_c"],
        feature_axis=1,
        epsilon=vector.hyper["eps"],
    )
    return {"out": _train(norm, {}, inputs["content"], style=inputs["style"])}


def _perceptron(params: Arrays, name: str) -> dict[str, Any]:
    count = sum(key.startswith(f"{name}.main.") and key.endswith(".weight") for key in params)
    return {str(i): _layer(params, f"{name}.main.{i}.fc") for i in range(count)}


def _gdwct(vector: Vector, inputs: Arrays, params: Arrays) -> dict[str, jax.Array]:
    groups, epsilon = vector.hyper["n_group"], vector.hyper["eps"]
    style = inputs["s"].reshape(inputs["s"].shape[0], -1)
    ours = {
        "alpha": params["alpha"].reshape(()),
        "coloring": _perceptron(params, "mlp_CT"),
        "shift": _perceptron(params, "mlp_mu"),
    }
    coloring = nj.gdwct_coloring(style, ours["coloring"], num_groups=groups)
    options = {"num_groups": groups, "feature_axis": 1, "epsilon": epsilon}
    # The released code lists the groups of all examples after one another.
    eigen = jnp.swapaxes(coloring_basis(coloring), 0, 1).reshape(-1, *coloring.shape[2:])
    return {
        "out": _train(nj.gdwct(num_groups=groups, feature_axis=1), ours, inputs["c"], style=style),
        "cov": nj.group_covariance(inputs["c"], **options),
        "eigen": eigen,
        "whitening_reg": nj.whitening_penalty(inputs["c"], **options),
        "coloring_reg": nj.coloring_penalty(coloring),
    }


_PLAIN: dict[str, Any] = {"use_scale": False, "use_bias": False}


def _cam_image(vector: Vector, inputs: Arrays, params: Arrays) -> dict[str, jax.Array]:
    # Points are (W, H) in [-1, 1]; ours are in the order of the grid's axes.
    coordinates = (inputs["coord"][:, :, 0, ::-1] + 1) / 2
    norm = nj.coordinate_modulation(
        nj.layer_norm(epsilon=vector.hyper["eps"], **_PLAIN),
        vector.hyper["grid"],
        padding=vector.hyper["padding_mode"],
    )
    grids = {"norm": {}, "scale": params["affine"][0, 0], "bias": params["affine"][0, 1]}
    hidden = inputs["x"] @ params["linear.weight"].T + params["linear.bias"]
    return {"out": jax.nn.relu(_train(norm, grids, hidden, coordinates=coordinates))}


def _floored(bits: int) -> Callable[[jax.Array], jax.Array] | None:
    """tanh, then towards zero on 2^(bits - 1) - 1 levels with the gradient passed on, as the video code quantizes."""
    if bits == 32:
        return None
    levels = 2 ** (bits - 1) - 1

    def quantize(grid: jax.Array) -> jax.Array:
        value = jnp.tanh(grid)
        return value + jax.lax.stop_gradient(jnp.trunc(value * levels) / levels - value)

    return quantize


def _cam_video(vector: Vector, inputs: Arrays, params: Arrays) -> dict[str, jax.Array]:
    scale, bias = (params[f"mod_grid.{i}"][:, :, 0, 0] for i in range(2))
    norm = nj.coordinate_modulation(
        nj.instance_norm(feature_axes=1, epsilon=vector.hyper["eps"], **_PLAIN),
        vector.hyper["mod_dim"],
        per_channel=True,
        feature_axis=1,
        grid_map=_floored(vector.hyper["wbit"]),
    )
    grids = {"norm": {}, "scale": scale, "bias": bias}
    return {"out": _train(norm, grids, inputs["x"], coordinates=inputs["t"][:, None])}


def _cam_rays(vector: Vector, inputs: Arrays, params: Arrays) -> dict[str, jax.Array]:
    norm = nj.coordinate_modulation(nj.group_norm(num_groups=1, epsilon=1e-6, **_PLAIN), vector.hyper["res"])
    grids = {"norm": {}, "scale": params["gamma"], "bias": params["beta"]}
    return {"out": _train(norm, grids, inputs["x"], coordinates=inputs["coord"].T)}


ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"rn_b_.*": _recorded(_region),
    r"rn_l_.*": _recorded(_learned_region),
    r"spade_batch.*": lambda vector: Check(_spade_batch),
    r"spade_.*": _recorded(_spade),
    r"adain_.*": _recorded(_adain),
    r"ca_adain_.*": _recorded(_content_aware),
    r"gdwct_.*": _recorded(_gdwct),
    r"cam_image.*": _recorded(_cam_image),
    r"cam_video_.*": _recorded(_cam_video),
    r"cam_nerf_.*": _recorded(_cam_rays),
}
