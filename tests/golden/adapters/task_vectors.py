"""Adapters of task-vector tools and of TrAct."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj
from normjax.task_vectors import chunk_groups, compose, lines, lines_alpha, low_rank_factors, rank_plan
from tests.golden.adapters._kinds import Check
from tests.golden.comparison import assert_close
from tests.golden.vectors import Vector, group

EPS32 = float(np.finfo(np.float32).eps)


def _numbered(arrays, prefix, names):
    return {name: jnp.asarray(arrays[f"{prefix}_{i}"]) for i, name in enumerate(names)}


def _block(name: str) -> int | None:
    found = re.search(r"\.resblocks\.(\d+)\.", name)
    return int(found[1]) if found else None


def _lines(vector: Vector) -> None:
    a, p, names = vector.arrays(), vector.sidecar["params"], vector.sidecar["keys"]
    scale = functools.partial(lines, depth=_block, layers=p["num_blocks"])
    tau = _numbered(a, "tv", names)
    single = scale(tau, alpha=p["alpha_single"], beta=p["beta_single"])
    tasks = [_numbered(a, f"task{t}", names) for t in range(p["n_tasks"])]
    flat = np.split(a["ties_merged_flat"], np.cumsum([tau[name].size for name in names])[:-1])
    merged = {name: jnp.asarray(part).reshape(tau[name].shape) for name, part in zip(names, flat, strict=True)}
    alpha = lines_alpha(tasks, merged)
    # Sums of 888 float32 numbers on both sides.
    assert_close(alpha, np.asarray(p["alpha_multi"]), 888 * EPS32, "alpha")
    multi = scale(merged, alpha=p["alpha_multi"], beta=p["beta_multi"])
    for i, name in enumerate(names):
        assert_close(single[name], a[f"single_{i}"], 4 * EPS32, f"single {name}")
        assert_close(multi[name], a[f"multi_{i}"], 4 * EPS32, f"multi {name}")
        assert_close(a[f"pre_{i}"] + single[name], a[f"final_single_{i}"], 4 * EPS32, f"final {name}")


def _atlas(vector: Vector) -> None:
    a, keys, p = vector.arrays(), vector.sidecar["keys"], vector.sidecar["params"]
    params = _numbered(a, "p", keys)
    taus = [_numbered(a, f"tv{t}", keys) for t in range(p["n_task_vectors"])]

    def forward(coefficients):
        by_name = dict(zip(keys, coefficients.T, strict=True))
        w = compose(params, taus, by_name)
        h = a["x"] @ w["fc1.weight"].T + w["fc1.bias"]
        h = nj.layer_normalize(h, w["ln.weight"], w["ln.bias"], epsilon=1e-5)
        y = jnp.tanh(h) @ w["fc2.weight"].T + w["fc2.bias"]
        penalty = jnp.mean(jnp.sum(jnp.abs(coefficients), 0))
        return jnp.mean((y - a["y"]) ** 2) + p["gamma"] * penalty, y

    (loss, y), gradient = jax.jit(jax.value_and_grad(forward, has_aux=True))(jnp.asarray(a["coef"]))
    assert_close(y, a["out"], 80 * EPS32, "out")
    assert_close(loss, a["loss"], 80 * EPS32, "loss")
    assert_close(gradient, a["coef_grad"], 800 * EPS32, "gradient")
    for i, name in enumerate(keys):
        zero = jnp.zeros_like(params[name])
        groups, coefficients = jnp.asarray(a[f"part_idx_{i}"]), jnp.asarray(a[f"part_coef_{i}"])
        total = compose({name: zero}, [{name: t[name]} for t in taus], {name: coefficients}, {name: groups})[name]
        if a[f"part_out_{i}"].ndim:
            assert_close(total, a[f"part_out_{i}"], 8 * EPS32, f"groups of {name}")
        else:
            # The published code returns 0 for vectors, whatever their coefficients.
            assert a[f"part_out_{i}"] == 0, name
            assert np.any(np.asarray(total) != 0), name


def _expert_merging(vector: Vector) -> None:
    a, p = vector.arrays(), vector.sidecar["params"]
    groups, taus = chunk_groups(a["base"].shape, p["K"]), [{"w": jnp.asarray(a[f"tau{t}"])} for t in range(3)]

    def loss(raw):
        coefficients = jax.nn.sigmoid(raw)
        merged = compose({"w": jnp.asarray(a["base"])}, taus, {"w": coefficients}, {"w": groups})["w"]
        moved = jnp.sum(jnp.abs(coefficients - a["init"].reshape(-1, 1)))
        penalty = moved / (raw.size / raw.shape[0])
        return jnp.mean(merged**2) + p["reg_weight"] * penalty, (merged, penalty, coefficients)

    gradient, (merged, penalty, coefficients) = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(a["raw"]))
    for actual, name in ((coefficients, "w"), (merged, "merged"), (penalty, "reg"), (gradient, "raw_grad")):
        assert_close(actual, a[name], 16 * EPS32, name)


def _welore(vector: Vector) -> None:
    a, p, result = vector.arrays(), vector.sidecar["params"], vector.sidecar["result"]
    plans = rank_plan({name: a[name] for name in result}, p["threshold"], min_ratio=p["min_ratio"])
    for name, expected in result.items():
        plan = plans[name]
        assert (plan.rank, plan.kept, plan.low_rank) == (expected["rank"], expected["kept"], expected["is_LRC"]), name
        assert (plan.dense, plan.factored) == (expected["params_dense"], expected["params_factored"]), name
        left, right = low_rank_factors(a[name], plan.kept)
        assert_close(left @ right, a[f"{name}_lowrank"], 80 * EPS32, f"{name} in float32")
        left, right = (f.astype(jnp.float32) for f in low_rank_factors(a[name], plan.kept, jnp.bfloat16))
        assert_close(left @ right, a[f"{name}_bf16_product"], 2e-2, f"{name} in bfloat16")


def _tract(vector: Vector) -> None:
    a, h = vector.arrays(), vector.hyper
    with jax.enable_x64(True):
        x, dy = (jnp.asarray(a[name], jnp.float64) for name in ("in.x", "dy.out"))
        weight, bias = (jnp.asarray(v, jnp.float64) for v in (a["param.weight"], a["param.bias"]))
        if "kernel" in h:
            # torch's images and kernels have their channels in front.
            x, dy, kernel = jnp.moveaxis(x, 1, -1), jnp.moveaxis(dy, 1, -1), jnp.transpose(weight, (2, 3, 1, 0))
            pads = [(h["padding"], h["padding"])] * 2
            shape = {"strides": h["stride"], "padding": pads}
            covariance = nj.optim.patch_covariance(x, (h["kernel"],) * 2, **shape)
            names = ("NHWC", "HWIO", "NHWC")
            layer = lambda x, k, b: (
                jax.lax.conv_general_dilated(x, k, (h["stride"],) * 2, pads, dimension_numbers=names) + b
            )
            to_ours = {"out": lambda v: np.moveaxis(v, 1, -1), "weight": lambda v: np.transpose(v, (2, 3, 1, 0))}
        else:
            kernel, covariance = weight.T, nj.optim.input_covariance(x)
            layer = lambda x, k, b: x @ k + b
            to_ours = {"out": lambda v: v, "weight": lambda v: v.T}
        y, pullback = jax.vjp(layer, x, kernel, bias)
        gx, gkernel, gbias = pullback(dy)
        tx = nj.optim.scale_by_tract(h["lambda_"])
        grads = {"kernel": gkernel, "bias": gbias}
        updates, _ = tx.update(grads, tx.init(grads), covariances={"kernel": covariance})
        recorded = group(a, "gparam")
        assert_close(y, to_ours["out"](a["out.out"]), 1e-12, "y")
        assert_close(gx, to_ours["out"](a["gin.x"]), 1e-12, "gradient of x")
        assert_close(updates["bias"], recorded["bias"], 1e-12, "gradient of the bias")
        # The recorded inverse and this solution lose what the damped covariance's condition amplifies.
        condition = float(jnp.linalg.cond(covariance + h["lambda_"] * jnp.eye(len(covariance))))
        tolerance = max(1e-12, 8 * condition * float(np.finfo(np.float64).eps))
        assert_close(updates["kernel"], to_ours["weight"](recorded["weight"]), tolerance, "gradient of the kernel")


ADAPTERS = {
    r"lines_.*": lambda vector: Check(_lines),
    r"atlas_.*": lambda vector: Check(_atlas),
    r"expertmerging_.*": lambda vector: Check(_expert_merging),
    r"welore_.*": lambda vector: Check(_welore),
    r"tract_.*": lambda vector: Check(_tract),
}
