"""Bad input of the norms fused with an activation and of the point functions."""

import jax.numpy as jnp
import pytest

import normjax as nj

X = jnp.ones((2, 3, 4))


def apply(norm, x=X, **kwargs):
    params, state = norm.init(None, X)
    return norm.apply(params, state, x, train=True, **kwargs)


CALLS = {
    "b variant": (lambda: nj.evo_norm_b(variant="S0"), ValueError, r"'S0'.*'B0'"),
    "s variant": (lambda: nj.evo_normalize_s(X, variant="S3"), ValueError, r"'S3'.*'S2a'"),
    "b momentum": (lambda: nj.evo_norm_b(momentum=-0.1), ValueError, "-0.1"),
    "b epsilon": (lambda: nj.evo_norm_b(epsilon=-1.0), ValueError, "-1.0"),
    "b without spatial axis": (lambda: nj.evo_norm_b().init(None, jnp.ones((2, 3))), ValueError, "rank 2"),
    "b channels on the batch axis": (lambda: nj.evo_normalize_b(X, feature_axis=0), ValueError, "disjoint"),
    "v of another shape": (lambda: nj.evo_normalize_b(X, v=jnp.ones(3)), ValueError, r"v has shape \(3,\).*\(4,\)"),
    "var of another shape": (lambda: nj.evo_normalize_b(X, var=jnp.ones(3)), ValueError, r"var has shape \(3,\)"),
    "b mask": (lambda: apply(nj.evo_norm_b(), mask=jnp.ones((2, 3))), ValueError, r"\(2, 3\).*\(2, 3, 4\)"),
    "integer without activation": (
        lambda: apply(nj.evo_norm_b(apply_activation=False), x=jnp.ones((2, 3, 4), jnp.int32)),
        TypeError,
        "int32",
    ),
    "groups do not divide": (
        lambda: nj.evo_norm_s(num_groups=3).init(None, X),
        ValueError,
        r"num_groups=3.*\[1, 2, 4\]",
    ),
    "nothing to fit": (lambda: nj.evo_norm_s(fit_groups=True, num_groups=None, group_size=2), ValueError, "fit_groups"),
    "s epsilon": (lambda: nj.evo_norm_s(epsilon=float("nan")), ValueError, "nan"),
    "s mask": (lambda: apply(nj.evo_norm_s(num_groups=2), mask=jnp.ones(3)), ValueError, r"\(3,\).*\(2, 3, 4\)"),
    "tau": (lambda: nj.filter_response_normalize(X, tau=jnp.ones(3)), ValueError, r"tau has shape \(3,\)"),
    "learned epsilon": (
        lambda: nj.filter_response_normalize(X, learned_epsilon=jnp.ones(1)),
        ValueError,
        r"learned_epsilon has shape \(1,\)",
    ),
    "frn without spatial axis": (
        lambda: nj.filter_response_norm().init(None, jnp.ones((2, 3))),
        ValueError,
        "rank 2",
    ),
    "name instead of a function": (lambda: nj.point_norm("arctan"), TypeError, "point_functions.*'arctan'"),
    "function that reduces": (lambda: nj.point_normalize(X, jnp.sum), ValueError, r"\(\).*\(2, 3, 4\)"),
    "alpha of another shape": (lambda: nj.dynamic_tanh(X, jnp.ones(4)), ValueError, r"alpha.*one number.*\(4,\)"),
    "shift of another shape": (lambda: nj.dynamic_erf(X, shift=jnp.ones(2)), ValueError, r"shift.*one number.*\(2,\)"),
    "integers": (lambda: nj.dynamic_tanh(jnp.ones(3, jnp.int32)), TypeError, "int32"),
    "point mask": (lambda: apply(nj.derf(), mask=jnp.ones((2, 3))), ValueError, r"\(2, 3\).*\(2, 3, 4\)"),
    "layer scale": (lambda: nj.scale_features(X, jnp.ones(3)), ValueError, r"scale has shape \(3,\)"),
}


@pytest.mark.parametrize("name", CALLS)
def test_message(name):
    call, error, pattern = CALLS[name]
    with pytest.raises(error, match=pattern):
        call()
