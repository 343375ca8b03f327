"""Real colour images of 32x32 pixels without a network: crops of the pictures that lie inside scikit-image's wheel.

The label is the picture that a crop is from. Each picture is cut into squares of 64 pixels: one of five, a knight's
move apart, is for the test, one for validation, and a crop lies within one square. So no pixel is in crops of two
splits, while all splits see the same objects in the same light.
"""

import itertools

import numpy as np

from experiments.data.embedded import EmbeddedImages, package_file

SIDE = 32
SQUARE = 64
PER_PICTURE = {"train": 512, "validation": 64, "test": 128}
# Every colour photograph of the wheel; of the stereo pair the left one.
PICTURES = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "immunohistochemistry": "ihc.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}


class Photos(EmbeddedImages, skip_registration=True):
    """Crops of the colour pictures of scikit-image, 512 of each to learn, 64 for validation, 128 to test."""

    SHAPE = (SIDE, SIDE, 3)
    DESCRIPTION = "Crops of 32x32 pixels from the colour pictures shipped with scikit-image; the label is the picture."
    LABELS = {"names": list(PICTURES)}  # noqa: RUF012 -- a constant, as all of a builder's attributes are
    SPLITS = tuple(PER_PICTURE)

    @staticmethod
    def _arrays(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
        of_pictures = [
            crops(picture(name), split, PER_PICTURE[split], np.random.default_rng([label, *split.encode()]))
            for label, name in enumerate(PICTURES)
        ]
        return np.concatenate(of_pictures), np.repeat(np.arange(len(PICTURES)), PER_PICTURE[split])


def picture(name: str) -> np.ndarray:
    """A whole picture, `(height, width, 3)` of uint8, by its name in `PICTURES`."""
    from PIL import Image  # of scikit-image's own dependencies, needed only when the set is first prepared

    with Image.open(package_file("photos", "skimage", "scikit-image", "data", PICTURES[name])) as image:
        return np.asarray(image.convert("RGB"))


def squares(height: int, width: int, split: str) -> list[tuple[int, int]]:
    """Upper left corners of the squares of a picture that belong to a split.

    Args:
      height: Of the picture, in pixels.
      width: Of the picture.
      split: `"train"`, `"validation"` or `"test"`.

    Returns:
      Rows and columns, in pixels. Of five neighbours in a row and of five in a column one is for the test and one for
      validation; what is left of the picture at its lower and right edge belongs to no split.

    Example:
      >>> squares(128, 320, "test")
      [(0, 0), (64, 192)]
    """
    grid = itertools.product(range(height // SQUARE), range(width // SQUARE))
    classes = {"test": (0,), "validation": (1,), "train": (2, 3, 4)}[split]
    return [(r * SQUARE, c * SQUARE) for r, c in grid if (c + 2 * r) % 5 in classes]


def crops(image: np.ndarray, split: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random crops of a picture, each within one square of the split.

    Args:
      image: `(height, width, channels)`, at least one square high and five wide.
      split: `"train"` or `"test"`.
      count: How many; the squares take turns.
      rng: Where in a square a crop lies.

    Returns:
      `(count, 32, 32, channels)`.
    """
    corners = itertools.islice(itertools.cycle(squares(image.shape[0], image.shape[1], split)), count)
    inside = rng.integers(SQUARE - SIDE + 1, size=(count, 2))
    places = [(r + dr, c + dc) for (r, c), (dr, dc) in zip(corners, inside.tolist(), strict=True)]
    return np.stack([image[r : r + SIDE, c : c + SIDE] for r, c in places])
