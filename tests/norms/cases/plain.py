"""Layer, RMS, batch, group and instance normalization, and how transforms compose."""

import numpy as np

import normjax as nj
from tests.norms import oracle
from tests.norms.cases._case import Case


def _direct(axes, features, *, epsilon, offset=0.0, **options):
    def expected(params, x, mask):
        normalized, *_ = oracle.standardize(x, axes, mask=mask, epsilon=epsilon, **options)
        return oracle.affine(normalized, params, features, offset)

    return expected


def _group(groups, epsilon):
    def expected(params, x, mask):
        cut, cut_mask, axes = oracle.grouped(x, mask, groups)
        normalized, *_ = oracle.standardize(cut, axes, mask=cut_mask, epsilon=epsilon)
        return oracle.affine(normalized.reshape(x.shape), params, (x.ndim - 1,))

    return expected


def _group_rms(groups, epsilon):
    def expected(params, x, mask):
        cut, cut_mask, _ = oracle.grouped(x, mask, groups)
        normalized, *_ = oracle.standardize(cut, (cut.ndim - 1,), mask=cut_mask, epsilon=epsilon, centre=False)
        return oracle.affine(normalized.reshape(x.shape), params, (x.ndim - 1,))

    return expected


def _bcn(params, x, mask):
    inner = _direct((0,), (1,), epsilon=1e-5)(params["0"], x, mask)
    return _group(2, 1e-6)(params["1"], inner, mask)


def _ibn(params, x, mask):
    half = x.shape[-1] // 2
    first = _direct((1, 2), (3,), epsilon=1e-6)(params["0"], x[..., :half], mask)
    second = _direct((0, 1, 2), (3,), epsilon=1e-5)(params["1"], x[..., half:], mask)
    return np.concatenate([first, second], axis=-1)


def _blend(params, x, mask):
    token = _direct((1,), (1,), epsilon=1e-6)(params["0"], x, mask)
    return 0.25 * token + 0.75 * _direct((0,), (1,), epsilon=1e-5)(params["1"], x, mask)


CASES = [
    Case(
        "layer",
        nj.layer_norm,
        nj.layer_norm(),
        (4, 6, 16),
        _direct((2,), (2,), epsilon=1e-6),
        (2,),
        channels_first=nj.layer_norm(axis=1),
    ),
    Case(
        "layer over two axes",
        nj.layer_norm,
        nj.layer_norm(axis=(1, -1), use_bias=False, epsilon=1e-3),
        (4, 3, 5),
        _direct((1, 2), (1, 2), epsilon=1e-3),
        (1, 2),
    ),
    Case(
        "layer per head",
        nj.layer_norm,
        nj.layer_norm(feature_axes=(-2, -1), scale_offset=1.0),
        (4, 5, 2, 8),
        _direct((3,), (2, 3), epsilon=1e-6, offset=1.0),
        (3,),
    ),
    Case(
        "layer first axis, epsilon outside",
        nj.layer_norm,
        nj.layer_norm(axis=1, epsilon=1e-2, epsilon_mode="outside"),
        (4, 8, 3),
        _direct((1,), (1,), epsilon=1e-2, mode="outside"),
        (1,),
    ),
    Case(
        "rms",
        nj.rms_norm,
        nj.rms_norm(),
        (4, 6, 16),
        _direct((2,), (2,), epsilon=1e-6, centre=False),
        (2,),
        channels_first=nj.rms_norm(axis=1),
    ),
    Case(
        "rms clamp, 1 + w",
        nj.rms_norm,
        nj.rms_norm(epsilon=1e-1, epsilon_mode="clamp", scale_offset=1.0, use_bias=True),
        (4, 16),
        _direct((1,), (1,), epsilon=1e-1, centre=False, mode="clamp", offset=1.0),
        (1,),
    ),
    Case(
        "rms outside, no scale",
        nj.rms_norm,
        nj.rms_norm(epsilon=1e-8, epsilon_mode="outside", use_scale=False),
        (4, 16),
        _direct((1,), (1,), epsilon=1e-8, centre=False, mode="outside"),
        (1,),
    ),
    Case("rms in groups", nj.rms_norm, nj.rms_norm(group_size=4), (4, 3, 16), _group_rms(4, 1e-6), (2,)),
    Case(
        "batch",
        nj.batch_norm,
        nj.batch_norm(),
        (8, 3, 3, 4),
        _direct((0, 1, 2), (3,), epsilon=1e-5),
        (0, 1, 2),
        channels_first=nj.batch_norm(feature_axes=1),
    ),
    Case(
        "batch, torch's",
        nj.batch_norm,
        nj.batch_norm(feature_axes=1, momentum=0.9, unbiased=True),
        (8, 4, 5),
        _direct((0, 2), (1,), epsilon=1e-5),
        (0, 2),
    ),
    Case(
        "batch, cumulative",
        nj.batch_norm,
        nj.batch_norm(momentum=None),
        (8, 4),
        _direct((0,), (1,), epsilon=1e-5),
        (0,),
    ),
    Case("batch, debiased", nj.batch_norm, nj.batch_norm(debias=True), (8, 4), _direct((0,), (1,), epsilon=1e-5), (0,)),
    Case(
        "group",
        nj.group_norm,
        nj.group_norm(num_groups=2),
        (4, 3, 3, 8),
        _group(2, 1e-6),
        (1, 2, 3),
        channels_first=nj.group_norm(num_groups=2, feature_axis=1),
    ),
    Case(
        "group by size",
        nj.group_norm,
        nj.group_norm(num_groups=None, group_size=2, use_scale=False),
        (4, 8),
        _group(4, 1e-6),
        (1,),
    ),
    Case(
        "instance",
        nj.instance_norm,
        nj.instance_norm(),
        (4, 3, 4, 5),
        _direct((1, 2), (3,), epsilon=1e-6),
        (1, 2),
        channels_first=nj.instance_norm(feature_axes=1),
    ),
    Case(
        "instance, tracked",
        nj.instance_norm,
        nj.instance_norm(feature_axes=1, track_running=True),
        (4, 5, 6),
        _direct((2,), (1,), epsilon=1e-6),
        (2,),
    ),
    Case(
        "chain: batch-channel", nj.chain, nj.chain(nj.batch_norm(), nj.group_norm(num_groups=2)), (8, 16), _bcn, (0, 1)
    ),
    Case(
        "split: instance-batch",
        nj.split,
        nj.split([nj.instance_norm(), nj.batch_norm()]),
        (4, 3, 3, 6),
        _ibn,
        (0, 1, 2),
    ),
    Case(
        "blend",
        nj.blend,
        nj.blend([nj.layer_norm(), nj.batch_norm()], [0.25, 0.75]),
        (8, 6),
        _blend,
        (0, 1),
    ),
]
