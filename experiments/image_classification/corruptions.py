"""What happens to test images: a few lines for each of five corruptions, on images in [0, 1]."""

from collections.abc import Callable, Mapping

import numpy as np
from scipy import ndimage

Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def noise(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Adds independent normal noise of deviation `strength`."""
    return images + strength * rng.standard_normal(images.shape, np.float32)


def blur(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian filter whose deviation is `strength` pixels."""
    del rng
    return ndimage.gaussian_filter(images, (0, strength, strength, 0))


def contrast(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Takes the fraction `strength` of each image's distance from its mean away."""
    del rng
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    return mean + (1 - strength) * (images - mean)


def brightness(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Adds `strength`."""
    del rng
    return images + strength


def cast(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Other light: the first channel times 1 + `strength`, the last times 1 - `strength`, evenly in between."""
    del rng
    return images * np.linspace(1 + strength, 1 - strength, images.shape[-1], dtype=np.float32)


CORRUPTIONS: Mapping[str, tuple[Corruption, tuple[float, float]]] = {
    "noise": (noise, (0.1, 0.2)),
    "blur": (blur, (0.7, 1.4)),
    "contrast": (contrast, (0.5, 0.75)),
    "brightness": (brightness, (0.2, 0.4)),
    "cast": (cast, (0.25, 0.5)),
}
# The same noise in every arm.
SEED = 0


def corrupted(images: np.ndarray) -> dict[str, np.ndarray]:
    """The images as they are, and under every corruption at both strengths.

    Args:
      images: `(n, h, w, channels)` of float32 in [0, 1].

    Returns:
      Arrays like `images`, in [0, 1], by `"clean"` and `"<corruption> <strength>"`.
    """
    found = {"clean": images}
    for name, (corrupt, strengths) in CORRUPTIONS.items():
        for strength in strengths:
            changed = corrupt(images, strength, np.random.default_rng(SEED))
            found[f"{name} {strength:g}"] = np.clip(changed, 0, 1).astype(np.float32)
    return found
