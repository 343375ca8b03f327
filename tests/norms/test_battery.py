"""What every norm must do, run over every case of `tests.norms.cases`."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax._method import methods
from tests.norms.cases import CASES, FIRST, of_each_family
from tests.norms.drawn import feature_mask, make_context, make_input, make_params, tolerance, widened

over_cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
over_methods = pytest.mark.parametrize("case", FIRST, ids=lambda c: c.name)
EPS32 = float(np.finfo(np.float32).eps)
NIGHTLY = hypothesis.settings.get_current_profile_name() == "nightly"
# What a mask and a gradient meet is how a method is built; its further settings meet it at night.
over_masked = pytest.mark.parametrize("case", CASES if NIGHTLY else FIRST, ids=lambda c: c.name)


@functools.cache
def trained(name):
    """The compiled training-mode `apply` of the case of that name: one compilation per shape."""
    norm = next(c.norm for c in CASES if c.name == name)
    return jax.jit(
        lambda params, state, x, mask, context: norm.apply(params, state, x, train=True, mask=mask, **context)
    )


@functools.cache
def with_gradients(name):
    """The compiled output, state and gradients of a loss over the valid positions, one compilation per shape."""
    norm = next(c.norm for c in CASES if c.name == name)

    @jax.jit
    def run(params, state, x, mask, context):
        def loss(params, x):
            y, new_state = norm.apply(params, state, x, train=True, mask=mask, **context)
            kept = y if mask is None else jnp.where(mask.astype(bool), y, 0)
            # Bounded cotangents that differ from position to position.
            return jnp.sum(jnp.sin(kept.astype(jnp.float32))), (y, new_state)

        (_, (y, new_state)), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return y, new_state, gradients

    return run


def test_every_exported_factory_has_a_case():
    described = {name for name, method in methods(vars(nj)).items() if method.family != "weight"}
    factories = {name for name, value in vars(nj.norms).items() if name.endswith("_norm") and callable(value)}
    assert not factories - described, "a norm without @method"
    assert {c.factory.__name__ for c in CASES} == described | {"chain", "split", "blend"}


@pytest.mark.parametrize(
    ("case", "masked"),
    [(c, False) for c in CASES] + [(c, True) for c in (CASES if NIGHTLY else FIRST)],
    ids=lambda value: value.name if hasattr(value, "name") else "masked" if value else "whole",
)
def test_equals_the_float64_oracle(case, masked, rng):
    params, state = make_params(case, rng)
    x, context = make_input(case, rng, offset=3.0), make_context(case)
    mask = feature_mask(case, rng) if masked else None
    # The masked program is compiled with its gradients for the tests below.
    y = (with_gradients if masked else trained)(case.name)(params, state, x, mask, context)[0]
    expected = case.expected(params, x, mask, **context)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance(case, expected, jnp.float32))


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(c, jnp.bfloat16) for c in (CASES if NIGHTLY else FIRST)]
    # What casts bfloat16 casts the others.
    + [(c, d) for c in (CASES if NIGHTLY else of_each_family(FIRST)) for d in (jnp.float16, jnp.float64)],
    ids=lambda value: value.name if hasattr(value, "norm") else np.dtype(value).name,
)
def test_other_dtypes(case, dtype, rng):
    with jax.enable_x64(dtype == jnp.float64):
        params, state = make_params(case, rng)
        x = jnp.asarray(make_input(case, rng), dtype)
        context = make_context(case)
        y, new_state = trained(case.name)(params, state, x, None, context)
        expected = case.expected(params, np.asarray(x, np.float64), None, **context)
        assert y.dtype == dtype
        # float32 parameters limit float64 inputs to nothing: they are exact.
        np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=0, atol=tolerance(case, expected, dtype))
        assert all(s.dtype in (jnp.float32, jnp.int32) for s in jax.tree.leaves(new_state))


@over_cases
def test_state_tree_is_the_same_from_init_and_apply(case, rng):
    struct = jax.ShapeDtypeStruct(case.shape, jnp.bfloat16)
    context = make_context(case)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), context)
    abstract = jax.eval_shape(case.norm.init, jax.random.key(0), struct, **shapes)
    params, state = case.norm.init(jax.random.key(0), struct, **shapes)
    describe = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype, getattr(a, "weak_type", False)), tree)
    assert describe(abstract) == describe((params, state))
    modes = [functools.partial(case.norm.apply, train=train) for train in (True, False)]
    after = [jax.eval_shape(mode, params, state, struct, **shapes)[1] for mode in modes]
    assert describe(state) == describe(after[0]) == describe(after[1])


@over_methods
def test_scan_vmap_remat_and_jit_without_recompilation(case, rng):
    params, state = make_params(case, rng)
    xs, context = jnp.stack([make_input(case, rng, offset=o) for o in (0.0, 1.0, 2.0)]), make_context(case)

    def step(state, x):
        y, state = jax.checkpoint(functools.partial(case.norm.apply, train=True))(params, state, x, **context)
        return state, y

    final, ys = jax.lax.scan(step, state, xs)
    batched = jax.jit(jax.vmap(lambda x: case.norm.apply(params, state, x, train=True, **context)[0]))(xs)
    looped, compilations = state, set()
    for x, scanned, mapped in zip(xs, ys, batched, strict=True):
        alone, _ = trained(case.name)(params, state, x, None, context)
        y, looped = trained(case.name)(params, looped, x, None, context)
        compilations.add(trained(case.name)._cache_size())
        np.testing.assert_allclose(mapped, alone, rtol=0, atol=tolerance(case, alone, jnp.float32))
        np.testing.assert_allclose(y, scanned, rtol=0, atol=tolerance(case, y, jnp.float32))
    assert len(compilations) == 1, "the state that comes out is not the state that went in"
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=16 * EPS32, atol=16 * EPS32), looped, final)


@pytest.mark.parametrize("case", [c for c in FIRST if c.exact_derivative], ids=lambda c: c.name)
def test_gradients_are_the_slopes_of_the_oracle(case, rng):
    """In float32, where the float64 formula in NumPy gives the differences."""
    params, state = make_params(case, rng)
    x, mask, context = make_input(case, rng), feature_mask(case, rng), make_context(case)
    valid = np.broadcast_to(mask, case.shape)
    gradients = jax.device_get(with_gradients(case.name)(params, state, x, mask, context)[2])
    primals = widened((params, x))
    tangents = jax.tree.map(lambda a: rng.standard_normal(a.shape), primals)
    if not case.padding_in_backward:
        tangents = (tangents[0], np.where(valid, tangents[1], 0))

    def loss(h):
        params, x = jax.tree.map(lambda p, t: p + h * t, primals, tangents)
        return np.sum(np.sin(np.where(valid, case.expected(params, x, mask, **context), 0)))

    products = jax.tree.map(lambda g, t: np.sum(g * t), gradients, tangents)
    sizes = jax.tree.map(lambda g, t: np.linalg.norm(g) * np.linalg.norm(t), gradients, tangents)
    # Central differences err by h², about 1e-8; each product of a float32 gradient by its roundings.
    bound = 1e-6 + case.condition * 64 * EPS32 * sum(jax.tree.leaves(sizes))
    np.testing.assert_allclose(sum(jax.tree.leaves(products)), (loss(1e-4) - loss(-1e-4)) / 2e-4, rtol=1e-6, atol=bound)


@over_masked
def test_masked_positions_never_matter(case, rng):
    params, state = make_params(case, rng)
    x, mask, context = make_input(case, rng), feature_mask(case, rng), make_context(case)
    valid = np.broadcast_to(mask, x.shape)

    def run(x, mask):
        return with_gradients(case.name)(params, state, x, mask, context)

    y, new_state, (gparams, gx) = run(x, mask)
    assert np.all(np.asarray(gx)[~valid] == 0) or case.factory is nj.chain or case.padding_in_backward
    for poison in (np.nan, np.inf, -np.inf, 1e30):
        poisoned = run(np.where(valid, x, np.float32(poison)), mask)
        assert np.isfinite(poisoned[2][1]).all()
        clean = (np.where(valid, y, 0), new_state, (gparams, np.where(valid, gx, 0)))
        dirty = (np.where(valid, poisoned[0], 0), poisoned[1], (poisoned[2][0], np.where(valid, poisoned[2][1], 0)))
        if case.padding_in_backward:
            clean, dirty = clean[:2], dirty[:2]
        jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def _with_state(cases):
    """One case for every factory and every set of entries that its state may have."""
    found = {}
    for c in (c for c in cases if hasattr(c.factory, "method") and c.factory.method.state):
        x = jax.ShapeDtypeStruct(c.shape, jnp.float32)
        init = functools.partial(c.norm.init, x=x, **make_context(c))
        structure = jax.tree.structure(jax.eval_shape(init, jax.random.key(0))[1])
        if structure.num_leaves:
            found.setdefault((c.factory, structure), c)
    return list(found.values())


@pytest.mark.parametrize("case", _with_state(CASES), ids=lambda c: c.name)
def test_masked_positions_never_matter_in_evaluation(case, rng):
    params, state = make_params(case, rng)
    x, mask, context = make_input(case, rng), feature_mask(case, rng), make_context(case)
    valid = np.broadcast_to(mask, x.shape)

    @jax.jit
    @jax.grad
    def gradients(params, x):
        y, _ = case.norm.apply(params, state, x, train=False, mask=jnp.asarray(mask), **context)
        return jnp.sum(jnp.where(valid, y, 0) ** 2)

    clean, dirty = gradients(params, x), gradients(params, np.where(valid, x, np.float32(np.nan)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance(case, a, jnp.float32)), clean, dirty
    )


@over_masked
def test_empty_sets_give_statistics_zero_and_one(case, rng):
    params, state = make_params(case, rng)
    x, context = make_input(case, rng), make_context(case)
    mask = feature_mask(case, rng, empty=True)
    y, new_state, gradients = with_gradients(case.name)(params, state, x, mask, context)
    expected = case.expected(params, x, mask, **context)
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance(case, y, jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, state, new_state)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


@over_cases
def test_constant_input_gives_the_bias_and_finite_gradients(case, rng):
    params, state = make_params(case, rng)
    x, context = jnp.full(case.shape, 1000.3, jnp.float32), make_context(case)
    expected = case.expected(params, np.asarray(x), None, **context)
    y, _ = trained(case.name)(params, state, x, None, context)
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance(case, expected, jnp.float32))
    if case in FIRST:
        # The program of the tests above: with everything valid, a mask changes no gradient.
        zeros, mask = np.zeros(case.shape, np.float32), np.ones_like(feature_mask(case, rng))
        _, _, gradients = with_gradients(case.name)(params, state, zeros, mask, context)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


WITH_CHANNELS_FIRST = [c for c in CASES if c.channels_first is not None]


@pytest.mark.parametrize(
    ("case", "masked"),
    [(c, c in FIRST) for c in WITH_CHANNELS_FIRST]
    # Without a mask the same axes are reduced by fewer operations.
    + [(c, c not in FIRST) for c in (WITH_CHANNELS_FIRST if NIGHTLY else of_each_family(WITH_CHANNELS_FIRST))],
    ids=lambda value: value.name if hasattr(value, "name") else "masked" if value else "whole",
)
def test_axes_only_name_where_things_are(case, masked, rng):
    params, state = make_params(case, rng)
    x, context = make_input(case, rng), make_context(case)
    mask = feature_mask(case, rng) if masked else None
    y, new_state = (with_gradients if masked else trained)(case.name)(params, state, x, mask, context)[:2]
    first = lambda a: None if a is None else np.moveaxis(np.asarray(a), -1, 1)
    images = {k: first(v) if np.shape(v)[1:-1] == x.shape[1:-1] and x.ndim > 2 else v for k, v in context.items()}
    apply = jax.jit(functools.partial(case.channels_first.apply, train=True))
    moved, moved_state = apply(params, state, first(x), mask=first(mask), **images)
    np.testing.assert_allclose(moved, first(y), rtol=0, atol=tolerance(case, y, jnp.float32))
    close = functools.partial(np.testing.assert_allclose, rtol=32 * EPS32, atol=32 * EPS32)
    jax.tree.map(close, moved_state, new_state)


FEW = of_each_family(FIRST)
# A further dtype is a further compilation, and so is each pair of batch and mask shape; nightly pays for all of them.
DTYPES = [np.float32, jnp.bfloat16, np.float16] if NIGHTLY else [np.float32]


@pytest.mark.parametrize("case", CASES if NIGHTLY else FIRST, ids=lambda c: c.name)
@hypothesis.given(data=st.data())
def test_any_shape_mask_offset_and_garbage(case, data):
    few, many = (1, *case.shape[1:]), case.shape
    positions = lambda shape: feature_mask(case, np.random.default_rng(0)).shape if shape is many else (*shape[:-1], 1)
    kinds = [(many, positions(many), np.bool_)]
    # One example is a set of its own where statistics are those of the batch.
    kinds += [(few, (1,) * len(few), np.int8)] if case.across_batch or case in FEW or NIGHTLY else []
    kinds += [(few, positions(few), np.bool_), (many, (1,) * len(many), np.int8)] if NIGHTLY else []
    shape, mask_shape, mask_dtype = data.draw(st.sampled_from(kinds), label="shapes")
    dtype = data.draw(st.sampled_from(DTYPES), label="dtype")
    offset = data.draw(st.sampled_from([0.0, 1.0, 1e2, 1e4]), label="offset")
    spread = data.draw(st.sampled_from([1.0, 1.0, 0.0]), label="spread")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    x = np.asarray(jnp.asarray(offset + spread * rng.standard_normal(shape), dtype))
    density = data.draw(st.sampled_from([0.0, 0.5, 1.0]), label="density")
    mask = (rng.random(mask_shape) < density).astype(mask_dtype)
    garbage = data.draw(st.sampled_from([0.0, np.nan, np.inf, -np.inf]), label="garbage")
    valid = np.broadcast_to(mask != 0, shape)
    context = make_context(case, shape)
    params, state = case.norm.init(jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32), **context)
    poisoned = np.where(valid, x, np.asarray(garbage, x.dtype))
    y, new_state, gradients = with_gradients(case.name)(params, state, poisoned, mask, context)
    expected = np.where(valid, case.expected(params, x, mask, **context), 0)
    assert y.shape == shape
    # Products of features (self-modulation, inverse GDN) leave float16's range where the input is 1e4.
    hypothesis.assume(np.max(np.abs(expected)) < float(jnp.finfo(dtype).max))
    # Without a second value there is no spread: the difference of two large numbers is rounded at their size.
    bound = tolerance(case, expected, jnp.float32) * (1 + offset / 50) + tolerance(case, expected, dtype)
    np.testing.assert_allclose(np.where(valid, np.asarray(y, np.float64), 0), expected, rtol=0, atol=bound)
    # At zero the derivative is 1 / epsilon outside the root, which float16 cannot hold for an epsilon below 1.5e-5.
    held = gradients[0] if dtype == np.float16 and not np.any(x) else gradients
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((new_state, held)))
