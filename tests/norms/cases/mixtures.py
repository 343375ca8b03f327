"""Cases of batch norms that mix, re-estimate or blend statistics."""

import jax
import numpy as np

import normjax as nj
from tests.norms import oracle
from tests.norms.cases._case import Case

EPS = 1e-5


def _batch_axes(x):
    return tuple(range(x.ndim - 1))


def _batch(x, mask, epsilon=EPS):
    return oracle.standardize(x, _batch_axes(x), mask=mask, epsilon=epsilon)


def _rep(params, x, mask, pass_masked=False):
    x = np.asarray(x, np.float64)
    y = oracle.affine(_batch(x, mask)[0], params, (x.ndim - 1,))
    if pass_masked and mask is not None:
        y = np.where(np.broadcast_to(mask, x.shape) != 0, y, x)
    return y + float(params["alpha"]) * x


def _prep(weight):
    def expected(params, x, mask):
        token = oracle.standardize(x, (x.ndim - 1,), mask=mask, epsilon=EPS)[0]
        token = oracle.affine(token, params["0"], (x.ndim - 1,))
        return weight * token + (1 - weight) * _rep(params["1"], x, mask)

    return expected


def _prep_llama(params, x, mask):
    token = oracle.standardize(x, (x.ndim - 1,), epsilon=1e-6, centre=False)[0]
    token = oracle.affine(token, params["0"], (x.ndim - 1,))
    return 0.25 * token + 0.75 * _rep(params["1"], x, mask, pass_masked=True)


def _grouped(x, mask, groups):
    cut, cut_mask, axes = oracle.grouped(x, mask, groups)
    return oracle.standardize(cut, axes, mask=cut_mask, epsilon=EPS)[0]


def _continual(params, x, mask):
    inner = _grouped(x, mask, 2).reshape(x.shape)
    return oracle.affine(_batch(inner, mask)[0], params["1"], (x.ndim - 1,))


def _per_group(params, h, mask, groups):
    return oracle.affine(_grouped(h, mask, groups), params, (h.ndim - 1,)).reshape(h.shape)


def _batch_channel(params, x, mask):
    return _per_group(params["1"], oracle.affine(_batch(x, mask)[0], params["0"], (x.ndim - 1,)), mask, 2)


def _estimated(params, x, mask, speed=0.25):
    x = np.asarray(x, np.float64)
    _, mean, var, count = _batch(x, mask)
    second = np.where(count > 0, var + mean**2, 1)  # around the running mean, which is 0
    mean, var = np.where(count > 0, speed * mean, 0), np.where(count > 0, 1 - speed + speed * second, 1)
    return oracle.affine((x - mean) / np.sqrt(var + EPS), params, (x.ndim - 1,))


def _batch_channel_estimated(params, x, mask):
    return _per_group(params["1"], _estimated(params["0"], x, mask), mask, 4)


def _renorm(r_max, d_max):
    def expected(params, x, mask):
        normalized, mean, var, _ = _batch(x, mask, 1e-3)
        r = np.clip(np.sqrt(var + 1e-3), 1 / r_max, r_max)
        d = np.clip(mean, -d_max, d_max)
        return oracle.affine(normalized * r + d, params, (x.ndim - 1,))

    return expected


def _adaptive(renormalize=False):
    def expected(params, x, mask, task=None):
        x = np.asarray(x, np.float64)
        if task is None:
            return oracle.affine(_batch(x, mask)[0], params, (x.ndim - 1,))
        valid = np.ones(x.shape, bool) if mask is None else np.broadcast_to(np.asarray(mask) != 0, x.shape)
        y = np.empty_like(x)
        for c in range(x.shape[-1]):
            values, ok = x[..., c].reshape(len(x), -1), valid[..., c].reshape(len(x), -1)
            used = [t for t, some in zip(np.asarray(task), ok.any(1), strict=True) if some]
            last = max(used, default=0)
            mass = [np.exp(float(params["task_weight"][k])) + used.count(k) for k in range(last + 1)]
            if renormalize:
                mass = [m if k in used else 0.0 for k, m in enumerate(mass)]
            mean, var = 0.0, 1.0
            if used:
                of = {k: values[np.asarray(task) == k][ok[np.asarray(task) == k]] for k in set(used)}
                mean = sum(mass[k] / sum(mass) * v.mean() for k, v in of.items())
                var = sum(mass[k] / sum(mass) * ((v - mean) ** 2).mean() for k, v in of.items())
            y[..., c] = (x[..., c] - mean) / np.sqrt(var + EPS)
        return oracle.affine(y, params, (x.ndim - 1,))

    return expected


def _softmax(logits):
    e = np.exp(np.asarray(logits, np.float64))
    return e / e.sum()


def _switch(params, x, mask):
    """By definition, with mean squares: float64 carries it, and instances are weighted by their counts."""
    x = np.asarray(x, np.float64)
    valid = np.ones(x.shape, bool) if mask is None else np.broadcast_to(np.asarray(mask) != 0, x.shape)
    feature = x.ndim - 1

    def moments(axes):
        n = valid.sum(axes, keepdims=True)
        _, mean, var, _ = oracle.standardize(x, axes, mask=valid, epsilon=0)
        return n, mean, np.where(n > 0, var * n / np.maximum(n - 1, 1), 1)

    if x.ndim == 2:
        kinds = [moments((1,))[1:], moments((0,))[1:]]
    else:
        n, mean, var = moments(tuple(range(1, feature)))
        # Around a common point: at an offset of 1e4 even float64 loses half of its digits in a mean square.
        point = x[valid].mean() if valid.any() else 0.0
        kinds = [(mean, var)]
        for axis in (feature, 0):
            total = n.sum(axis, keepdims=True)
            average = lambda v, axis=axis, total=total: (n * v).sum(axis, keepdims=True) / np.maximum(total, 1)
            centre = average(mean - point)
            spread = average(var + (mean - point) ** 2) - centre**2
            kinds.append((np.where(total > 0, centre + point, 0), np.where(total > 0, spread, 1)))
    w, v = _softmax(params["mean_logits"]), _softmax(params["var_logits"])
    mean = sum(a * kind[0] for a, kind in zip(w, kinds, strict=True))
    var = sum(a * kind[1] for a, kind in zip(v, kinds, strict=True))
    return oracle.affine((x - mean) / np.sqrt(var + EPS), params, (feature,))


def _instance_batch(params, x, mask):
    half = int(x.shape[-1] * 0.4)
    mask = None if mask is None else np.broadcast_to(mask, x.shape)
    masks = (None, None) if mask is None else (mask[..., :half], mask[..., half:])
    first = oracle.standardize(x[..., :half], tuple(range(1, x.ndim - 1)), mask=masks[0], epsilon=EPS)[0]
    second = _batch(x[..., half:], masks[1])[0]
    parts = [oracle.affine(y, p, (x.ndim - 1,)) for y, p in ((first, params["0"]), (second, params["1"]))]
    return np.concatenate(parts, axis=-1)


def _tasks(rng, shape):
    """Tasks 0 and 2 of 4: task 1 is absent, task 3 has not come yet."""
    return {"task": rng.choice(np.array([0, 2], np.int32), shape[0])}


LLAMA = {
    "token_norm": nj.rms_norm(),
    "pass_masked": True,
    "initial_weight": 0.25,
    "ticks_every": 16,
    "alpha": 0.0,
    "scale_init": jax.nn.initializers.zeros,
}

CASES = [
    Case(
        "rep",
        nj.rep_batch_norm,
        nj.rep_batch_norm(),
        (4, 3, 6),
        _rep,
        (0, 1),
        channels_first=nj.rep_batch_norm(feature_axes=1),
    ),
    Case(
        "prep",
        nj.prep_batch_norm,
        nj.prep_batch_norm(initial_weight=0.5, total_steps=2),
        (4, 3, 6),
        _prep(0.5),
        (0, 1),
        channels_first=nj.prep_batch_norm(initial_weight=0.5, total_steps=2, feature_axes=1),
    ),
    Case("prep, LLaMA's", nj.prep_batch_norm, nj.prep_batch_norm(**LLAMA), (4, 3, 6), _prep_llama, (0, 1)),
    Case("prep, warming up", nj.prep_batch_norm, nj.prep_batch_norm(warmup_steps=2), (8, 6), _prep(1.0), (0, 1)),
    Case(
        "continual",
        nj.continual_norm,
        nj.continual_norm(num_groups=2),
        (4, 3, 8),
        _continual,
        (0, 1, 2),
        channels_first=nj.continual_norm(num_groups=2, feature_axis=1),
    ),
    Case(
        "batch-channel",
        nj.batch_channel_norm,
        nj.batch_channel_norm(num_groups=2),
        (4, 3, 8),
        _batch_channel,
        (0, 1, 2),
        channels_first=nj.batch_channel_norm(num_groups=2, feature_axis=1),
    ),
    Case(
        "batch-channel, micro-batches",
        nj.batch_channel_norm,
        nj.batch_channel_norm(num_groups=4, batch=nj.estimated_batch_norm(moving_speed=0.25)),
        (2, 5, 8),
        _batch_channel_estimated,
        (0, 1, 2),
        exact_derivative=False,
        # The gradients of a group's scale and bias sum those of its two channels.
        condition=2.0,
    ),
    Case(
        "estimated",
        nj.estimated_batch_norm,
        nj.estimated_batch_norm(moving_speed=0.25),
        (4, 3, 6),
        _estimated,
        (0, 1),
        channels_first=nj.estimated_batch_norm(moving_speed=0.25, feature_axes=1),
        exact_derivative=False,
    ),
    Case(
        "adaptive balance",
        nj.adaptive_balance_norm,
        nj.adaptive_balance_norm(4, kappa=0.5),
        (6, 3, 4),
        _adaptive(),
        (0, 1),
        context=_tasks,
        channels_first=nj.adaptive_balance_norm(4, kappa=0.5, feature_axes=1),
    ),
    Case(
        "adaptive balance, renormalized",
        nj.adaptive_balance_norm,
        nj.adaptive_balance_norm(4, kappa=0.0, renormalize=True),
        (8, 4),
        _adaptive(renormalize=True),
        (0,),
        context=_tasks,
    ),
    Case(
        "adaptive balance, no tasks",
        nj.adaptive_balance_norm,
        nj.adaptive_balance_norm(2),
        (8, 4),
        _adaptive(),
        (0,),
    ),
    Case(
        "renorm",
        nj.batch_renorm,
        nj.batch_renorm(r_max=float("inf"), d_max=float("inf")),
        (4, 3, 6),
        _renorm(np.inf, np.inf),
        (0, 1),
        channels_first=nj.batch_renorm(r_max=float("inf"), d_max=float("inf"), feature_axes=1),
        # r and d are constants in the backward pass.
        exact_derivative=False,
    ),
    Case("renorm, clipped", nj.batch_renorm, nj.batch_renorm(), (8, 6), _renorm(3, 5), (0,), exact_derivative=False),
    Case(
        "renorm, scheduled",
        nj.batch_renorm,
        # At the first step this is batch normalization, whose derivative is exact.
        nj.batch_renorm(r_max=lambda step: 1 + 0.1 * step, d_max=lambda step: 0.5 * step),
        (8, 6),
        _renorm(1, 0),
        (0,),
    ),
    Case(
        "switch",
        nj.switch_norm,
        nj.switch_norm(),
        (3, 2, 2, 4),
        _switch,
        (0, 1, 2, 3),
        channels_first=nj.switch_norm(feature_axis=1),
    ),
    Case("switch, two kinds", nj.switch_norm, nj.switch_norm(momentum=None), (6, 4), _switch, (0, 1)),
    Case(
        "instance-batch",
        nj.instance_batch_norm,
        nj.instance_batch_norm(ratio=0.4),
        (4, 3, 7),
        _instance_batch,
        (0, 1),
        channels_first=nj.instance_batch_norm(ratio=0.4, feature_axis=1),
    ),
]
