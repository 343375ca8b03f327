"""What every reparametrization of weights must do, run over every case of `tests.weights.cases`."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax._method import methods
from tests.weights.cases import CASES, drawn, units

over_cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
EPS32 = float(np.finfo(np.float32).eps)
METHODS = {name: m for name, m in methods(vars(nj)).items() if m.family == "weight"}
FIRST = [next(c for c in CASES if c.factory.__name__ == name) for name in METHODS]


def named(name):
    return next(c for c in CASES if c.name == name).transform.apply


@functools.cache
def applied(name):
    """The effective kernel, the state after training and the one after evaluation."""
    apply = named(name)

    @jax.jit
    def run(params, state, kernel):
        return *apply(params, state, kernel, train=True), apply(params, state, kernel, train=False)[1]

    return run


@functools.cache
def with_gradients(name):
    """Effective kernel and state, and once more as the forward pass of a loss returns them, with its gradients."""
    apply = named(name)

    @jax.jit
    def run(params, state, kernel):
        def loss(params, kernel):
            effective, new_state = apply(params, state, kernel, train=True)
            return jnp.sum(effective**2), (effective, new_state)

        gradients, forward = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, kernel)
        return apply(params, state, kernel, train=True), forward, gradients

    return run


@functools.cache
def differentiated(name):
    """Effective kernel and state, the derivative along tangents, and the gradients of a cotangent."""
    apply = named(name)

    @jax.jit
    def run(primals, tangents, cotangent, state):
        f = lambda params, kernel: apply(params, state, kernel, train=True)
        effective, along, new_state = jax.jvp(f, primals, tangents, has_aux=True)
        _, pullback, _ = jax.vjp(f, *primals, has_aux=True)
        return effective, along, pullback(cotangent), new_state

    return run


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
    kernel, params, state = drawn(case, rng)
    (effective, _), _, _ = with_gradients(case.name)(params, state, kernel)
    expected = case.expected(params, state, kernel, case.axes)
    assert (effective.shape, effective.dtype) == (kernel.shape, kernel.dtype)
    np.testing.assert_allclose(effective, expected, rtol=0, atol=tolerance(expected))


@over_cases
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_other_dtypes_have_wide_statistics(case, dtype, rng):
    with jax.enable_x64(dtype == jnp.float64):
        kernel, params, state = drawn(case, rng, dtype)
        effective, new_state, _ = applied(case.name)(params, state, kernel)
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
    kernel, _, _ = drawn(case, rng, jnp.bfloat16)
    params, state = case.transform.init(jax.random.key(0), kernel)
    assert describe(abstract) == describe((params, state))
    for train in (True, False):
        after = jax.eval_shape(functools.partial(case.transform.apply, train=train), params, state, kernel)[1]
        assert describe(after) == describe(state)
    _, _, kept = applied(case.name)(params, state, kernel)
    jax.tree.map(np.testing.assert_array_equal, kept, state)


@over_cases
def test_scan_vmap_remat_and_jit_without_recompilation(case, rng):
    kernel, params, state = drawn(case, rng)
    kernels = jax.device_put([np.asarray(kernel), 2 * np.asarray(kernel) + 1, np.asarray(kernel)[::-1]])
    apply = functools.partial(case.transform.apply, train=True)

    @jax.jit
    def run(params, state, kernels):
        kernels = jnp.stack(kernels)

        def step(state, kernel):
            effective, state = jax.checkpoint(apply)(params, state, kernel)
            return state, effective

        return jax.lax.scan(step, state, kernels), jax.vmap(lambda kernel: apply(params, state, kernel)[0])(kernels)

    (final, scanned), mapped = run(params, state, kernels)
    looped, compiled = state, with_gradients(case.name)
    for kernel, effective in zip(kernels, np.asarray(scanned), strict=True):
        (again, looped), _, _ = compiled(params, looped, kernel)
        np.testing.assert_allclose(again, effective, rtol=0, atol=tolerance(effective))
    assert compiled._cache_size() == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance(b)), looped, final)
    alone = compiled(params, state, kernels[1])[0][0]
    np.testing.assert_allclose(np.asarray(mapped)[1], alone, rtol=0, atol=tolerance(alone))


def drawn_like(tree, rng):
    return jax.tree.map(lambda a: jax.device_put(np.asarray(rng.standard_normal(a.shape), a.dtype)), tree)


@pytest.mark.parametrize("case", [c for c in CASES if not c.constant_vectors], ids=lambda c: c.name)
def test_derivatives_by_finite_differences(case, rng):
    with jax.enable_x64(True):
        kernel, params, state = drawn(case, rng, np.float64)
        primals = (jax.tree.map(lambda p: jax.device_put(np.asarray(p, np.float64)), params), kernel)
        tangents, cotangent = drawn_like(primals, rng), drawn_like(kernel, rng)
        run = differentiated(case.name)

        def moved(step):
            there = jax.tree.map(lambda p, t: jnp.asarray(np.asarray(p) + step * np.asarray(t)), primals, tangents)
            return np.asarray(run(there, tangents, cotangent, state)[0])

        # Central differences of step h err by h² plus the rounding eps / h.
        numerical = (moved(0.5e-4) - moved(-0.5e-4)) / 1e-4
        _, along, gradients, _ = run(primals, tangents, cotangent, state)
        np.testing.assert_allclose(along, numerical, rtol=1e-6, atol=1e-6)
        pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(tangents), strict=True)
        total = sum(np.vdot(gradient, tangent) for gradient, tangent in pairs)
        np.testing.assert_allclose(total, np.vdot(cotangent, numerical), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", [c for c in CASES if c.constant_vectors], ids=lambda c: c.name)
def test_vectors_of_the_power_iteration_are_constants(case, rng):
    r"""$\partial L / \partial W = g/\sigma\,(G - \langle G, W / \sigma\rangle\, v u^\top)$, in float64."""
    with jax.enable_x64(True):
        kernel, params, state = drawn(case, rng, np.float64)
        cotangent = jnp.asarray(rng.standard_normal(case.shape))
        primals = (params, kernel)
        _, _, (gparams, gradient), new = differentiated(case.name)(primals, primals, cotangent, state)
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
        kernel, params, state = drawn(case, rng, np.float64, size=1e6)
        cotangent = rng.standard_normal(case.shape)

        @jax.jit
        def run(kernel):
            effective, pullback = jax.vjp(lambda k: case.transform.apply(params, state, k, train=True)[0], kernel)
            return effective, *pullback(jnp.asarray(cotangent))

        plain, gradient = run(kernel)
        per_unit = np.linspace(0.5, 3.0, case.shape[-1])
        close = lambda a: bool(np.max(np.abs(a - plain)) <= 1e-10 * np.max(np.abs(plain)))
        (w, _), (g, _) = (units(a, case.axes) for a in (kernel, gradient))
        sizes = np.linalg.norm(w, axis=0) * np.linalg.norm(g, axis=0)
        jointly = abs(np.sum(w * g)) <= 1e-10 * np.sum(sizes)
        unitwise = bool(np.all(np.abs(np.sum(w * g, axis=0)) <= 1e-10 * sizes))
        found = (
            close(run(3 * np.asarray(kernel))[0]),
            close(run(np.asarray(kernel) * per_unit)[0]),
            bool(jointly),
            unitwise,
        )
    assert found == {"per unit": (True, True, True, True), "joint": (True, False, True, False)}[stated]


@pytest.mark.parametrize("case", FIRST, ids=lambda c: c.name)
def test_state_is_named(case, rng):
    _, _, state = drawn(case, rng)
    stated = METHODS[case.factory.__name__].state
    assert {n for n in stated if not n.startswith("(")} <= set(state) <= {n.strip("()") for n in stated}


@over_cases
@pytest.mark.parametrize("empty", ["all", "one unit"])
def test_zero_kernels_are_finite(case, empty, rng):
    kernel, params, state = drawn(case, rng)
    if empty == "all":
        kernel = jax.device_put(np.zeros(kernel.shape, kernel.dtype))
    elif isinstance(case.axes, int):
        kernel = np.array(kernel)
        np.moveaxis(kernel, case.axes, 0)[0] = 0
        kernel = jax.device_put(kernel)
    plain, forward, gradients = with_gradients(case.name)(params, state, kernel)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, forward, plain)))
    expected = case.expected(params, state, kernel, case.axes)
    for effective, _ in (plain, forward):
        np.testing.assert_allclose(effective, expected, rtol=0, atol=tolerance(expected))


def test_a_zero_kernel_does_not_stop_the_power_iteration_for_good(rng):
    for order in ("torch", "flax"):
        transform = nj.spectral_norm(order=order, n_steps=30)
        kernel = jax.device_put(np.asarray(rng.standard_normal((5, 4)), jnp.float32))
        apply = jax.jit(functools.partial(transform.apply, train=True))
        params, state = jax.jit(transform.init)(jax.random.key(0), kernel)
        _, state = apply(params, state, jnp.zeros_like(kernel))
        effective, _ = apply(params, state, kernel)
        assert abs(np.linalg.norm(effective, 2) - 1) < 1e-3


@pytest.mark.parametrize("shape", [(6, 4), (3, 3, 2, 5)])
def test_power_iteration_finds_the_largest_singular_value(shape, rng):
    kernel = jax.device_put(np.asarray(rng.standard_normal(shape), jnp.float32))
    transform = nj.spectral_norm(init_steps=100)

    @jax.jit
    def started(kernel):
        return transform.apply(*transform.init(jax.random.key(0), kernel), kernel, train=False)[0]

    effective = started(kernel)
    assert abs(np.linalg.norm(np.asarray(effective, np.float64).reshape(-1, shape[-1]), 2) - 1) < 1e-5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_weight_norm_starts_as_the_kernel(dtype, rng):
    kernel = jax.device_put(np.asarray(rng.standard_normal((3, 3, 4, 8)), dtype))
    transform = nj.weight_norm()
    params, state = jax.jit(functools.partial(transform.init, None))(kernel)
    effective, _ = jax.jit(functools.partial(transform.apply, train=True))(params, state, kernel)
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
    def run(kernel):
        params, state = transform.init(jax.random.key(0), kernel)

        def total(params, kernel):
            effective, new_state = transform.apply(params, state, kernel, train=True)
            return jnp.sum(effective), (effective, new_state)

        return (params, state), *jax.grad(total, argnums=(0, 1), has_aux=True)(params, kernel)

    return transform, run


@pytest.mark.parametrize("case", FIRST, ids=lambda c: c.name)
@hypothesis.given(data=st.data())
def test_any_shape_axes_offset_and_spread(case, data):
    shape, axes = data.draw(st.sampled_from(SHAPES), label="shape and axes")
    offset = data.draw(st.sampled_from([0.0, 1.0, 1e4]), label="offset")
    spread = data.draw(st.sampled_from([0.0, 1e-3, 1.0]), label="spread")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    kernel = jax.device_put(np.asarray(offset + spread * rng.standard_normal(shape), np.float32))
    transform, run = compiled(case.name, axes)
    count = units(kernel, axes)[0].shape[0]
    if count < 2 and case.factory not in (nj.weight_norm, nj.spectral_norm):
        params, state = jax.eval_shape(transform.init, jax.random.key(0), kernel)
        with pytest.raises(ValueError, match=f"fan-in of {count}"):
            jax.eval_shape(functools.partial(transform.apply, train=True), params, state, kernel)
        return
    (params, state), gradients, (effective, new_state) = run(kernel)
    assert effective.shape == shape
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((effective, new_state, gradients)))
    expected = case.expected(params, state, kernel, axes)
    # The kernel itself is exact; what centring cancels is measured in a second pass and does not enter.
    np.testing.assert_allclose(effective, expected, rtol=0, atol=tolerance(expected))


tiny = jax.jit(jax.grad(lambda kernel, cotangent: jnp.sum(cotangent * nj.weight_normalize(kernel, jnp.ones(4)))))


@pytest.mark.parametrize("size", [1e-10, 1e-14])
def test_units_of_tiny_norm_have_their_gradient(size, rng):
    kernel = jnp.asarray(size * rng.standard_normal((8, 4)), jnp.float32)
    cotangent = rng.standard_normal((8, 4))
    gradient = tiny(kernel, jnp.asarray(cotangent, jnp.float32))
    norms = np.linalg.norm(np.asarray(kernel, np.float64), axis=0)
    unit = np.asarray(kernel, np.float64) / norms
    expected = (cotangent - unit * (unit * cotangent).sum(0)) / norms
    np.testing.assert_allclose(gradient * size, expected * size, rtol=0, atol=tolerance(expected * size))
