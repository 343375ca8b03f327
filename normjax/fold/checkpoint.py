"""A trained model as a folder: `config.json`, and its parameters through orbax or safetensors.

The folder is written beside its place and renamed into it: it is there whole or not at all, and never written over.
Needs `pip install "normjax[checkpoints]"`.
"""

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normjax import _checks, models
from normjax.fold import _described
from normjax.fold._rebuild import filled, marked
from normjax.optim._paths import boxed_leaves

Format = Literal["orbax", "safetensors"]
_CONFIG, _ORBAX, _SAFETENSORS = "config.json", "parameters", "parameters.safetensors"
_PREFIX, _VERSION = "normjax.models.", 1


def save_model(path: str | os.PathLike[str], model: nnx.Module, *, format: Format = "orbax") -> None:
    """Writes a language model, encoder, ViT, ResNet or MLP classifier.

    Args:
      path: A folder that does not exist yet.
      model: The model; what was folded keeps its mark.
      format: How the parameters are stored.

    Returns:
      Nothing.

    Raises:
      FileExistsError: If the path exists.
      TypeError: If the model is none of these.
      ValueError: If its configuration cannot be stored: a composed norm, an activation that is no function of JAX's.
      ModuleNotFoundError: If the format's package is not installed.

    Example:
      >>> import tempfile, jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> from normjax.fold.checkpoint import load_model, save_model
      >>> config = nj.models.presets.llama(layers=1, features=8, heads=2, hidden=16)
      >>> model, tokens = nj.models.LanguageModel(config, vocabulary=11, rngs=nnx.Rngs(0)), jnp.array([[1, 2]])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_model(f"{folder}/model", model)
      ...     bool((load_model(f"{folder}/model")(tokens) == model(tokens)).all())
      True
    """
    _checks.check_choice("format", format, Format)
    kind = type(model).__name__
    if kind not in _described.KINDS or not isinstance(model, getattr(models, kind)):
        raise TypeError(f"expected a {', '.join(_described.KINDS[:-1])} or {_described.KINDS[-1]}, got {kind}.")
    target = Path(path).absolute()
    if target.exists():
        raise FileExistsError(f"{target} exists; checkpoints are not written over. Give a new path.")
    variables = boxed_leaves(nnx.state(model))
    values = {name: np.asarray(jax.device_get(v.get_value())) for name, v in variables.items()}
    described = {"format": _PREFIX + kind, "version": _VERSION, "inference_only": sorted(marked(variables))}
    described |= _described.to_json(model)
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        (partial / _CONFIG).write_text(json.dumps(described, indent=1), encoding="utf-8")
        _WRITE[format](partial, values)
        os.rename(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load_model(path: str | os.PathLike[str]) -> Any:
    """Reads a model that `save_model` wrote.

    Args:
      path: The folder.

    Returns:
      The model; what was folded is marked for inference only.

    Raises:
      FileNotFoundError: If the folder holds no such model.
      ValueError: If it was written by another version, or parameters and configuration do not fit.
      ModuleNotFoundError: If the format's package is not installed.

    Example:
      >>> from normjax.fold.checkpoint import load_model
      >>> load_model("nowhere")
      Traceback (most recent call last):
      FileNotFoundError: nowhere holds no config.json; expected a folder that save_model wrote.
    """
    folder = Path(path)
    if not (folder / _CONFIG).is_file():
        raise FileNotFoundError(f"{folder} holds no {_CONFIG}; expected a folder that save_model wrote.")
    described = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    name, version = described.get("format"), described.get("version")
    kind = str(name).removeprefix(_PREFIX)
    if kind not in _described.KINDS or version != _VERSION:
        raise ValueError(
            f"{folder} holds {(name, version)}; this version reads version {_VERSION} of {_PREFIX}"
            f"{{{', '.join(_described.KINDS)}}}."
        )
    target = _described.from_json(kind, described)
    return filled(target, _READ[format_of(folder)](folder), described["inference_only"])


def format_of(folder: Path) -> Format:
    """How the parameters of a folder are stored."""
    return "safetensors" if (folder / _SAFETENSORS).exists() else "orbax"


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{name} is not installed: pip install "normjax[checkpoints]".') from error


def _write_orbax(folder: Path, values: dict[str, np.ndarray]) -> None:
    with _package("orbax.checkpoint").StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / _ORBAX, {name.replace("/", "."): value for name, value in values.items()})


def _read_orbax(folder: Path) -> dict[str, Any]:
    ocp = _package("orbax.checkpoint")
    place = (folder / _ORBAX).absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.metadata(place).item_metadata
        # As NumPy, wherever it was written: the devices of that run need not exist here.
        like = {name: np.zeros(entry.shape, entry.dtype) for name, entry in dict(stored).items()}
        restored = checkpointer.restore(place, like)
    return {name.replace(".", "/"): value for name, value in restored.items()}


def _write_safetensors(folder: Path, values: dict[str, np.ndarray]) -> None:
    _package("safetensors.flax").save_file({n: jnp.asarray(v) for n, v in values.items()}, str(folder / _SAFETENSORS))


def _read_safetensors(folder: Path) -> dict[str, Any]:
    return dict(_package("safetensors.flax").load_file(str(folder / _SAFETENSORS)))


_WRITE = {"orbax": _write_orbax, "safetensors": _write_safetensors}
_READ = {"orbax": _read_orbax, "safetensors": _read_safetensors}
