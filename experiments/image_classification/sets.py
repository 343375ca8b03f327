"""The images of a run: splits by what the dataset has, in [0, 1], shrunk."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from experiments import UsageError, data
from experiments.data import Images, loading
from experiments.image_classification.config import Config


class Sets(NamedTuple):
    """Images `(n, h, w, channels)` of float32 in [0, 1] with labels `(n,)`: to learn, to choose rates, to test.

    Attributes:
      train, validation, test: The three.
      splits: The TFDS splits that they are.
      classes: Number of labels.
    """

    train: Images
    validation: Images
    test: Images
    splits: tuple[str, str, str]
    classes: int


def load(config: Config) -> Sets:
    """Loads the sets, preparing the dataset on first use.

    Args:
      config: Of the run.

    Returns:
      The sets.

    Raises:
      UsageError: If the dataset is unknown, its images are not square, or `config.shrink` or the transformer's patches
        do not divide them.
      ConnectionError: If the dataset has to be downloaded and its host does not answer.
    """
    available = loading.prepared(config.dataset, config.data_dir, loading.EMBEDDED).info.splits
    splits = split_names(list(available))
    train, validation, test = (data.load(config.dataset, split, config.data_dir) for split in splits)
    train = Images(train.images[: config.images], train.labels[: config.images])
    _check_sides(config, *train.images.shape[1:3])
    white = float(train.images.max())

    def made(part: Images) -> Images:
        return Images(shrunk(part.images, config.shrink) / np.float32(white), part.labels)

    classes = 1 + max(int(part.labels.max()) for part in (train, validation, test))
    return Sets(made(train), made(validation), made(test), splits, classes)


def _check_sides(config: Config, height: int, width: int) -> None:
    found = f"{config.dataset} has images of {height}x{width}; expected square ones, with sides that are a multiple of"
    if height != width or height % config.shrink:
        raise UsageError(f"{found} --shrink {config.shrink}.")
    side = height // config.shrink
    if side % config.patch:
        fitting = ", ".join(str(patch) for patch in range(1, side + 1) if side % patch == 0)
        raise UsageError(
            f"{found} --shrink {config.shrink} times --patch {config.patch}; with this --shrink, --patch may be "
            f"{fitting}."
        )


def split_names(there: Collection[str]) -> tuple[str, str, str]:
    """What to learn from, to choose rates on and to test on.

    Args:
      there: The splits of a dataset, `train` among them.

    Returns:
      TFDS splits, which share no image.

    Example:
      >>> split_names(["test", "train"])
      ('train[:90%]', 'train[90%:]', 'test')
    """
    held_out = [split for split in ("validation", "test") if split in there]
    if len(held_out) == 2:
        return "train", "validation", "test"
    if held_out:
        return "train[:90%]", "train[90%:]", held_out[0]
    return "train[:80%]", "train[80%:90%]", "train[90%:]"


def shrunk(images: np.ndarray, factor: int) -> np.ndarray:
    """Means over squares of `factor` times `factor` pixels, `(n, h / factor, w / factor, channels)` of float32."""
    n, height, width, channels = images.shape
    squares = images.reshape(n, height // factor, factor, width // factor, factor, channels)
    return squares.mean(axis=(2, 4), dtype=np.float32)
