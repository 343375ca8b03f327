"""Tolerances of the comparison with recorded outputs; each one is a formula with a reason."""

import ml_dtypes
import numpy as np


def assert_close(actual, expected: np.ndarray, relative: float, what: str) -> None:
    """Asserts |actual - expected| <= relative * max(|expected|, mean |expected|), element by element.

    The mean is there because an element that is small by cancellation carries the rounding errors of its summands,
    whose size is that of the whole array.
    """
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    assert np.array_equal(np.isfinite(actual), np.isfinite(expected)), f"{what}: not finite where it should be"
    worst = _worst(actual, expected, relative)
    assert worst <= 1, f"{what}: {worst:.3g} times the tolerance {relative:.3g}"


def is_close(actual, expected: np.ndarray, relative: float) -> bool:
    """Whether `assert_close` would pass."""
    return _worst(np.asarray(actual), expected, relative) <= 1


def _worst(actual: np.ndarray, expected: np.ndarray, relative: float) -> float:
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    bound = relative * np.maximum(np.abs(expected), np.mean(np.abs(expected))) + np.finfo(np.float64).tiny
    return float(np.max(np.abs(actual - expected) / bound, initial=0.0))


def assert_same_bits(actual, expected: np.ndarray, exact, what: str) -> None:
    """Asserts that two bfloat16 arrays are equal bit by bit (a zero's sign aside).

    Two kinds of elements may differ: those where ours is the correct rounding of the exact value and the recorded one,
    misled by its float32 statistics, is not; and those where the exact value lies so near the middle between the two
    neighbours (8 float32 ulps) that float32 cannot tell on which side.
    """
    actual, exact = np.asarray(actual), np.asarray(exact)
    assert actual.dtype == expected.dtype == ml_dtypes.bfloat16, f"{what}: dtypes {actual.dtype}, {expected.dtype}"
    rounded = exact.astype(ml_dtypes.bfloat16).astype(np.float64)
    actual, expected, exact = (array.astype(np.float64) for array in (actual, expected, exact))
    undecided = np.abs(exact - (actual + expected) / 2) <= 8 * np.finfo(np.float32).eps * np.abs(exact)
    wrong = (actual != expected) & (actual != rounded) & ~undecided
    assert not wrong.any(), f"{what}: {np.count_nonzero(wrong)} of {expected.size} elements differ"
