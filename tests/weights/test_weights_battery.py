"""What every reparametrization of weights must do, run over every case of `tests.weights.cases`."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import normjax as nj
from normjax._method import methods
from tests.weights.cases import CASES, units

over_cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
EPS32 = float(np.finfo(np.float32).eps)
METHODS = {name: m for name, m in methods(vars(nj)).items() if m.family == "weight"}
FIRST = [next(c for c in CASES if c.factory.__name__ == name) for name in METHODS]


def make(case, rng, dtype=np.float32, size=1.0):
    """A kernel, parameters away from their initial values, and a state."""
    kernel = jnp.asarray(size * (0.5 + rng.standard_normal(case.shape)), dtype)
    params, state = case.transform.init(jax.random.key(0), kernel)
    noise = lambda p: p + jnp.asarray(0.3 * rng.standard_normal(p.shape), p.dtype)
    return kernel, jax.tree.map(noise, params), state


@functools.cache
def applied(name, train=True):
    case = next(c for c in CASES if c.name == name)
    return jax.jit(functools.partial(case.transform.apply, train=train))


def tolerance(expected):
    """32 roundings of values of the output's size."""
    return 32 * EPS32 * max(1.0, float(np.max(np.abs(expected))))


def test_every_exported_factory_has_a_case():
    exported = {name for name in vars(nj.weights) if name.endswith(("_norm", "_standardization"))}
    exported = {name for name in exported if callable(getattr(nj.weights, name))}
    assert exported == set(METHODS), "a reparametrization without @method"
    assert {c.factory.__name__ for c in CASES} == set(METHODS)


@over_cases
def test_equals_the_float64_oracle(case, rng):
    kernel, params, state = make(case, rng)
    effective, _ = applied(case.name)(params, state, kernel)
    expected = case.expected(params, state, kernel, case.axes)
    assert (effective.shape, effective.dtype) == (kernel.shape, kernel.dtype)
    np.testing.assert_allclose(effective, expected, rtol=0, atol=tolerance(expected))


@over_cases
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_other_dtypes_have_wide_statistics(case, dtype, rng):
    with jax.enable_x64(dtype == jnp.float64):
        kernel, params, state = make(case, rng, dtype)
        effective, new_state = applied(case.name)(params, state, kernel)
        expected = case.expected(params, state, np.asarray(kernel, np.float64), case.axes)
        assert effective.dtype == dtype
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        assert all(leaf.dtype == wide for leaf in jax.tree.leaves(new_state))
        # One rounding to the kernel's dtype, behind statistics of at least float32.
        eps = float(jnp.finfo(dtype).eps)
        bound = eps / 2 * np.abs(expected) + 32 * float(jnp.finfo(wide).eps) * max(1, np.abs(expected).max())
        assert np.all(np.abs(np.asarray(effective, np.float64) - expected) <= bound)


@over_cases
def test_state_tree_is_the_same_from_init_and_apply(case, rng):
    describe = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype, getattr(a, "weak_type", False)), tree)
    struct = jax.ShapeDtypeStruct(case.shape, jnp.bfloat16)
    abstract = jax.eval_shape(case.transform.init, jax.random.key(0), struct)
    kernel, params, state = make(case, rng, jnp.bfloat16)
    assert describe(abstract) == describe((params, state))
    for train in (True, False):
        after = jax.eval_shape(functools.partial(case.transform.apply, train=train), params, state, kernel)[1]
        assert describe(after) == describe(state)
    _, kept = applied(case.name, train=False)(params, state, kernel)
    jax.tree.map(np.testing.assert_array_equal, kept, state)


@over_cases
def test_scan_vmap_remat_and_jit_without_recompilation(case, rng):
    kernel, params, state = make(case, rng)
    kernels = jnp.stack([kernel, 2 * kernel + 1, kernel[::-1]])

    def step(state, kernel):
        effective, state = jax.checkpoint(functools.partial(case.transform.apply, train=True))(params, state, kernel)
        return state, effective

    final, scanned = jax.lax.scan(step, state, kernels)
    looped, compiled = state, jax.jit(functools.partial(case.transform.apply, train=True))
    for kernel, effective in zip(kernels, scanned, strict=True):
        again, looped = compiled(params, looped, kernel)
        np.testing.assert_allclose(again, effective, rtol=0, atol=tolerance(effective))
    assert compiled._cache_size() == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance(b)), looped, final)
    mapped = jax.vmap(lambda kernel: case.transform.apply(params, state, kernel, train=True)[0])(kernels)
    alone = compiled(params, state, kernels[1])[0]
    np.testing.assert_allclose(mapped[1], alone, rtol=0, atol=tolerance(alone))


@pytest.mark.parametrize("case", [c for c in CASES if not c.constant_vectors], ids=lambda c: c.name)
def test_derivatives_by_finite_differences(case, rng):
    with jax.enable_x64(True):
        kernel, params, state = make(case, rng, np.float64)
        params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
        apply = lambda params, kernel: applied(case.name)(params, state, kernel)[0]
        # Central differences of step h err by h² plus the rounding eps / h.
        check_grads(apply, (params, kernel), order=1, modes=("fwd", "rev"), eps=1e-4, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if c.constant_vectors], ids=lambda c: c.name)
def test_vectors_of_the_power_iteration_are_constants(case, rng):
    r"""$\partial L / \partial W = g/\sigma\,(G - \langle G, W / \sigma\rangle\, v u^\top)$, in float64."""
    with jax.enable_x64(True):
        kernel, params, state = make(case, rng, np.float64)
        cotangent = jnp.asarray(rng.standard_normal(case.shape))
        loss = lambda params, kernel: jnp.sum(case.transform.apply(params, state, kernel, train=True)[0] * cotangent)
        gparams, gradient = jax.grad(loss, argnums=(0, 1))(params, kernel)
        _, new = case.transform.apply(params, state, kernel, train=True)
        (matrix, back), (g, _) = (units(a, case.axes) for a in (kernel, cotangent))
        u = np.asarray(new["u"]).reshape(-1)
        # Flax's order ends with u, so that the v that goes with it is the one before.
        v = np.asarray(new["v"]).reshape(-1) if "v" in new else _left_before(matrix, state["u"], case.options)
        sigma = v @ matrix @ u
        scale = np.float64(params.get("scale", 1.0))
        expected = scale / sigma * (g - np.sum(g * matrix) / sigma * np.outer(v, u))
        np.testing.assert_allclose(gradient, back(expected), rtol=0, atol=1e-12 * np.abs(expected).max())
        if gparams:
            np.testing.assert_allclose(gparams["scale"], np.sum(g * matrix) / sigma, rtol=1e-6)


def _left_before(matrix, u, options):
    u = np.asarray(u).reshape(-1)
    for _ in range(options["n_steps"]):
        v = matrix @ u
        v = v / np.linalg.norm(v)
        u = matrix.T @ v
        u = u / np.linalg.norm(u)
    return v


@pytest.mark.parametrize("case", FIRST, ids=lambda c: c.name)
def test_scale_invariance_is_as_stated(case, rng):
    """The effective kernel does not see the kernel's scale, and the gradient is orthogonal to the kernel."""
    stated = METHODS[case.factory.__name__].scale_invariance
    with jax.enable_x64(True):
        # Entries of 1e6 make epsilon (1e-5 at most, on a norm) smaller than 1e-11 of the size.
        kernel, params, state = make(case, rng, np.float64, size=1e6)
        cotangent = rng.standard_normal(case.shape)
        apply = jax.jit(lambda kernel: case.transform.apply(params, state, kernel, train=True)[0])
        plain = apply(kernel)
        per_unit = np.linspace(0.5, 3.0, case.shape[-1])
        close = lambda a: bool(np.max(np.abs(a - plain)) <= 1e-10 * np.max(np.abs(plain)))
        gradient = jax.grad(lambda k: jnp.sum(apply(k) * cotangent))(kernel)
        (w, _), (g, _) = (units(a, case.axes) for a in (kernel, gradient))
        sizes = np.linalg.norm(w, axis=0) * np.linalg.norm(g, axis=0)
        jointly = abs(np.sum(w * g)) <= 1e-10 * np.sum(sizes)
        unitwise = bool(np.all(np.abs(np.sum(w * g, axis=0)) <= 1e-10 * sizes))
        found = (
            close(apply(3 * kernel)),
            close(apply(jnp.asarray(np.asarray(kernel) * per_unit))),
            bool(jointly),
            unitwise,
        )
    assert found == {"per unit": (True, True, True, True), "joint": (True, False, True, False)}[stated]


@pytest.mark.parametrize("case", FIRST, ids=lambda c: c.name)
def test_state_is_named(case, rng):
    _, _, state = make(case, rng)
    named = METHODS[case.factory.__name__].state
    assert {n for n in named if not n.startswith("(")} <= set(state) <= {n.strip("()") for n in named}


@over_cases
@pytest.mark.parametrize("empty", ["all", "one unit"])
def test_zero_kernels_are_finite(case, empty, rng):
    kernel, params, state = make(case, rng)
    if empty == "all":
        kernel = jnp.zeros_like(kernel)
    elif isinstance(case.axes, int):
        kernel = jnp.moveaxis(jnp.moveaxis(kernel, case.axes, 0).at[0].set(0), 0, case.axes)

    @jax.jit
    def run(params, kernel):
        def loss(params, kernel):
            effective, new_state = case.transform.apply(params, state, kernel, train=True)
            return jnp.sum(effective**2), (effective, new_state)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, kernel)

    gradients, (effective, new_state) = run(params, kernel)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, effective, new_state)))
    expected = case.expected(params, state, kernel, case.axes)
    np.testing.assert_allclose(effective, expected, rtol=0, atol=tolerance(expected))


def test_a_zero_kernel_does_not_stop_the_power_iteration_for_good(rng):
    for order in ("torch", "flax"):
        transform = nj.spectral_norm(order=order, n_steps=30)
        kernel = jnp.asarray(rng.standard_normal((5, 4)), jnp.float32)
        params, state = transform.init(jax.random.key(0), kernel)
        _, state = transform.apply(params, state, jnp.zeros_like(kernel), train=True)
        effective, _ = transform.apply(params, state, kernel, train=True)
        assert abs(np.linalg.norm(effective, 2) - 1) < 1e-3


@pytest.mark.parametrize("shape", [(6, 4), (3, 3, 2, 5)])
def test_power_iteration_finds_the_largest_singular_value(shape, rng):
    kernel = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    transform = nj.spectral_norm(init_steps=100)
    params, state = transform.init(jax.random.key(0), kernel)
    effective, _ = transform.apply(params, state, kernel, train=False)
    assert abs(np.linalg.norm(np.asarray(effective, np.float64).reshape(-1, shape[-1]), 2) - 1) < 1e-5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weight_norm_starts_as_the_kernel(dtype, rng):
    kernel = jnp.asarray(rng.standard_normal((3, 3, 4, 8)), dtype)
    transform = nj.weight_norm()
    params, state = transform.init(None, kernel)
    effective, _ = transform.apply(params, state, kernel, train=True)
    if dtype == jnp.bfloat16:
        np.testing.assert_array_equal(effective, kernel)
    np.testing.assert_allclose(np.float64(effective), np.float64(kernel), rtol=4 * EPS32, atol=0)


SHAPES = [
    ((4,), ()),
    ((5,), -1),
    ((2, 3), -1),
    ((1, 3), -1),
    ((6, 1), 0),
    ((2, 3, 4), (0, -1)),
    ((3, 1, 2, 4), -1),
    ((2, 2, 3), (1, 0)),
]


@functools.cache
def compiled(name, axes):
    case = next(c for c in CASES if c.name == name)
    transform = case.factory(**case.options | {"feature_axes": axes})

    @jax.jit
    def run(params, state, kernel):
        def total(params, kernel):
            effective, new_state = transform.apply(params, state, kernel, train=True)
            return jnp.sum(effective), (effective, new_state)

        gradients, (effective, new_state) = jax.grad(total, argnums=(0, 1), has_aux=True)(params, kernel)
        return effective, new_state, gradients

    return transform, run


@pytest.mark.parametrize("case", FIRST, ids=lambda c: c.name)
@hypothesis.given(data=st.data())
def test_any_shape_axes_offset_and_spread(case, data):
    shape, axes = data.draw(st.sampled_from(SHAPES), label="shape and axes")
    offset = data.draw(st.sampled_from([0.0, 1.0, 1e4]), label="offset")
    spread = data.draw(st.sampled_from([0.0, 1e-3, 1.0]), label="spread")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    kernel = jnp.asarray(offset + spread * rng.standard_normal(shape), jnp.float32)
    transform, run = compiled(case.name, axes)
    params, state = transform.init(jax.random.key(0), kernel)
    count = units(kernel, axes)[0].shape[0]
    if count < 2 and case.factory not in (nj.weight_norm, nj.spectral_norm):
        with pytest.raises(ValueError, match=f"fan-in of {count}"):
            run(params, state, kernel)
        return
    effective, new_state, gradients = run(params, state, kernel)
    assert effective.shape == shape
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((effective, new_state, gradients)))
    expected = case.expected(params, state, kernel, axes)
    # The kernel itself is exact; what centring cancels is measured in a second pass and does not enter.
    np.testing.assert_allclose(effective, expected, rtol=0, atol=tolerance(expected))


@pytest.mark.parametrize("size", [1e-10, 1e-14])
def test_units_of_tiny_norm_have_their_gradient(size, rng):
    kernel = jnp.asarray(size * rng.standard_normal((8, 4)), jnp.float32)
    cotangent = rng.standard_normal((8, 4))
    gradient = jax.grad(lambda k: jnp.sum(jnp.asarray(cotangent, k.dtype) * nj.weight_normalize(k, jnp.ones(4))))(
        kernel
    )
    norms = np.linalg.norm(np.asarray(kernel, np.float64), axis=0)
    unit = np.asarray(kernel, np.float64) / norms
    expected = (cotangent - unit * (unit * cotangent).sum(0)) / norms
    np.testing.assert_allclose(gradient * size, expected * size, rtol=0, atol=tolerance(expected * size))
