"""Derivatives of every norm in float64, by differences and by the two orders of differentiating twice."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import normjax as nj
from tests.norms.cases import CASES, FIRST, of_each_family
from tests.norms.drawn import feature_mask, make_context, make_input, make_params, widened

NIGHTLY = hypothesis.settings.get_current_profile_name() == "nightly"
DERIVATIVES = [c for c in CASES if c.exact_derivative]
FIRST_DERIVATIVES = [c for c in FIRST if c.exact_derivative]
SECOND_ORDER = [next(c for c in CASES if c.factory is f) for f in (nj.layer_norm, nj.rms_norm, nj.batch_norm)]


# All methods share the few rules that their derivatives are made of.
SHARED_RULES = FIRST_DERIVATIVES if NIGHTLY else of_each_family(FIRST_DERIVATIVES)


def reads(case):
    """Whether it is conditional on something that has a gradient."""
    return bool(divided(make_context(case))[0])


def divided(context):
    """The context as floating arrays, which can be differentiated, and the rest."""
    floating = {k: v for k, v in context.items() if jnp.issubdtype(jnp.asarray(v).dtype, jnp.floating)}
    return widened(floating), {k: v for k, v in context.items() if k not in floating}


@pytest.mark.parametrize(
    ("case", "masked"),
    # Where something is read besides the input, its gradient is asked for; the others' are compared in the battery.
    [(c, False) for c in (DERIVATIVES if NIGHTLY else FIRST_DERIVATIVES) if NIGHTLY or c in SHARED_RULES or reads(c)]
    + [(c, True) for c in (DERIVATIVES if NIGHTLY else SHARED_RULES)],
    ids=lambda value: value.name if hasattr(value, "name") else "masked" if value else "whole",
)
def test_derivatives_by_finite_differences(case, masked, rng):
    with jax.enable_x64(True):
        params, state = widened(make_params(case, rng))
        x = jnp.asarray(make_input(case, rng, np.float64))
        mask = feature_mask(case, rng) if masked else None
        floating, rest = divided(make_context(case))

        def forward(params, x, floating):
            return case.norm.apply(params, state, x, train=True, mask=mask, **floating, **rest)[0]

        primals = (params, x, floating)
        if case in SECOND_ORDER and not masked:
            # The one derivative rule, in the cases that it serves first; of the others, the next test compares two
            # ways to the second order.
            check_grads(jax.jit(forward), primals, order=2, modes=("fwd", "rev"), eps=1e-4, atol=1e-4, rtol=1e-4)
            return
        normal = lambda a: jnp.asarray(rng.standard_normal(a.shape))
        tangents, cotangent = jax.tree.map(normal, primals), normal(x)
        slopes = functools.partial(_slopes, forward, tangents=tangents, cotangent=cotangent)
        _, forward_mode, slope, reverse_mode = slopes(primals)
        moved = lambda h: jax.tree.map(lambda p, t: p + h * t, jax.device_get(primals), jax.device_get(tangents))
        above, below = (np.asarray(slopes(moved(h))[0]) for h in (1e-4, -1e-4))
        difference = (above - below) / 2e-4
        # Central differences of step h err by h² plus the rounding eps / h: 1e-4 gives about 1e-8.
        size = max(1.0, float(np.max(np.abs(difference))))
        np.testing.assert_allclose(forward_mode, difference, rtol=0, atol=1e-4 * size)
        np.testing.assert_allclose(reverse_mode, slope, rtol=0, atol=1e-10 * x.size * size)


@functools.partial(jax.jit, static_argnums=0)
def _slopes(f, primals, tangents, cotangent):
    """The output, its tangent, and the slope of a loss from that tangent and from the gradients."""
    y, tangent = jax.jvp(f, (*primals,), (*tangents,))
    gradients = jax.vjp(f, *primals)[1](cotangent.reshape(y.shape))
    products = jax.tree.map(lambda g, t: jnp.sum(g * t), gradients, tangents)
    return y, tangent, jnp.sum(cotangent.reshape(y.shape) * tangent), sum(jax.tree.leaves(products))


@pytest.mark.parametrize("case", SHARED_RULES, ids=lambda c: c.name)
def test_hessian_vector_products_agree(case, rng):
    with jax.enable_x64(True):
        params, state = widened(make_params(case, rng))
        x, tangent = (jnp.asarray(make_input(case, rng, np.float64)) for _ in range(2))
        context = widened(make_context(case))
        loss = lambda x: jnp.sum(jnp.sin(case.norm.apply(params, state, x, train=True, **context)[0]))

        @jax.jit
        def both_orders(x, t):
            return jax.jvp(jax.grad(loss), (x,), (t,))[1], jax.grad(lambda x: jax.jvp(loss, (x,), (t,))[1])(x)

        forward_over_reverse, reverse_over_forward = both_orders(x, tangent)
        scale = float(jnp.max(jnp.abs(forward_over_reverse)))
        np.testing.assert_allclose(forward_over_reverse, reverse_over_forward, rtol=0, atol=1e-12 * max(1, scale))
