"""The point functions against their formulas in float64, where floating point is at its limits, and under autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj

EPS32 = float(np.finfo(np.float32).eps)
LARGEST = float(np.finfo(np.float32).max)
UP = np.linspace(1e-3, 30, 400)

# The published formulas for positive arguments and their derivatives.
FORMULAS = {
    "arctan": (lambda a: 2 / np.pi * np.arctan(a), lambda a: 2 / np.pi / (1 + a**2)),
    "isru": (lambda a: a / np.sqrt(1 + a**2), lambda a: (1 + a**2) ** -1.5),
    "relsign": (
        lambda a: a / (1 + np.sqrt(1 + a**2)),
        lambda a: 1 / (np.sqrt(1 + a**2) * (1 + np.sqrt(1 + a**2))),
    ),
    "cubsign": (lambda a: a**3 / (1 + a**3), lambda a: 3 * a**2 / (1 + a**3) ** 2),
    "smoothsign": (lambda a: a / (1 + a), lambda a: (1 + a) ** -2.0),
    "smoothsign_clip": (lambda a: a / (1 + a), lambda a: (1 + a) ** -2.0),
    "expsign": (lambda a: 1 - np.exp(-a), lambda a: np.exp(-a)),
    "exproot": (lambda a: 1 - np.exp(-np.sqrt(a)), lambda a: np.exp(-np.sqrt(a)) / (2 * np.sqrt(a))),
    "saturlog": (lambda a: np.log(1 + a) / (1 + np.log(1 + a)), lambda a: (1 + np.log(1 + a)) ** -2.0 / (1 + a)),
    "satursin": (lambda a: np.sin(np.minimum(a, np.pi / 2)), lambda a: np.where(a < np.pi / 2, np.cos(a), 0)),
    "linear_clip": (lambda a: np.minimum(a, 1), lambda a: np.where(a <= 1, 1.0, 0.0)),
    "logsign_clip": (
        lambda a: np.minimum(np.log(1 + a), 1),
        lambda a: np.where(np.log(1 + a) <= 1, 1 / (1 + a), 0),
    ),
    "logquad_clip": (
        lambda a: np.minimum(np.log(1 + a**2), 1),
        lambda a: np.where(np.log(1 + a**2) <= 1, 2 * a / (1 + a**2), 0),
    ),
    "power23_clip": (
        lambda a: np.minimum(a ** (2 / 3), 1),
        lambda a: np.where(a <= 1, 2 / 3 * a ** (-1 / 3), 0),
    ),
}
FUNCTIONS = nj.point_functions.FUNCTIONS
over_functions = pytest.mark.parametrize("name", FUNCTIONS)


def test_every_function_has_a_formula():
    assert FORMULAS.keys() == FUNCTIONS.keys()
    assert all(getattr(nj.point_functions, name) is f for name, f in FUNCTIONS.items())


@over_functions
def test_equals_its_formula_and_is_odd(name):
    formula, derivative = FORMULAS[name]
    with jax.enable_x64(True):
        differentiate = jax.jit(jax.vmap(jax.value_and_grad(FUNCTIONS[name])))
        y, slope = differentiate(jnp.asarray(UP))
        mirrored, mirrored_slope = differentiate(jnp.asarray(-UP))
    np.testing.assert_allclose(y, formula(UP), rtol=0, atol=1e-14)
    # Two terms of size 1 cancel in a derivative far out.
    np.testing.assert_allclose(slope, derivative(UP), rtol=0, atol=1e-13 * np.max(derivative(UP)))
    np.testing.assert_array_equal(mirrored, -y)
    np.testing.assert_array_equal(mirrored_slope, slope)


@over_functions
def test_at_the_limits_of_floating_point(name):
    formula, derivative = FORMULAS[name]
    differentiate = jax.vmap(jax.value_and_grad(FUNCTIONS[name]))
    tiny = np.float32(1e-6)
    (zero, small, large, negative), slopes = differentiate(jnp.array([0.0, tiny, LARGEST, -LARGEST], jnp.float32))
    assert zero == 0
    # As many digits of a small value as of an ordinary one; 1 - exp(-x) would have one left.
    np.testing.assert_allclose(small, formula(np.float64(tiny)), rtol=16 * EPS32, atol=1e-15)
    limit = formula(np.float64(LARGEST)) if name == "saturlog" else 1.0
    np.testing.assert_allclose([large, -negative], limit, rtol=4 * EPS32, atol=0)
    infinite = name in ("exproot", "power23_clip")
    with np.errstate(divide="ignore"):
        expected = 0.0 if infinite else derivative(np.float64(0))
    np.testing.assert_allclose(slopes[0], expected, rtol=4 * EPS32, atol=0)
    np.testing.assert_allclose(slopes[2:], 0, rtol=0, atol=EPS32)


def test_published_form_loses_the_derivative_at_zero():
    published = lambda x: jnp.sign(x) * jnp.log(jnp.abs(x) + 1)
    assert jax.grad(published)(0.0) == 0
    assert jax.grad(nj.point_functions.logsign_clip)(0.0) == 1
    assert jnp.isnan(jax.grad(lambda x: jnp.sign(x) * jnp.abs(x) ** (2 / 3))(0.0))


def test_each_step_is_rounded_where_statistics_are_narrow(rng):
    x = jnp.asarray(rng.standard_normal((16, 8)), jnp.bfloat16)
    alpha, shift = jnp.array(0.37, jnp.bfloat16), jnp.array(0.11, jnp.bfloat16)
    narrow = nj.Precision(statistics=jnp.bfloat16)
    y = nj.dynamic_erf(x, alpha, shift, precision=narrow)
    steps = jax.lax.erf(alpha * x + shift)
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(steps, np.float32))
    assert (nj.dynamic_erf(x, alpha, shift) != y).any()


@pytest.mark.parametrize("variant", ["B0", "B1", "B2"])
def test_evonorm_on_1x1_maps_and_at_a_tie(variant):
    """One value a channel: every variance is 0, and at x = 0 both denominators of B0 are equal."""
    norm = nj.evo_norm_b(variant=variant, unbiased=True)
    x = jnp.array([0.0, -2.0, 3.0]).reshape(1, 1, 1, 3)
    params, state = norm.init(None, x)

    def loss(params, x):
        y, new_state = norm.apply(params, state, x, train=True)
        return jnp.sum(y), new_state

    (_, new_state), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves((gradients, new_state)))
    np.testing.assert_allclose(new_state["var"], 0.9, rtol=EPS32)


def test_evonorm_b2_keeps_its_digits_at_an_offset(rng):
    x = (1e4 + rng.standard_normal((4, 16, 1))).astype(np.float32)
    y, _ = nj.evo_normalize_b(jnp.asarray(x), variant="B2", epsilon=0.0)
    wide = x.astype(np.float64)
    rms = np.sqrt((wide**2).mean(1, keepdims=True))
    expected = wide / np.maximum(wide.std((0, 1)), rms - wide)
    # The difference of the two, of size 1, would lose 1e4 roundings.
    np.testing.assert_allclose(y, expected, rtol=32 * EPS32, atol=0)


def test_filter_response_learns_its_epsilon_where_the_map_is_one_pixel():
    norm = nj.filter_response_norm(learn_epsilon=True, use_threshold=False)
    x = jnp.array([[0.1, -2.0]]).reshape(1, 1, 1, 2)
    params, state = norm.init(None, x)
    gradient = jax.grad(lambda p: jnp.sum(norm.apply(p, state, x, train=True)[0]))(params)["epsilon"]
    second = np.square([0.1, -2.0]) + 1e-6 + 1e-4
    np.testing.assert_allclose(gradient, -0.5 * np.array([0.1, -2.0]) * second**-1.5, rtol=32 * EPS32)
