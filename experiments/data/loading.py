"""One code path from a dataset's name to arrays, through TFDS data sources (array_record, no TensorFlow)."""

import contextlib
import difflib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from experiments import UsageError
from experiments.data import embedded, photos, preflight

# Builders are Any here: TFDS builds their signatures with decorators that type checkers do not see through.
EMBEDDED: dict[str, Any] = {"digits": embedded.Digits, "mnist": embedded.Mnist, "photos": photos.Photos}


class Images(NamedTuple):
    """Images `(n, h, w, channels)` of uint8 and their labels `(n,)` of int32."""

    images: np.ndarray
    labels: np.ndarray


def default_data_dir() -> Path:
    """`TFDS_DATA_DIR` if set, else a folder in the user's cache."""
    if given := os.environ.get("TFDS_DATA_DIR"):
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "normjax" / "datasets"


def require_available(name: str, data_dir: Path | str | None = None) -> None:
    """Raises, within seconds, unless `load` can prepare the dataset or finds it prepared. Downloads nothing.

    Args:
      name: As for `load`.
      data_dir: As for `load`.

    Raises:
      UsageError: If the name is unknown.
      ConnectionError: If the dataset has to be downloaded and its host does not answer.
    """
    _available(name, data_dir, EMBEDDED)


def load(name: str, split: str = "train", data_dir: Path | str | None = None) -> Images:
    """Loads a split of an image-classification dataset, preparing it on first use.

    Args:
      name: `"digits"`, `"mnist"` or `"photos"` (embedded, no network), else any TFDS name: `"cifar10"`,
        `"svhn_cropped"`, ...
      split: A TFDS split: `"train"`, `"train[:512]"`, ...
      data_dir: Where prepared datasets lie; `None` is `default_data_dir()`.

    Returns:
      The examples of the split.

    Raises:
      UsageError: If the name or split is unknown, or the dataset does not hold labelled images of one size.
      ConnectionError: If the dataset has to be downloaded and its host does not answer.
    """
    builder = prepared(name, data_dir, EMBEDDED)
    _check_features(name, builder)
    try:
        source = builder.as_data_source(split=split)
    except ValueError as error:
        sizes = ", ".join(f"{key} ({info.num_examples})" for key, info in sorted(builder.info.splits.items()))
        raise UsageError(f"Dataset {name!r} has no examples {split!r}; it has the splits {sizes}.") from error
    images, labels = zip(*((example["image"], example["label"]) for example in source), strict=True)
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise UsageError(f"Dataset {name!r} has images of {len(shapes)} different sizes; expected one size.")
    return Images(np.stack(images), np.asarray(labels, np.int32))


def prepared(name: str, data_dir: Path | str | None, embedded: Mapping[str, Any]) -> Any:
    """The builder of a dataset whose files are there, after preparing them on first use.

    Args:
      name: A name in `embedded`, else any TFDS name.
      data_dir: As for `load`.
      embedded: Builders that need no network, by name.

    Returns:
      The TFDS builder.

    Raises:
      UsageError: If the name is unknown.
      ConnectionError: If the dataset has to be downloaded and its host does not answer.
    """
    builder = _available(name, data_dir, embedded)
    if not _is_prepared(builder):
        _prepare(builder, quiet=name in embedded)
    return builder


def _available(name: str, data_dir: Path | str | None, embedded: Mapping[str, Any]) -> Any:
    builder = _builder(name, data_dir, embedded)
    if name not in embedded and not _is_prepared(builder):
        preflight.require_reachable(name, builder.url_infos or (), embedded)
    return builder


def _prepare(builder: Any, *, quiet: bool) -> None:
    if not quiet:
        builder.download_and_prepare()
        return
    # TFDS announces a download of unknown size and draws progress bars; here neither is true nor needed.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder.download_and_prepare()


def _is_prepared(builder: Any) -> bool:
    return builder.data_path.is_dir() and builder.is_prepared()


def _builder(name: str, data_dir: Path | str | None, embedded: Mapping[str, Any]) -> Any:
    data_dir = Path(data_dir) if data_dir is not None else default_data_dir()
    if name in embedded:
        return embedded[name](data_dir=data_dir, file_format="array_record")
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        close = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False))
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(
            f"Unknown dataset {name!r}: expected {' or '.join(embedded)} (embedded), or a TFDS name, see "
            f"https://www.tensorflow.org/datasets/catalog."
            f"{hint}"
        ) from error


def _check_features(name: str, builder: Any) -> None:
    features = list(builder.info.features or ())
    if not {"image", "label"} <= set(features):
        raise UsageError(f"Dataset {name!r} has the features {features}; expected 'image' and 'label'.")
