"""What a run leaves on disk, written so that killing it loses nothing that was reported."""

import dataclasses
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent


def plain(value: Any) -> Any:
    """Turns paths, tuples, arrays and dataclasses into what JSON knows; NaN and infinities become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends one JSON line and hands it to the operating system before returning."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain(record), allow_nan=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads JSON lines, cutting off a last line that a kill left incomplete."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole, newline, torn = text.rpartition("\n")
    if torn:
        write_text(path, whole + newline)
    return [json.loads(line) for line in whole.splitlines()]


def environment(packages: Iterable[str] = ("jax", "jaxlib", "optax", "flax", "numpy")) -> dict[str, Any]:
    """Device, versions and commit, for the record of a run."""
    device = jax.devices()[0]
    return {
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "machine": {"architecture": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of the code, with `-dirty` if tracked files differ from it; `None` outside a git checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return None
