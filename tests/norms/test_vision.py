"""What the battery does not ask of the vision norms: the resizing rule, padding, penalties, limits, sizes in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax.norms._modulate import modulate
from normjax.norms._resize import nearest_resize

EPS32 = float(np.finfo(np.float32).eps)


def resized(length, size):
    return np.asarray(nearest_resize(jnp.arange(length)[None, :, None], (size,), (1,)))[0, :, 0]


@pytest.mark.parametrize(("length", "size"), [(8, 4), (4, 8), (7, 3), (3, 7), (5, 5), (9, 1), (1, 4), (26, 22)])
def test_nearest_positions_are_the_floor_of_the_quotient(length, size):
    np.testing.assert_array_equal(resized(length, size), [i * length // size for i in range(size)])


def test_shrinking_by_two_takes_the_even_positions():
    np.testing.assert_array_equal(resized(8, 4), [0, 2, 4, 6])
    # The trap: the other pixel of each pair.
    np.testing.assert_array_equal(jax.image.resize(jnp.arange(8.0), (4,), "nearest"), [1, 3, 5, 7])


def test_axes_are_resized_each_on_its_own(rng):
    image = rng.standard_normal((2, 6, 8, 3))
    np.testing.assert_array_equal(
        nearest_resize(jnp.asarray(image), (3, 4), (1, 2)), image[:, ::2, ::2].astype(np.float32)
    )


@pytest.mark.parametrize("unit_offset", [True, False])
def test_modulation_rounds_once(unit_offset, rng):
    x, scale, shift = (jnp.asarray(rng.standard_normal((64, 8)), jnp.bfloat16) for _ in range(3))
    wide = [np.asarray(a, np.float64) for a in (x, scale, shift)]
    expected = ((1 if unit_offset else 0) + wide[1]) * wide[0] + wide[2]
    y = modulate(x, scale, shift, unit_offset=unit_offset)
    assert y.dtype == jnp.bfloat16
    # Half a unit in the last place of bfloat16, and what float32 rounds before it, relative to the largest summand.
    bound = 2.0**-8 * np.abs(expected) + 8 * EPS32 * (1 + np.abs(wide).sum(0))
    assert (np.abs(np.asarray(y, np.float64) - expected) <= bound).all()
    np.testing.assert_array_equal(modulate(x, None, None), x)


def test_an_empty_region_contributes_nothing(rng):
    x = rng.standard_normal((2, 4, 4, 3)).astype(np.float32)
    for region in (np.zeros((1, 4, 4, 1)), np.ones((2, 2, 2, 1))):
        expected = nj.batch_normalize(x)[0]
        np.testing.assert_allclose(nj.region_normalize(x, region), expected, rtol=0, atol=64 * EPS32)


def test_learned_regions_of_a_padded_image_are_those_of_the_image(rng):
    norm = nj.learned_region_norm(kernel_size=3, bias_init=jax.nn.initializers.constant(0.5))
    x = rng.standard_normal((2, 4, 5, 3)).astype(np.float32)
    params, _ = norm.init(jax.random.key(0), x)
    params = jax.tree.map(lambda p: 3 * p, params)
    expected, _ = norm.apply(params, {}, x, train=True)
    padded = np.pad(x, ((0, 0), (0, 3), (0, 2), (0, 0)), constant_values=np.nan)
    mask = np.pad(np.ones((2, 4, 5, 1), bool), ((0, 0), (0, 3), (0, 2), (0, 0)))
    y, _ = norm.apply(params, {}, padded, train=True, mask=mask)
    np.testing.assert_allclose(y[:, :4, :5], expected, rtol=0, atol=64 * EPS32 * float(np.max(np.abs(expected))))


def test_the_limits_of_interpolated_adain(rng):
    content, style = (rng.standard_normal((2, 5, 4, 3)).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(nj.adain_normalize(content, style, alpha=0.0), content)
    # Its own statistics change nothing.
    np.testing.assert_allclose(nj.adain_normalize(content, content), content, rtol=0, atol=32 * EPS32 * 4)
    weights = {"style_weight": 0.0, "content_weight": 1.0, "epsilon": 0.0}
    same = nj.content_aware_adain_normalize(content, style, **weights)
    np.testing.assert_allclose(same, content, rtol=0, atol=32 * EPS32 * 4)


def test_penalties_of_what_is_white_and_colourless_vanish(rng):
    x = rng.standard_normal((64, 4))
    with jax.enable_x64(True):
        centred = x - x.mean(0)
        white = centred @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
        assert float(nj.whitening_penalty(jnp.asarray(white), num_groups=2, epsilon=0.0)) < 1e-12
        covariance = nj.group_covariance(jnp.asarray(x), num_groups=1, epsilon=0.0)[0]
        np.testing.assert_allclose(covariance, np.cov(x.T), rtol=0, atol=1e-12)
    assert float(nj.coloring_penalty(jnp.diag(jnp.array([2.0, 0.5])))) == 0


def test_a_zero_column_gives_neither_nan_value_nor_nan_gradient(rng):
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    loss = lambda s: jnp.sum(nj.gdwct_normalize(x, s, jnp.zeros((1, 4))) ** 2)
    value, gradient = jax.value_and_grad(loss)(jnp.zeros((1, 2, 2, 2)))
    assert float(value) == 0
    assert np.isfinite(gradient).all()


def test_grouped_colouring_never_holds_a_matrix_of_all_channels():
    channels, groups = 96, 24
    x = jax.ShapeDtypeStruct((2, 5, 5, channels), jnp.float32)
    coloring = jax.ShapeDtypeStruct((2, groups, 4, 4), jnp.float32)
    shift = jax.ShapeDtypeStruct((2, channels), jnp.float32)
    text = str(jax.make_jaxpr(nj.gdwct_normalize)(x, coloring, shift))
    assert f"{channels},{channels}" not in text


def test_grids_have_their_ends_at_zero_and_one():
    grid = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 8.0]])
    corners = jnp.array([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [-1.0, 2.0]])
    np.testing.assert_array_equal(nj.interpolate_grid(grid, corners), [1.0, 8.0, 3.5, 2.0])
    # One cell beyond the border the zeros have taken over; half a cell beyond, half.
    outside = nj.interpolate_grid(jnp.array([2.0, 4.0]), jnp.array([[1.5], [2.0], [-0.25]]), padding="zeros")
    np.testing.assert_array_equal(outside, [2.0, 0.0, 1.5])


def test_grids_are_mapped_before_they_are_read():
    norm = nj.coordinate_modulation(None, 3, grid_map=lambda grid: 2 * grid)
    x, points = jnp.ones((2, 4)), jnp.zeros((2, 1))
    params, state = norm.init(None, x, coordinates=points)
    np.testing.assert_array_equal(norm.apply(params, state, x, train=True, coordinates=points)[0], 2 * x)
