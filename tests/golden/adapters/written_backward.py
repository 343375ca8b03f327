"""Adapters of Unified Normalization, PowerNorm and the masked batch norms published beside it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj
from normjax.backward_state import OVERWRITE_WITH_GRADIENT
from normjax.moments import prepare, standardization, standardize
from normjax.norms._affine import affine
from normjax.norms._running_statistics import update_running
from tests.golden.adapters._kinds import Adapter, Check, Stepwise, valid_mask
from tests.golden.adapters.plain import affine_parameters, recorded_states
from tests.golden.comparison import assert_close, is_close
from tests.golden.vectors import Vector


def _written(vector: Vector, *names: str) -> dict[str, str]:
    paths = {name: f"{OVERWRITE_WITH_GRADIENT}/{name}" for name in names}
    return recorded_states(vector, **paths)


def _unified(vector: Vector) -> Stepwise:
    hyper = vector.hyper
    window = hyper["window_size"]
    norm = nj.unified_norm(
        window=window if isinstance(window, int) else tuple(window),
        warmup=hyper["warmup_iters"],
        momentum=hyper["momentum"],
        epsilon=hyper["eps"],
        outlier_filtration=hyper["outlier_filtration"],
    )
    states = recorded_states(vector, running_var="var", buffer_x2="buffer_x2", iters="count", skip_counter="skipped")
    return Stepwise(norm, affine_parameters(vector), states, _written(vector, "ema_gz", "buffer_gz"))


def _time_first(vector: Vector) -> Callable[[np.ndarray], np.ndarray]:
    """Their masks are (batch, time) where the data are (time, batch, features)."""
    transposed = vector.sidecar["layout"].replace(" ", "").startswith("(T,B")
    return lambda pad_mask: valid_mask(pad_mask.T if transposed else pad_mask)


def _power(vector: Vector) -> Stepwise:
    hyper = vector.hyper
    norm = nj.power_norm(
        num_groups=hyper["group_num"],
        warmup=hyper["warmup_iters"],
        momentum=hyper["alpha_fwd"],
        backward_momentum=hyper["alpha_bkw"],
        epsilon=hyper["eps"],
    )
    states = recorded_states(vector, running_phi="var", iters="count")
    return Stepwise(norm, affine_parameters(vector), states, _written(vector, "ema_gz"), _time_first(vector))


def _clamped_batch_norm(vector: Vector) -> nj.NormTransform:
    """Their MaskBatchNorm: the variance is clamped, and evaluation is training."""
    plain = nj.batch_norm()

    def apply(params, state, x, *, train, mask=None, **context):
        del train, context
        # max(variance, eps) is the square of max(root, sqrt(eps)).
        root = vector.hyper["eps"] ** 0.5
        spec = standardization(x, tuple(range(x.ndim - 1)), epsilon=root, epsilon_mode="clamp")
        values, mask = prepare(x, mask)
        normalized, moments = standardize(values, mask, spec)
        y = affine(normalized, x, params["scale"], params["bias"], (x.ndim - 1,), nj.Precision())
        return y, update_running(state, moments, 1 - vector.hyper["momentum"], unbiased=True)

    return nj.NormTransform(plain.init, apply)


def _filled_batch_norm(vector: Vector) -> nj.NormTransform:
    """Their MaskSyncBatchNorm: padding is replaced by the mean of the valid rows and then enters the variance."""

    def fill(params, x, *, mask):
        del params
        if mask is None:
            return x
        return jnp.where(mask, x, nj.compute_moments(x, tuple(range(x.ndim - 1)), mask=mask).mean)

    inner = nj.batch_norm(momentum=1 - vector.hyper["momentum"], epsilon=vector.hyper["eps"], unbiased=True)
    unmasked = nj.NormTransform(
        inner.init, lambda params, state, x, *, train, mask=None: inner.apply(params, state, x, train=train)
    )
    return nj.chain(_token_scaling(vector), nj.stateless(fill), unmasked)


def _token_scaling(vector: Vector) -> nj.NormTransform:
    return nj.rms_norm(use_scale=False, epsilon=1e-5)


def _correct_batch_norm(vector: Vector) -> nj.NormTransform:
    return nj.batch_norm(momentum=1 - vector.hyper["momentum"], epsilon=vector.hyper["eps"], unbiased=True)


def _with_defect(
    published: Callable[[Vector], nj.NormTransform], correct: Callable[[Vector], nj.NormTransform], member: str | None
) -> Callable[[Vector], Check]:
    """The recorded defect step by step, and beside it the correct rule, which must differ where the defect is.

    `member` is the batch norm inside the published chain; the correct chain has one member less.
    """

    def run(vector: Vector) -> None:
        a, mask_of = vector.arrays(), _time_first(vector)
        wide = vector.sidecar["compute_dtype"] == "float64"
        dtype, tolerance = (np.float64, 1e-12) if wide else (np.float32, 64 * float(np.finfo(np.float32).eps))
        with jax.enable_x64(wide):
            _follow(vector, a, mask_of, dtype, tolerance, published(vector), member, defect=True)
            last = None if member is None else str(int(member) - 1)
            _follow(vector, a, mask_of, dtype, tolerance, correct(vector), last, defect=False)

    return lambda vector: Check(run)


def _follow(vector, a, mask_of, dtype, tolerance, norm, member, defect: bool) -> None:
    struct = jax.ShapeDtypeStruct(a["x"].shape[1:], dtype)
    params, state = jax.tree.map(lambda leaf: leaf.astype(dtype), norm.init(None, struct))
    inner = lambda tree: tree if member is None else tree[member]
    masked = "pad_mask" in a

    @jax.jit
    def step(params, state, x, gy, mask):
        def forward(params, x):
            y, new_state = norm.apply(params, state, x, train=True, mask=mask)
            return jnp.sum(y * gy), (y, new_state)

        grads, (y, state) = jax.grad(forward, argnums=(0, 1), has_aux=True)(params, x)
        return y, state, grads

    def set_parameters(prefix, t):
        for theirs, ours in affine_parameters(vector).items():
            value = a[f"{prefix}param_{theirs}"]
            inner(params)[ours] = jnp.asarray(value if t is None else value[t], dtype)

    for name, theirs in (("mean", "running_mean"), ("var", "running_var")):
        inner(state)[name] = jnp.asarray(a[f"state_{theirs}"][0], dtype)
    for t in range(vector.sidecar["steps"]):
        set_parameters("", t)
        mask = mask_of(a["pad_mask"][t]) if masked else None
        x, gy = (jnp.asarray(a[name][t], dtype) for name in ("x", "gy"))
        y, state, (gparams, gx) = step(params, state, x, gy, mask)
        if defect:
            assert_close(y, a["y"][t], tolerance, f"y at step {t}")
            assert_close(gx, a["gx"][t], tolerance, f"gx at step {t}")
            for theirs, ours in affine_parameters(vector).items():
                assert_close(inner(gparams)[ours], a[f"grad_{theirs}"][t], tolerance, f"grad {theirs} at step {t}")
            for name, theirs in (("mean", "running_mean"), ("var", "running_var")):
                assert_close(inner(state)[name], a[f"state_{theirs}"][t + 1], tolerance, f"{theirs} after step {t}")
        elif member is None:
            # The same statistics; an output differs by the epsilon that is added instead of clamped.
            for name, theirs in (("mean", "running_mean"), ("var", "running_var")):
                assert_close(inner(state)[name], a[f"state_{theirs}"][t + 1], tolerance, f"{theirs} after step {t}")
        else:
            # The same mean; padding at the mean shrinks the recorded variance. Beside the sum of squares, which is
            # the same, only the divisor n - 1 differs.
            valid, rows = np.count_nonzero(mask), mask.size
            assert_close(inner(state)["mean"], a["state_running_mean"][t + 1], tolerance, f"mean after step {t}")
            momentum = vector.hyper["momentum"]
            moved = (a["state_running_var"][t + 1] - (1 - momentum) * a["state_running_var"][t]) / momentum
            inner(state)["var"] = jnp.asarray(a["state_running_var"][t], dtype)
            _, after, _ = step(params, state, x, gy, mask)
            own = (inner(after)["var"] - (1 - momentum) * inner(state)["var"]) / momentum
            shrunk = own * (valid - 1) / (rows - 1)
            assert_close(shrunk, moved, 4 * tolerance / momentum, f"variance of step {t}")
            inner(state)["var"] = inner(after)["var"]
    set_parameters("eval_", None)
    mask = mask_of(a["eval_pad_mask"]) if masked else None
    y, _ = norm.apply(params, state, jnp.asarray(a["eval_x"], dtype), train=False, mask=mask)
    if defect:
        assert_close(y, a["eval_y"], tolerance, "eval y")
    else:
        assert not is_close(y, a["eval_y"], 1e3 * tolerance), "the recorded evaluation has the defect"


ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"un_.*": _unified,
    r"powernorm_.*": _power,
    r"maskbatchnorm_.*": _with_defect(_clamped_batch_norm, _correct_batch_norm, None),
    r"masksyncbn_.*": _with_defect(
        _filled_batch_norm, lambda vector: nj.chain(_token_scaling(vector), _correct_batch_norm(vector)), "2"
    ),
}
