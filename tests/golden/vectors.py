"""Finds recorded outputs of the authors' own code by their JSON sidecars, and decodes the arrays beside them."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

DEFAULT_FOLDER = pathlib.Path(__file__).resolve().parents[3] / "shared" / "golden"


def folder() -> pathlib.Path:
    """The folder named by NORMJAX_GOLDEN, or `../shared/golden` seen from the project's root."""
    return pathlib.Path(os.environ.get("NORMJAX_GOLDEN", DEFAULT_FOLDER))


@dataclasses.dataclass(frozen=True)
class Vector:
    """One recorded case: its name, its sidecar and the path of its arrays."""

    name: str
    sidecar: dict[str, Any]
    path: pathlib.Path

    @property
    def hyper(self) -> dict[str, Any]:
        return self.sidecar.get("hyper", {})

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, bfloat16 bit patterns decoded."""
        described = self.sidecar.get("arrays", {})
        with np.load(self.path) as stored:
            arrays = {key: stored[key] for key in stored.files}
        for key, value in arrays.items():
            entry = described.get(key)
            if isinstance(entry, dict) and entry.get("dtype") == "bfloat16":
                arrays[key] = value.view(ml_dtypes.bfloat16)
        return arrays


def group(arrays: dict[str, np.ndarray], *parts: str) -> dict[str, np.ndarray]:
    """The arrays below the given parts, in either key scheme ("in/x" or "in.x"); names may hold dots of their own."""
    starts = [separator.join([*filter(None, parts), ""]) for separator in "/."]
    return {k[len(start) :]: v for start in starts for k, v in arrays.items() if start and k.startswith(start)}


def find() -> list[Vector]:
    """Every sidecar of the folder that has arrays beside it, by name."""
    found = []
    for sidecar in sorted(folder().glob("*.json")):
        arrays = sidecar.with_suffix(".npz")
        if arrays.exists():
            found.append(Vector(sidecar.stem, json.loads(sidecar.read_text()), arrays))
    return found
