"""Unified Normalization and PowerNorm over several steps, against their equations in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax.backward_state import OVERWRITE_WITH_GRADIENT, join_written, split_written

SHAPE, EPSILON = (6, 5, 4), 1e-5
STEPS = 9


def unified_step(x, gy, params, state, written, valid, o):
    """One step of the method's card; `o` holds its settings. Returns y, gradients, state, written."""
    k, window, window_back = state["count"] + 1, *o["window"]
    axes, rows = (0, 1), valid.sum()
    q = (x**2 * valid).sum(axes) / rows
    buffer = state["buffer_x2"].copy()
    threshold = window * np.var(np.sqrt(buffer), ddof=1)
    buffer[k % window] = q
    geometric = lambda b: np.exp(np.mean(np.log(b), axis=0))
    skip, outlier, streak, running = window == 1, False, state.get("streak", 0), state["var"]
    if o["filtration"] and k >= (o["warmup"] if o["guard"] is None else max(o["warmup"], window)):
        outlier = bool(np.any(buffer.mean(0) - geometric(buffer) > threshold))
        if o["guard"] is not None:
            if outlier and streak >= o["guard"]:
                outlier, buffer, running = False, np.broadcast_to(q, buffer.shape).copy(), q
            streak = streak + 1 if outlier else 0
        if outlier:
            buffer[k % window] = running
        skip = skip or outlier
    plain = k <= window or k < o["warmup"] or skip
    var = q if plain else geometric(buffer)
    ratio = np.clip(np.sqrt(var + EPSILON) / np.sqrt(running + EPSILON), 0.2, 5)
    ratio = 1.0 if k <= max(1000, o["warmup"]) or skip else ratio
    z = x / np.sqrt(var + EPSILON)
    kept = outlier and o["guard"] is not None
    new = {
        "count": k,
        "skipped": state["skipped"] + outlier,
        "buffer_x2": buffer,
        "var": running if kept else o["momentum"] * running + (1 - o["momentum"]) * var,
    }
    if o["guard"] is not None:
        new["streak"] = streak
    where, rows = (valid, rows) if o["mask_backward"] else (np.ones_like(valid), valid.size)
    g = gy * params["scale"] * ratio
    m = (g * z * where).sum(axes) / rows
    gradients = written["buffer_gz"].copy()
    gradients[k % window_back] = written["ema_gz"] if skip else m
    smoothed = m if k <= window_back or k < o["warmup"] or skip else gradients.mean(0)
    ema = o["momentum"] * written["ema_gz"] + (1 - o["momentum"]) * smoothed
    gx = (g - (m if skip else ema) * z * where) / np.sqrt(var + EPSILON)
    y = params["scale"] * z + params["bias"]
    gradient = {"scale": (gy * ratio * z).sum(axes), "bias": gy.sum(axes)}
    return y, gx, gradient, new, {"ema_gz": ema, "buffer_gz": gradients}


def power_step(x, gy, params, state, written, valid, o):
    k, axes = state["count"] + 1, (0, 1)
    cut = x.reshape(*x.shape[:-1], o["groups"], -1)
    root = np.sqrt(np.mean(cut**2, axis=-1, keepdims=True) + 1e-5)
    u = (cut / root).reshape(x.shape)
    q = (u**2 * valid).sum(axes) / valid.sum()
    z = u / np.sqrt((q if k <= o["warmup"] else state["var"]) + EPSILON)
    average = state["var"] * (k - 1) / k + q / k if k < o["warmup"] else state["var"]
    new = {"count": k, "var": o["momentum"] * average + (1 - o["momentum"]) * q}
    where, rows = (valid, valid.sum()) if o["mask_backward"] else (np.ones_like(valid), valid.size)
    rate = 1 - o["backward_momentum"]
    if o["stable"]:
        rate = np.minimum(rate, 1 / ((z**2 * where).sum(axes) / rows))
    g = gy * params["scale"] - rate * written["ema_gz"] * z * where
    nu = written["ema_gz"] + (g * z * where).sum(axes) / rows
    gu = (g / np.sqrt(q + EPSILON)).reshape(cut.shape)
    inner = np.mean(gu * cut, axis=-1, keepdims=True)
    gx = (gu / root - cut * inner / root**3).reshape(x.shape)
    y = params["scale"] * z + params["bias"]
    return y, gx, {"scale": (gy * z).sum(axes), "bias": gy.sum(axes)}, new, {"ema_gz": nu}


def unified(**changes):
    o = {"window": (3, 3), "warmup": 2, "momentum": 0.8, "filtration": False, "guard": None, "mask_backward": False}
    o |= changes
    norm = nj.unified_norm(
        window=o["window"],
        warmup=o["warmup"],
        momentum=o["momentum"],
        outlier_filtration=o["filtration"],
        max_skips=o["guard"],
        mask_backward=o["mask_backward"],
    )
    return norm, functools.partial(unified_step, o=o)


def power(**changes):
    o = {"groups": 2, "warmup": 3, "momentum": 0.8, "backward_momentum": 0.7, "stable": False, "mask_backward": False}
    o |= changes
    norm = nj.power_norm(
        num_groups=o["groups"],
        warmup=o["warmup"],
        momentum=o["momentum"],
        backward_momentum=o["backward_momentum"],
        stable=o["stable"],
        mask_backward=o["mask_backward"],
    )
    return norm, functools.partial(power_step, o=o)


SETTINGS = {
    "unified": unified(),
    "unified, two windows": unified(window=(2, 5), warmup=6),
    "unified, window 1": unified(window=(1, 2)),
    "unified, filtered": unified(filtration=True, warmup=4),
    "unified, guarded": unified(filtration=True, warmup=1, guard=2, mask_backward=True),
    "power": power(),
    "power, one group": power(groups=1, warmup=0, mask_backward=True),
    "power, stable": power(groups=4, stable=True, warmup=1),
}


# Unified Normalization compensates gradients from step 1001 on.
STARTS = [(name, start) for name in SETTINGS for start in (0, 997) if start == 0 or name.startswith("unified")]


@pytest.mark.parametrize(("name", "start"), STARTS)
def test_steps_equal_the_equations(name, start, rng):
    norm, step = SETTINGS[name]
    with jax.enable_x64(True):
        params, state = norm.init(None, jax.ShapeDtypeStruct(SHAPE, jnp.float64))
        params |= {name: 1 + rng.standard_normal(4) for name in ("scale", "bias")}
        state |= {"count": jnp.asarray(start, jnp.int32)}
        if start:
            # As it would be: no slot is empty.
            state |= {"buffer_x2": 1 + rng.random(state["buffer_x2"].shape)}
        own, own_written = jax.tree.map(np.asarray, (state, params[OVERWRITE_WITH_GRADIENT]))

        @jax.jit
        def run(params, state, x, gy, mask):
            def loss(params, x):
                y, new = norm.apply(params, state, x, train=True, mask=mask)
                return jnp.sum(y * gy), (y, new)

            gradients, (y, state) = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
            return y, state, gradients

        skipped = []
        for t in range(STEPS):
            # A scale that wanders, jumps for one step and stays up from the seventh on.
            scale = np.exp(0.1 * t) * (30 if t == 5 else 6 if t >= 7 else 1)
            x = scale * rng.standard_normal(SHAPE)
            gy, valid = rng.standard_normal(SHAPE), np.ones((*SHAPE[:2], 1))
            valid[1:, t % 5 :] = 0
            y, state, (gparams, gx) = run(params, state, x, gy, valid)
            written = gparams.pop(OVERWRITE_WITH_GRADIENT)
            expected = step(x, gy, params, own, own_written, valid)
            close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11 * np.max(np.abs(b), initial=0))
            jax.tree.map(close, (y, gx, gparams, state, written), tuple(expected))
            own, own_written = expected[3:]
            params = {**params, OVERWRITE_WITH_GRADIENT: written}
            skipped.append(int(own.get("skipped", 0)))
        if "filtered" in name or "guarded" in name:
            assert skipped[-1] > 0, "the outlier was not noticed: this test tests nothing"


def one_step(norm, params, state, x, **options):
    def loss(params, x):
        y, new = norm.apply(params, state, x, train=True, **options)
        return jnp.sum(jnp.sin(3 * y)), new

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)


NORMS = {"unified": nj.unified_norm(window=2, warmup=1), "power": nj.power_norm(num_groups=2, warmup=1)}
over_norms = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def started(norm, rng, steps=3, shape=(8, 4)):
    """Parameters and state after a few steps."""
    params, state = norm.init(None, jax.ShapeDtypeStruct(shape, jnp.float32))
    for _ in range(steps):
        (gradients, _), state = one_step(norm, params, state, jnp.asarray(rng.standard_normal(shape), jnp.float32))
        _, written = split_written(gradients)
        params = join_written(params, split_written(params)[0], written)
    return params, state


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_window_of_one_is_the_exact_derivative(rng):
    with jax.enable_x64(True):
        norm, x = nj.unified_norm(window=1, warmup=0, use_scale=False, use_bias=False), rng.standard_normal((8, 4))
        params, state = norm.init(None, x)
        (_, gx), _ = one_step(norm, params, state, x)
        plain = lambda x: x / jnp.sqrt(jnp.mean(x**2, axis=0, keepdims=True) + 1e-5)
        np.testing.assert_allclose(gx, jax.grad(lambda x: jnp.sum(jnp.sin(3 * plain(x))))(x), rtol=0, atol=1e-13)


@over_norms
def test_evaluation_writes_the_present_value(norm, rng):
    params, state = started(norm, rng)
    x = rng.standard_normal((8, 4)).astype(np.float32)
    loss = lambda params: jnp.sum(norm.apply(params, state, x, train=False)[0] ** 2)
    assert_equal(jax.grad(loss)(params)[OVERWRITE_WITH_GRADIENT], params[OVERWRITE_WITH_GRADIENT])
    without = {k: v for k, v in params.items() if k != OVERWRITE_WITH_GRADIENT}
    np.testing.assert_array_equal(loss(without), loss(params))
    tangent = jax.jvp(lambda x: norm.apply(without, state, x, train=False)[0], (x,), (x,))[1]
    assert np.isfinite(tangent).all()


def test_frozen_norms_write_the_present_value(rng):
    for make in (nj.unified_norm, nj.power_norm):
        params, state = started(make(warmup=1), rng)
        x = jnp.asarray(rng.standard_normal((8, 4)), jnp.float32)
        (gradients, _), new = one_step(make(warmup=1, frozen=True), params, state, x)
        assert_equal((gradients[OVERWRITE_WITH_GRADIENT], new), (params[OVERWRITE_WITH_GRADIENT], state))


@over_norms
def test_empty_batches_write_the_present_value(norm, rng):
    params, state = started(norm, rng)
    x = jnp.asarray(rng.standard_normal((8, 4)), jnp.float32)
    (gradients, gx), new = one_step(norm, params, state, x, mask=np.zeros((8, 1), bool))
    assert_equal((gradients[OVERWRITE_WITH_GRADIENT], new), (params[OVERWRITE_WITH_GRADIENT], state))
    assert np.isfinite(gx).all()


@over_norms
def test_recomputation_advances_nothing_twice(norm, rng):
    params, state = started(norm, rng)
    x = jnp.asarray(rng.standard_normal((8, 4)), jnp.float32)
    recomputed = nj.NormTransform(
        norm.init,
        lambda params, state, x, *, train: jax.checkpoint(functools.partial(norm.apply, train=train))(params, state, x),
    )
    plain, again = (jax.jit(functools.partial(one_step, n))(params, state, x) for n in (norm, recomputed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), plain, again)
    assert int(again[1]["count"]) == int(state["count"]) + 1


@over_norms
def test_a_shared_layer_sums_and_a_mapped_axis_does_not(norm, rng):
    """What the documentation says of sums: two uses give two new values, one use over a mapped axis gives one."""
    params, state = started(norm, rng)
    x = jnp.asarray(rng.standard_normal((2, 8, 4)), jnp.float32)
    loss = lambda params, x: jnp.sum(jnp.sin(3 * norm.apply(params, state, x, train=True)[0]))
    written = lambda f: jax.grad(f)(params)[OVERWRITE_WITH_GRADIENT]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    twice = written(lambda p: loss(p, x[0]) + loss(p, x[1]))
    each = [written(lambda p, x=x: loss(p, x)) for x in x]
    jax.tree.map(lambda a, b, c: close(a, b + c), twice, *each)

    make = nj.unified_norm if "buffer_x2" in state else functools.partial(nj.power_norm, num_groups=2)
    options = {"warmup": 1, **({"window": 2} if make is nj.unified_norm else {})}
    mapped = make(axis_name="micro", **options)
    outputs = lambda p: jax.vmap(lambda x: mapped.apply(p, state, x, train=True)[0], axis_name="micro")(x)
    whole = written(lambda p: loss(p, x.reshape(16, 4)))
    jax.tree.map(close, written(lambda p: jnp.sum(jnp.sin(3 * outputs(p)))), whole)


def test_a_branch_without_the_norm_can_keep_the_state(rng):
    norm = NORMS["unified"]
    params, state = started(norm, rng)
    x = jnp.asarray(rng.standard_normal((8, 4)), jnp.float32)

    def loss(params, chosen):
        skip = lambda: nj.keep_in_backward(x, params[OVERWRITE_WITH_GRADIENT])
        return jnp.sum(jax.lax.cond(chosen, lambda: norm.apply(params, state, x, train=True)[0], skip) ** 3)

    kept = jax.grad(loss)(params, jnp.asarray(False))[OVERWRITE_WITH_GRADIENT]
    assert_equal(kept, params[OVERWRITE_WITH_GRADIENT])
    moved = jax.grad(loss)(params, jnp.asarray(True))[OVERWRITE_WITH_GRADIENT]
    assert not np.array_equal(moved["ema_gz"], kept["ema_gz"])


def filtered_run(scales, rng, **options):
    """The steps at which batches of these scales are skipped, and the running mean squares after each step."""
    norm = nj.unified_norm(warmup=5, outlier_filtration=True, **options)
    params, state = norm.init(None, jax.ShapeDtypeStruct((64, 2), jnp.float32))
    apply = jax.jit(lambda state, x: norm.apply(params, state, x, train=True)[1])
    skips, variances = [], []
    for t, scale in enumerate(scales):
        before = int(state["skipped"])
        state = apply(state, (scale * np.array([1.0, 1.2]) * rng.standard_normal((64, 2))).astype(np.float32))
        variances.append(float(np.max(state["var"])))
        if int(state["skipped"]) > before:
            skips.append(t)
    return skips, variances


def test_the_filter_latches_as_published_and_the_guard_prevents_it(rng):
    # An isolated outlier: published, it enters the running mean square, which evaluation uses and which fills slots.
    scales = [1.0] * 12 + [100.0] + [1.0] * 8
    published, polluted = filtered_run(scales, np.random.default_rng(0))
    guarded, clean = filtered_run(scales, np.random.default_rng(0), max_skips=4)
    assert 12 in published
    assert 12 in guarded
    assert polluted[12] > 100 * polluted[11]
    assert max(clean[12:]) < 2 * clean[11]
    # A lasting change: published, slots are filled with the old scale for as long as the running value remembers it.
    scales = [1.0] * 12 + [0.1] * 40
    published, _ = filtered_run(scales, np.random.default_rng(0))
    guarded, variances = filtered_run(scales, np.random.default_rng(0), max_skips=3)
    assert set(range(12, 42)) <= set(published)
    assert not any({t, t + 1, t + 2, t + 3} <= set(guarded) for t in guarded)
    assert max(variances[15:]) < 0.02
    # With a warm-up shorter than the window empty slots are no outliers.
    norm = nj.unified_norm(window=8, warmup=1, outlier_filtration=True, max_skips=2)
    params, state = norm.init(None, jax.ShapeDtypeStruct((64, 2), jnp.float32))
    for _ in range(10):
        x = rng.standard_normal((64, 2)).astype(np.float32)
        _, state = norm.apply(params, state, x, train=True)
    assert int(state["skipped"]) == 0


def test_power_norm_can_diverge_and_its_clip_prevents_it(rng):
    """Without group scaling and with a slow running mean square, a jump of 20 times makes nu grow without bound."""
    largest = {}
    for stable in (False, True):
        norm = nj.power_norm(num_groups=None, momentum=0.999, warmup=1, stable=stable)
        params, state = norm.init(None, jax.ShapeDtypeStruct((32, 4), jnp.float32))
        step = jax.jit(functools.partial(one_step, norm))
        for t in range(35):
            x = jnp.asarray((20 if t > 3 else 1) * rng.standard_normal((32, 4)), jnp.float32)
            (gradients, _), state = step(params, state, x)
            params = {**params, OVERWRITE_WITH_GRADIENT: gradients[OVERWRITE_WITH_GRADIENT]}
        largest[stable] = float(jnp.max(jnp.abs(params[OVERWRITE_WITH_GRADIENT]["ema_gz"])))
    assert not largest[False] < 1e15
    assert largest[True] < 1e3


def test_splitting_and_joining_are_inverses():
    inner = nj.chain(nj.split([nj.unified_norm(), nj.power_norm()]), nj.layer_norm(), nj.power_norm(use_scale=False))
    params, _ = inner.init(None, jax.ShapeDtypeStruct((4, 6), jnp.float32))
    rest, written = split_written(params)
    assert set(written) == {"0", "2"}
    assert set(written["0"]["0"]) == {"ema_gz", "buffer_gz"}
    assert_equal(join_written(params, rest, written), params)
    assert OVERWRITE_WITH_GRADIENT not in str(jax.tree.structure(join_written(params, rest, {})))
