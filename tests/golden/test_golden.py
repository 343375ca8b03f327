"""Every recorded vector of a covered method: outputs, gradients, states over all steps, evaluation."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.golden import adapters, vectors
from tests.golden.comparison import assert_close, assert_same_bits, is_close
from tests.golden.vectors import group as _group

FOUND = vectors.find()
STEPWISE = [v for v in FOUND if isinstance(adapters.adapter(v), adapters.Stepwise)]
POINTWISE = [v for v in FOUND if isinstance(adapters.adapter(v), adapters.Pointwise)]
CHECKS = [v for v in FOUND if isinstance(adapters.adapter(v), adapters.Check)]
POLICIES = [v for v in FOUND if isinstance(adapters.adapter(v), adapters.Policies)]
EPS32, EPS_BF16 = float(np.finfo(np.float32).eps), float(ml_dtypes.finfo(ml_dtypes.bfloat16).eps)


@pytest.fixture(autouse=True)
def standard_promotion():
    """The authors' own casts mix dtypes; what the library does is tested strictly elsewhere."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_vectors_are_found():
    if not FOUND:
        pytest.skip(f"no recorded vectors in {vectors.folder()}; name their folder in NORMJAX_GOLDEN")
    assert STEPWISE
    assert POINTWISE


@pytest.mark.parametrize("vector", CHECKS, ids=lambda v: v.name)
def test_by_its_own_comparison(vector):
    adapters.adapter(vector).run(vector)


@pytest.mark.parametrize("vector", STEPWISE, ids=lambda v: v.name)
def test_stepwise(vector):
    case, a = adapters.adapter(vector), vector.arrays()
    wide = vector.sidecar["compute_dtype"] == "float64"
    dtype, tolerance = (np.float64, 1e-12) if wide else (np.float32, 64 * EPS32)
    tolerance *= case.slack
    with jax.enable_x64(wide):
        cast = lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        struct = jax.ShapeDtypeStruct(a["x"].shape[1:], dtype)
        recorded = {f"param_{theirs}": path for theirs, path in case.params.items()}
        kept = {f"state_{theirs}": path for theirs, path in case.state.items()}
        written = {f"state_{theirs}": path for theirs, path in case.written.items()}
        init = functools.partial(case.norm.init, None, struct, **case.context(a, 0))
        params, state = jax.tree.map(cast, _initial(init, {*recorded.values(), *written.values()}, {*kept.values()}))
        state = _filled(state, kept, a, 0)
        params = _filled(params, written, a, 0)

        @jax.jit
        def step(params, state, x, gy, mask, context):
            def forward(params, x):
                y, new_state = case.norm.apply(params, state, x, train=True, mask=mask, **context)
                extra = 0.0 if case.loss is None else case.loss(new_state)
                return jnp.sum(y * gy) + extra, (y, new_state)

            grads, (y, state) = jax.grad(forward, argnums=(0, 1), has_aux=True)(params, x)
            return y, state, grads

        for t in range(vector.sidecar["steps"]):
            params = _filled(params, recorded, a, t)
            x, gy = (jnp.asarray(a[name][t], dtype) for name in ("x", "gy"))
            mask = case.mask(a["pad_mask"][t]) if "pad_mask" in a else None
            y, state, (gparams, gx) = step(params, state, x, gy, mask, case.context(a, t))
            assert_close(y, a["y"][t], tolerance, f"y at step {t}")
            assert_close(gx, a["gx"][t], tolerance, f"gx at step {t}")
            for theirs, path in case.params.items():
                gradient = _at(gparams, path)
                expected = a[f"grad_{theirs}"][t].reshape(gradient.shape)
                assert_close(gradient, expected, tolerance, f"grad {theirs} at step {t}")
            # What the backward pass writes comes out as the gradient of what it read.
            params = _set(params, {path: _at(gparams, path) for path in written.values()})
            for tree, paths in ((state, kept), (params, written)):
                for name, path in paths.items():
                    value = _at(tree, path)
                    assert_close(value, a[name][t + 1].reshape(value.shape), tolerance, f"{name} after step {t}")
        params = _filled(params, {f"eval_{name}": path for name, path in recorded.items()}, a, None)
        mask = case.mask(a["eval_pad_mask"]) if "eval_pad_mask" in a else None
        x, context = jnp.asarray(a["eval_x"], dtype), case.context(a, None)
        y, _ = jax.jit(functools.partial(case.norm.apply, train=False))(params, state, x, mask=mask, **context)
        assert_close(y, a["eval_y"], tolerance, "eval y")
    if case.beside is not None:
        case.beside(vector)


def _initial(init, *paths):
    """The initial trees; zeros where all their leaves, at these paths, are recorded: nothing is left to compile."""
    trees = jax.eval_shape(init)
    if any(len(jax.tree.leaves(tree)) > len(own) for tree, own in zip(trees, paths, strict=True)):
        return jax.tree.map(np.asarray, jax.jit(init)())
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), trees)


def _at(tree, path):
    return functools.reduce(lambda node, key: node[key], path.split("/"), tree)


def _set(tree, values):
    """A copy of nested dicts with the leaves at the given paths replaced."""
    tree = jax.tree.map(lambda leaf: leaf, tree)
    for path, value in values.items():
        *above, last = path.split("/")
        functools.reduce(lambda node, key: node[key], above, tree)[last] = value
    return tree


def _filled(tree, paths, arrays, t):
    """`tree` with recorded arrays of step t (the whole array for `None`) in the shapes and dtypes of its leaves."""
    values = {}
    for name, path in paths.items():
        leaf, value = _at(tree, path), arrays[name] if t is None else arrays[name][t]
        values[path] = jnp.asarray(value.reshape(leaf.shape), leaf.dtype)
    return _set(tree, values)


_DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f64": jnp.float64}


def _combos(vector):
    """(name, prefix of outputs, dtype of inputs, dtype of parameters) of each recorded combination."""
    combos = vector.sidecar.get("combos")
    if combos is None:
        return [("f32", "", jnp.float32, jnp.float32)]
    return [(name, name, _DTYPES[c["x"]], _DTYPES[c["params"]]) for name, c in combos.items()]


def _expected(arrays, prefix, kind):
    group = _group(arrays, prefix, kind)
    return group if prefix else {{"out": "y"}.get(k, k): v for k, v in group.items()}


@pytest.mark.parametrize("vector", POINTWISE, ids=lambda v: v.name)
def test_pointwise(vector):
    arrays, case = vector.arrays(), adapters.adapter(vector)
    # All that is exact is one float64 program.
    compiled = functools.cache(lambda epsilon: _value_and_gradients(functools.partial(case.call, epsilon=epsilon)))
    for name, prefix, x_dtype, param_dtype in _combos(vector):
        with jax.enable_x64(x_dtype == jnp.float64):
            run = compiled(adapters.epsilon_of(vector, x_dtype))
            _check_combo(case, run, arrays, name, prefix, x_dtype, param_dtype)


def _check_combo(case, run, arrays, name, prefix, x_dtype, param_dtype):
    cast = lambda tree, dtype: {k: np.asarray(v).astype(dtype) for k, v in tree.items()}
    own = _group(arrays, prefix, "param") if prefix else {}
    inputs = cast(_group(arrays, "in"), x_dtype)
    params = cast({**_group(arrays, "param"), **own}, param_dtype)
    expected = _expected(arrays, prefix, "out")["y"]
    cotangent = (_group(arrays, "cot") or {"y": _group(arrays, "dy")["out"]})["y"]
    wide = np.float64 if x_dtype == jnp.float64 else np.float32
    y, gradients = run(inputs, params, cotangent.astype(wide))

    if expected.dtype == ml_dtypes.bfloat16:
        with jax.enable_x64(True):
            rounded = cotangent.astype(y.dtype).astype(np.float64)
            exact_params = params if case.narrow_params else cast(params, np.float64)
            exact, exact_gradients = run(cast(inputs, np.float64), exact_params, rounded)
    else:
        exact_gradients = gradients
    if expected.dtype == ml_dtypes.bfloat16 and case.roundings:
        assert_close(y, expected, case.roundings * EPS_BF16 / 2, f"{name}: y")
    elif expected.dtype == ml_dtypes.bfloat16:
        assert_same_bits(y, expected, exact, f"{name}: y")
    else:
        assert_close(y, expected, _tolerance(case, arrays, x_dtype), f"{name}: y")
        assert y.dtype == expected.dtype, name
    for actual, exact, kind in zip(gradients, exact_gradients, ("gin", "gparam"), strict=True):
        for key, value in _expected(arrays, prefix, kind).items():
            tolerance = _gradient_tolerance(case, arrays, x_dtype, value)
            # torch stores a bfloat16 mean for its backward pass: where that ruins its gradient, ours must be exact.
            reference = value if is_close(exact[key], value, tolerance) else np.asarray(exact[key])
            assert_close(actual[key], reference, tolerance, f"{name}: {kind} {key}")


def _value_and_gradients(call):
    def run(inputs, params, cotangent):
        y, pullback = jax.vjp(call, inputs, params)
        return y, pullback(cotangent.astype(y.dtype))

    # One program compiles faster than its operations one by one; but the compiler must not leave out a cast to bfloat16
    # and back, for what is recorded are the bits of an eager run.
    return jax.jit(run, compiler_options={"xla_allow_excess_precision": False})


def _tolerance(case, arrays, x_dtype):
    """Float64: 1e-12. Float32: 80 eps (1e-5), times how many digits centring cancels in the recorded float32 code."""
    if x_dtype == jnp.float64:
        return 1e-12
    return 80 * EPS32 * (_cancellation(arrays) if case.centred else 1)


def _cancellation(arrays):
    """Largest |mean| / spread of a row: the factor by which subtracting a rounded mean amplifies its rounding."""
    x = next(iter(_group(arrays, "in").values())).astype(np.float64)
    spread = np.sqrt(x.var(-1) + 1e-12)
    return max(1.0, float(np.max(np.abs(x.mean(-1)) / spread)))


def _gradient_tolerance(case, arrays, x_dtype, expected):
    """As the outputs'; where anything is bfloat16, two units in its last place for each of two rounded products."""
    low = x_dtype == jnp.bfloat16 or expected.dtype == ml_dtypes.bfloat16
    return 4 * EPS_BF16 if low else 10 * _tolerance(case, arrays, x_dtype)


@pytest.mark.parametrize("vector", POLICIES, ids=lambda v: v.name)
def test_dtype_policies_bit_by_bit(vector):
    a, epsilon = vector.arrays(), vector.sidecar["eps"]
    x = jnp.asarray(a["in/x"])
    for name, call in adapters.adapter(vector).calls.items():
        for kind in ("f32", "bf16"):
            key = f"out/{name}/w{kind}" if f"out/{name}/w{kind}" in a else f"out/{name}"
            if key not in a:
                continue
            scale = jnp.asarray(a[f"param/w_{kind}"])
            y = np.asarray(call(x, scale, epsilon))
            assert y.dtype == a[key].dtype, key
            if y.dtype == np.float32:
                assert_close(y, a[key], 8 * EPS32, key)
            else:
                with jax.enable_x64(True):
                    exact = call(x.astype(jnp.float64), scale, epsilon)
                assert_same_bits(y, a[key], exact, key)
