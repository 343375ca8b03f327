"""Text as bytes: one code path for the Python standard library, always there, and any TFDS dataset with a text."""

import hashlib
import platform
import sysconfig
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import grain
import numpy as np
import tensorflow_datasets as tfds

from experiments import UsageError
from experiments.data import loading

SEPARATOR = 0  # between documents; no text holds it
# Folders that come and go between installations, or repeat themselves.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}
_VALIDATION_SHARE = 20


class PythonSource(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The source files of the running Python's standard library; every twentieth, by its name, is for validation."""

    VERSION = tfds.core.Version("1.0.0")
    # Another Python has other sources: each gets a folder of its own.
    BUILDER_CONFIGS = [  # noqa: RUF012 -- TFDS's own form
        tfds.core.BuilderConfig(name=f"cpython_{platform.python_version().replace('.', '_').replace('+', '_')}")
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        # Not dataset_info_from_configs, which demands metadata files in a package directory of the builder's own.
        return tfds.core.DatasetInfo(
            builder=self,
            description="Python source files of CPython's standard library, without tests, idlelib and site-packages.",
            features=tfds.features.FeaturesDict({"path": tfds.features.Text(), "text": tfds.features.Text()}),
        )

    def _split_generators(self, dl_manager):  # pyright: ignore[reportIncompatibleMethodOverride] -- TFDS's own form
        del dl_manager
        held_out = {path: zlib.crc32(path.encode()) % _VALIDATION_SHARE == 0 for path in _files()}
        return {
            "train": self._generate_examples(path for path, held in held_out.items() if not held),
            "validation": self._generate_examples(path for path, held in held_out.items() if held),
        }

    def _generate_examples(self, paths: Iterable[str]):
        for path in paths:
            yield path, {"path": path, "text": (_library() / path).read_bytes()}


EMBEDDED: Mapping[str, Any] = {"python": PythonSource}


class Text(NamedTuple):
    """Two runs of bytes, documents with a zero after each.

    Attributes:
      train, validation: `(n,)` of uint8.
      splits: The TFDS splits that they are.
      sha256: Of both, as a name for exactly this text.
    """

    train: np.ndarray
    validation: np.ndarray
    splits: tuple[str, str]
    sha256: str


def load_text(name: str, data_dir: Path | str | None = None, *, most_bytes: int = 1 << 26) -> Text:
    """Loads a text dataset into memory as bytes, preparing it on first use.

    Validation is the dataset's own split of that name, else `test`, else the last twentieth of `train`.

    Args:
      name: `"python"` (embedded, no network), else any TFDS name with a feature `text`: `"lm1b"`, `"c4/en"`, ...
      data_dir: Where prepared datasets lie; `None` is `default_data_dir()`.
      most_bytes: The training text ends after as many; the validation text after a sixteenth of it.

    Returns:
      The text.

    Raises:
      UsageError: If the name is unknown, or the dataset has no text.
      ConnectionError: If the dataset has to be downloaded and its host does not answer.
    """
    if name not in EMBEDDED:
        import tensorflow_datasets.text  # noqa: F401 -- registers c4 and others, which TFDS finds by no other way
    builder = loading.prepared(name, data_dir, EMBEDDED)
    if "text" not in (builder.info.features or ()):
        raise UsageError(f"Dataset {name!r} has the features {list(builder.info.features or ())}; expected 'text'.")
    splits = _splits(name, list(builder.info.splits))
    train, validation = (
        _joined(builder.as_data_source(split=split), most)
        for split, most in zip(splits, (most_bytes, most_bytes // 16), strict=True)
    )
    digest = hashlib.sha256(train.tobytes() + validation.tobytes()).hexdigest()
    return Text(train, validation, splits, digest)


def batches(tokens: np.ndarray, length: int, batch_size: int, seed: int) -> grain.MapDataset:
    """Shuffled windows of a text: batch `i` is `dataset[i]`, at any time and in any order, so nothing needs resuming.

    Args:
      tokens: `(n,)` of uint8.
      length: Predictions per window; a window has one byte more, which is the next one's first.
      batch_size: Windows per batch.
      seed: Of the order, which is another one in each epoch.

    Returns:
      A dataset without end, of `(batch_size, length + 1)` uint8.

    Raises:
      UsageError: If the text is shorter than one batch.
    """
    windows = _Windows(tokens, length)
    if len(windows) < batch_size:
        raise UsageError(
            f"the text has {len(tokens)} bytes, which is {len(windows)} windows of {length}; expected at least one "
            f"batch of {batch_size}. Take shorter windows or fewer of them."
        )
    return grain.MapDataset.source(windows).seed(seed).shuffle().repeat().batch(batch_size)


class _Windows:
    """The text cut into windows: a source for grain."""

    def __init__(self, tokens: np.ndarray, length: int):
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return max(len(self.tokens) - 1, 0) // self.length

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        start = index.__index__() * self.length
        return self.tokens[start : start + self.length + 1]


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _files() -> list[str]:
    paths = (path.relative_to(_library()) for path in _library().rglob("*.py"))
    return sorted(path.as_posix() for path in paths if not _LEFT_OUT & set(path.parts))


def _splits(name: str, there: list[str]) -> tuple[str, str]:
    if "train" not in there:
        raise UsageError(f"Dataset {name!r} has the splits {there}; expected 'train' among them.")
    held_out = next((split for split in ("validation", "test") if split in there), None)
    return ("train", held_out) if held_out else ("train[:95%]", "train[95%:]")


def _joined(source: Any, most_bytes: int) -> np.ndarray:
    found, size = [], 0
    for index in range(len(source)):
        text = source[index]["text"]
        found.append((text.encode() if isinstance(text, str) else text) + bytes([SEPARATOR]))
        size += len(found[-1])
        if size >= most_bytes:
            break
    return np.frombuffer(b"".join(found), np.uint8)[:most_bytes]
