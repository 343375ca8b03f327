"""Results as JSON that says what they were measured with."""

import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from typing import Any

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


def write(path: pathlib.Path, rows: Iterable[dict[str, Any]], *, packages: tuple[str, ...] = (), **about: Any) -> None:
    """Writes rows, one a line, under versions, commit and whatever else is said about them; whole or not at all."""
    _write(path, {"versions": versions(*PACKAGES, *packages), "commit": commit(), **about}, rows)


def merge(path: pathlib.Path, names: Iterable[str], rows: Iterable[dict[str, Any]], **about: dict[str, Any]) -> None:
    """Adds rows to those of a file, each in the place of the one with the same names, if there is a file.

    Raises:
      ValueError: If other versions of the packages wrote the file: its rows and these could not be compared.
    """
    names, head, now = tuple(names), read(path), versions(*PACKAGES)
    found = {tuple(row[n] for n in names): row for row in (*head.pop("rows"), *rows)}
    then = head.setdefault("versions", {})
    changed = [p for p in PACKAGES if then.get(p, now.get(p)) != now.get(p, then.get(p))]
    if changed:
        raise ValueError(
            f"{path} was written with {_named(then, changed)}, and this is {_named(now, changed)}: rows of two "
            "compilers do not belong into one file; name another, or remove it and measure all rows again."
        )
    for name, what in {"versions": now, **about}.items():
        head.setdefault(name, {}).update(what)
    _write(path, head, found.values())


def read(path: pathlib.Path) -> dict[str, Any]:
    """What a file says; no rows where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}


def _named(found: dict[str, str], packages: list[str]) -> str:
    return ", ".join(f"{package} {found[package]}" for package in packages)


def _write(path: pathlib.Path, head: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
    lines = ",\n".join("    " + json.dumps(row, allow_nan=False) for row in rows)
    start = json.dumps(head, indent=2, allow_nan=False).removesuffix("\n}")
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(f'{start},\n  "rows": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
    os.replace(partial, path)


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(record: pathlib.Path | None = None) -> str | None:
    """The commit of the code, with `-dirty` if tracked files differ from it; `None` outside a git checkout.

    Args:
      record: A file that may differ: the one that the results go to.
    """
    but = []
    if record is not None and record.resolve().is_relative_to(REPOSITORY):
        but = [":/", f":(exclude,top){record.resolve().relative_to(REPOSITORY).as_posix()}"]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *but)
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def table(rows: list[dict[str, str]]) -> str:
    """Rows of the same keys as aligned text, whole whatever the width of the terminal."""
    if not rows:
        return ""
    widths = {k: max(len(k), *(len(row[k]) for row in rows)) for k in rows[0]}
    lines = [{k: k for k in widths}, {k: "-" * w for k, w in widths.items()}, *rows]
    return "\n".join("  ".join(line[k].ljust(w) for k, w in widths.items()).rstrip() for line in lines)
