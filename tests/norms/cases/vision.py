"""Norms conditioned on regions, label maps, styles and coordinates."""

import itertools

import jax
import numpy as np

import normjax as nj
from tests.norms import oracle
from tests.norms.cases._case import Case

PLAIN = {"use_scale": False, "use_bias": False}


def _wide(tree):
    return {k: _wide(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()}


def _convolve(x, layer):
    """Convolution of (batch, height, width, channels), one product per place of the window, zeros around."""
    kernel = layer["kernel"]
    k, (height, width) = kernel.shape[0] // 2, x.shape[1:3]
    padded = np.pad(x, ((0, 0), (k, k), (k, k), (0, 0)))
    places = itertools.product(range(2 * k + 1), repeat=2)
    y = sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in places)
    return y + layer.get("bias", 0.0)


def _nearest(image, size):
    height, width = (np.arange(n) * image.shape[a + 1] // n for a, n in enumerate(size))
    return np.asarray(image)[:, height][:, :, width]


def _regions(x, foreground, mask, axes, epsilon):
    valid = np.broadcast_to(True if mask is None else np.asarray(mask) != 0, x.shape)
    result = np.zeros(x.shape)
    for member in (foreground, ~foreground):
        inside = valid & member
        _, mean, var, count = oracle.standardize(x, axes, mask=inside, epsilon=epsilon)
        total = valid.sum(axes, keepdims=True)
        ratio = np.where(count > 0, total / np.maximum(count, 1), 1)
        result = np.where(member, (x - mean) / np.sqrt(var + epsilon * ratio), result)
    return result


def _region(axes, epsilon):
    def expected(params, x, mask, region):
        params, x = _wide(params), np.asarray(x, np.float64)
        foreground = _nearest(region, x.shape[1:3]) != 0
        scale = np.where(foreground, params["scale"][1], params["scale"][0])
        return _regions(x, foreground, mask, axes, epsilon) * (1 + scale) + params["bias"].sum(0)

    return expected


def _hole(factor, dtype=bool):
    def context(rng, shape):
        image = (shape[0], *(size * factor for size in shape[1:3]), 1)
        return {"region": (rng.random(image) < 0.4).astype(dtype)}

    return context


def _learned(params, x, mask):
    params, x = _wide(params), np.asarray(x, np.float64)
    valid = np.broadcast_to(True if mask is None else np.asarray(mask) != 0, x.shape)
    present = valid.any(-1, keepdims=True)
    clean = np.where(valid, x, 0)
    mean = clean.sum(-1, keepdims=True) / np.maximum(valid.sum(-1, keepdims=True), 1)
    highest = np.where(present, np.max(np.where(valid, x, -np.inf), axis=-1, keepdims=True), 0)
    with np.errstate(over="ignore"):
        q = present / (1 + np.exp(-_convolve(np.concatenate([mean, highest], -1), params["mask"])))
    scale, bias = (_convolve(q, params[name]) for name in ("scale", "bias"))
    return _regions(x, q >= 0.8, mask, (0, 1, 2), 1e-5) * (1 + scale) + bias


def _small(rng, shape, dtype):
    # Inputs of 1e4 must not saturate the map, or its dependence on them would not show.
    return 1e-5 * jax.random.normal(rng, shape, dtype)


def _labels(factor, channels, style=None):
    def context(rng, shape):
        image = (shape[0], *(size * factor for size in shape[1:3]))
        found = {"segmentation": np.eye(channels, dtype=np.float32)[rng.integers(channels, size=image)]}
        if style is not None:
            found["style"] = rng.standard_normal((shape[0], style)).astype(np.float32)
        return found

    return context


def _features(rng, shape):
    return {"segmentation": rng.standard_normal(shape).astype(np.float32)}


def _spade(normalize, activation):
    def expected(params, x, mask, segmentation, style=None):
        params, x = _wide(params), np.asarray(x, np.float64)
        condition = _nearest(segmentation, x.shape[1:3]).astype(np.float64)
        if style is not None:
            code = np.broadcast_to(np.asarray(style, np.float64)[:, None, None], (*x.shape[:3], style.shape[1]))
            condition = np.concatenate([condition, code], axis=-1)
        hidden = activation(_convolve(condition, params["hidden"]))
        scale, bias = (_convolve(hidden, params[name]) for name in ("scale", "bias"))
        return normalize(x, mask) * (1 + scale) + bias

    return expected


def _over(axes, epsilon=1e-5):
    return lambda x, mask: oracle.standardize(x, axes, mask=mask, epsilon=epsilon)[0]


def _in_groups(groups, epsilon=1e-5):
    def normalize(x, mask):
        cut, cut_mask, axes = oracle.grouped(x, mask, groups)
        return oracle.standardize(cut, axes, mask=cut_mask, epsilon=epsilon)[0].reshape(x.shape)

    return normalize


def _relu(x):
    return np.maximum(x, 0)


def _silu(x):
    return x / (1 + np.exp(-x))


def _style_image(rng, shape):
    style = 2 + 3 * rng.standard_normal((shape[0], 3, 2, shape[-1]))
    return {"style": style.astype(np.float32)}


def _masked_style(rng, shape):
    mask = rng.random((shape[0], 3, 2, 1)) < 0.7
    mask[0] = False
    return {**_style_image(rng, shape), "style_mask": mask}


def _unbiased(x, mask):
    x = np.asarray(x, np.float64)
    _, mean, var, count = oracle.standardize(x, (1, 2), mask=mask, epsilon=0.0)
    return mean, np.where(count > 0, var * count / np.maximum(count - 1, 1), 1)


def _adain(alpha):
    def expected(params, x, mask, style, style_mask=None):
        x = np.asarray(x, np.float64)
        (mean, var), (style_mean, style_var) = _unbiased(x, mask), _unbiased(style, style_mask)
        stylized = (x - mean) / np.sqrt(var + 1e-5) * np.sqrt(style_var + 1e-5) + style_mean
        return alpha * stylized + (1 - alpha) * x

    return expected


def _content_aware(params, x, mask, style):
    x = np.asarray(x, np.float64)
    (mean, var), (style_mean, style_var) = _unbiased(x, mask), _unbiased(style, None)
    deviation = 0.6 * np.sqrt(style_var) + 0.4 * np.sqrt(var)
    return (x - mean) / (np.sqrt(var) + 1e-4) * deviation + 0.6 * style_mean + 0.4 * mean


def _code(rng, shape):
    return {"style": rng.standard_normal((shape[0], shape[-1])).astype(np.float32)}


def _perceptron(x, layers):
    for i in range(len(layers)):
        x = x if i == 0 else np.where(x > 0, x, 0.01 * x)
        x = x @ layers[str(i)]["kernel"] + layers[str(i)]["bias"]
    return x


def _gdwct(params, x, mask, style):
    params, x, style = _wide(params), np.asarray(x, np.float64), np.asarray(style, np.float64)
    n = x.shape[-1] // 2
    _, mean, _, _ = oracle.standardize(x, (0, 1, 2), mask=mask, epsilon=0.0)
    colored = np.zeros(x.shape)
    for b, g in itertools.product(range(x.shape[0]), range(2)):
        part = slice(g * n, (g + 1) * n)
        s = _perceptron(style[b, part], params["coloring"]).reshape(n, n)
        matrix = s @ (s / np.sqrt((s**2).sum(0))).T
        colored[b, ..., part] = (x - mean)[b, ..., part] @ matrix.T
    colored += _perceptron(style, params["shift"])[:, None, None]
    return params["alpha"] * colored + (1 - params["alpha"]) * x


def _points(axes, leading, low=0.0, high=1.0):
    def context(rng, shape):
        return {"coordinates": rng.uniform(low, high, (*shape[:leading], axes)).astype(np.float32)}

    return context


def _read(grid, points, axes, padding):
    """Linear interpolation corner by corner; a corner outside the grid counts as zero."""
    sizes = np.array(grid.shape[:axes])
    position = points * (sizes - 1)
    position = np.clip(position, 0, sizes - 1) if padding == "border" else position
    low = np.floor(position).astype(int)
    total = 0
    for corner in itertools.product((0, 1), repeat=axes):
        index = low + corner
        weight = np.prod(1 - np.abs(position - index), axis=-1) * np.all((index >= 0) & (index < sizes), axis=-1)
        value = grid[tuple(np.moveaxis(np.clip(index, 0, sizes - 1), -1, 0))]
        total = total + value * weight.reshape(weight.shape + (1,) * (value.ndim - weight.ndim))
    return total


def _modulated(normalize, axes, padding="border"):
    def expected(params, x, mask, coordinates):
        params, x = _wide(params), np.asarray(x, np.float64)
        points = np.asarray(coordinates, np.float64)
        maps = [_read(params[name], points, axes, padding) for name in ("scale", "bias")]
        per_channel = params["scale"].ndim > axes
        leading = points.shape[:-1]
        shape = (*leading, *[1] * (x.ndim - len(leading) - per_channel), *[x.shape[-1]] * per_channel)
        scale, bias = (m.reshape(shape) for m in maps)
        return normalize(x, mask) * scale + bias

    return expected


CASES = [
    Case(
        "region",
        nj.region_norm,
        nj.region_norm(),
        (4, 4, 4, 3),
        _region((0, 1, 2), 1e-5),
        (0, 1, 2),
        context=_hole(1),
        channels_first=nj.region_norm(feature_axis=1),
    ),
    Case(
        "region per image, from a larger mask",
        nj.region_norm,
        nj.region_norm(axis=(1, 2), epsilon=1e-3),
        (4, 4, 5, 2),
        _region((1, 2), 1e-3),
        (1, 2),
        context=_hole(2, np.int8),
    ),
    Case(
        "learned region",
        nj.learned_region_norm,
        nj.learned_region_norm(kernel_size=3, kernel_init=_small),
        (4, 4, 4, 3),
        _learned,
        (0, 1, 2),
        channels_first=nj.learned_region_norm(kernel_size=3, kernel_init=_small, feature_axis=1),
    ),
    Case(
        "SPADE, instance",
        nj.spade,
        nj.spade(nj.instance_norm(epsilon=1e-5, **PLAIN), hidden=4),
        (4, 3, 4, 5),
        _spade(_over((1, 2)), _relu),
        (1, 2),
        context=_labels(1, 3),
        channels_first=nj.spade(nj.instance_norm(feature_axes=1, epsilon=1e-5, **PLAIN), hidden=4, feature_axis=1),
    ),
    Case(
        "SPADE, batch, larger labels joined by a style",
        nj.spade,
        nj.spade(nj.batch_norm(**PLAIN), hidden=3, kernel_size=1, use_style=True),
        (4, 3, 2, 4),
        _spade(_over((0, 1, 2)), _relu),
        (0, 1, 2),
        context=_labels(2, 3, style=2),
    ),
    Case(
        "SPADE, groups, features",
        nj.spade,
        nj.spade(nj.group_norm(num_groups=2, epsilon=1e-5, **PLAIN), hidden=4, activation=jax.nn.silu),
        (4, 3, 2, 4),
        _spade(_in_groups(2), _silu),
        (1, 2, 3),
        context=_features,
    ),
    Case(
        "AdaIN",
        nj.adain,
        nj.adain(),
        (4, 4, 3, 5),
        _adain(1.0),
        (1, 2),
        context=_style_image,
    ),
    Case(
        "AdaIN half way, style masked",
        nj.adain,
        nj.adain(alpha=0.5),
        (4, 4, 3, 5),
        _adain(0.5),
        (1, 2),
        context=_masked_style,
    ),
    Case(
        "content-aware AdaIN",
        nj.content_aware_adain,
        nj.content_aware_adain(),
        (4, 4, 3, 5),
        _content_aware,
        (1, 2),
        context=_style_image,
    ),
    Case(
        "group-wise colouring",
        nj.gdwct,
        nj.gdwct(num_groups=2, hidden=5),
        (4, 3, 3, 6),
        _gdwct,
        (0, 1, 2),
        context=_code,
        channels_first=nj.gdwct(num_groups=2, hidden=5, feature_axis=1),
    ),
    Case(
        "coordinates of an image",
        nj.coordinate_modulation,
        nj.coordinate_modulation(nj.layer_norm(epsilon=1e-5, **PLAIN), (4, 3)),
        (4, 5, 6),
        _modulated(_over((2,)), 2),
        (2,),
        context=_points(2, 2, -0.2, 1.2),
    ),
    Case(
        "coordinates of time",
        nj.coordinate_modulation,
        nj.coordinate_modulation(nj.instance_norm(epsilon=1e-5, **PLAIN), 5, per_channel=True),
        (4, 3, 3, 4),
        _modulated(_over((1, 2)), 1),
        (1, 2),
        context=_points(1, 1),
        channels_first=nj.coordinate_modulation(
            nj.instance_norm(feature_axes=1, epsilon=1e-5, **PLAIN), 5, per_channel=True, feature_axis=1
        ),
    ),
    Case(
        "coordinates of rays",
        nj.coordinate_modulation,
        nj.coordinate_modulation(nj.group_norm(num_groups=1, **PLAIN), (4, 3)),
        (4, 3, 6),
        _modulated(_in_groups(1, 1e-6), 2),
        (1, 2),
        context=_points(2, 1),
    ),
    Case(
        "coordinates alone, zeros outside",
        nj.coordinate_modulation,
        nj.coordinate_modulation(None, 6, padding="zeros"),
        (4, 3, 2),
        _modulated(lambda x, mask: x, 1, "zeros"),
        (),
        context=_points(1, 2, -0.3, 1.3),
    ),
]
