"""Bad input to the vision norms: each call raises, and the message states what came and what was expected."""

import jax
import jax.numpy as jnp
import pytest

import normjax as nj

X = jnp.ones((2, 4, 4, 6))
LABELS = jnp.ones((2, 8, 8, 3))
INSTANCE = nj.instance_norm(use_scale=False, use_bias=False)
STYLED = nj.spade(INSTANCE, hidden=4, use_style=True)
GRID = nj.coordinate_modulation(None, (3, 3))
COLORING, SHIFT = jnp.ones((2, 3, 2, 2)), jnp.ones((2, 6))


def init(norm, rng=0, **context):
    return norm.init(None if rng is None else jax.random.key(rng), X, **context)


def apply(norm, **context):
    return norm.apply(init(norm, **context)[0], {}, X, train=True, **context)


CALLS = {
    "no region": (lambda: apply(nj.region_norm()), ValueError, "region= from its context"),
    "region of another rank": (
        lambda: nj.region_normalize(X, jnp.ones((2, 4, 4))),
        ValueError,
        r"\(2, 4, 4\).*\(2 or 1",
    ),
    "region of channels": (
        lambda: nj.region_normalize(X, X),
        ValueError,
        r"region= of shape \(2, 4, 4, 6\).*any, any, 1",
    ),
    "region of another batch": (lambda: nj.region_normalize(X, jnp.ones((3, 4, 4, 1))), ValueError, r"\(3, 4, 4, 1\)"),
    "scale of one region": (
        lambda: nj.region_normalize(X, jnp.ones((2, 4, 4, 1)), jnp.ones(6)),
        ValueError,
        r"scale.*\(6,\).*\(2, 6\)",
    ),
    "even window": (lambda: nj.learned_region_norm(kernel_size=4), ValueError, "odd kernel_size.*4"),
    "threshold": (lambda: nj.learned_region_norm(threshold=1.5), ValueError, "threshold=1.5"),
    "no key": (lambda: init(nj.learned_region_norm(), rng=None), ValueError, "rng=None"),
    "integer input": (lambda: nj.region_normalize(X.astype(int), X[..., :1]), TypeError, "int32"),
    "SPADE of a factory": (lambda: nj.spade(nj.instance_norm), TypeError, "must be called"),
    "no segmentation": (lambda: init(nj.spade(INSTANCE)), ValueError, "segmentation="),
    "labels without channels": (
        lambda: apply(nj.spade(INSTANCE), segmentation=LABELS[..., 0]),
        ValueError,
        "segmentation=",
    ),
    "no style to join": (lambda: init(STYLED, segmentation=LABELS), ValueError, "style="),
    "style map": (
        lambda: apply(STYLED, segmentation=LABELS, style=X),
        ValueError,
        r"style=.*\(2 or 1, style features\)",
    ),
    "no style": (lambda: apply(nj.adain()), ValueError, "adain reads style="),
    "no style, content-aware": (
        lambda: apply(nj.content_aware_adain()),
        ValueError,
        "content_aware_adain reads style=",
    ),
    "style of other channels": (lambda: apply(nj.adain(), style=X[..., :2]), ValueError, r"style=.*\(2, 4, 4, 2\).*6"),
    "integer style": (lambda: apply(nj.adain(), style=X.astype(int)), TypeError, "int32"),
    "nothing but features": (lambda: nj.adain_normalize(X[0, 0], X[0, 0]), ValueError, "no spatial axis"),
    "alpha": (lambda: nj.adain(alpha=-0.5), ValueError, "alpha=-0.5"),
    "no style code": (lambda: init(nj.gdwct(num_groups=2)), ValueError, "gdwct reads style="),
    "style code": (lambda: init(nj.gdwct(num_groups=2), style=X), ValueError, r"\(2, 4, 4, 6\).*\(2 or 1, 6\)"),
    "groups": (lambda: init(nj.gdwct(num_groups=4), style=SHIFT), ValueError, "num_groups=4.*6"),
    "matrices of other channels": (
        lambda: nj.gdwct_normalize(X[..., :5], COLORING, SHIFT),
        ValueError,
        r"\(2, 3, 2, 2\)",
    ),
    "covariance of masked features": (
        lambda: nj.whitening_penalty(X, num_groups=2, mask=jnp.ones(6)),
        ValueError,
        r"size 1.*\(6,\)",
    ),
    "no coordinates": (lambda: init(GRID), ValueError, "coordinates="),
    "coordinates of another axis": (
        lambda: init(GRID, coordinates=jnp.ones((2, 3))),
        ValueError,
        r"\(2, 3\).*input, 2\)",
    ),
    "coordinates of other points": (lambda: init(GRID, coordinates=jnp.ones((3, 2))), ValueError, r"\(3, 2\)"),
    "integer coordinates": (lambda: apply(GRID, coordinates=jnp.ones((2, 2), int)), TypeError, "int32"),
    "empty grid": (lambda: nj.coordinate_modulation(None, (3, 0)), ValueError, r"\(3, 0\)"),
    "padding": (lambda: nj.interpolate_grid(jnp.ones(3), jnp.ones((2, 1)), padding="mirror"), ValueError, "mirror"),
    "too many coordinates": (lambda: nj.interpolate_grid(jnp.ones(3), jnp.ones((2, 2))), ValueError, r"\(2, 2\)"),
    "a class for a norm": (lambda: nj.coordinate_modulation(nj.layer_norm, 3), TypeError, "must be called"),
}


@pytest.mark.parametrize("name", CALLS)
def test_message(name):
    call, error, pattern = CALLS[name]
    with pytest.raises(error, match=pattern):
        call()
