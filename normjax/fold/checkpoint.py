"""A trained language model as a folder: `config.json`, and its parameters through orbax or safetensors.

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

from normjax import _checks
from normjax.fold._config import config_from_json, config_to_json
from normjax.fold._rebuild import filled, options_of
from normjax.models import LanguageModel
from normjax.optim._paths import boxed_leaves

Format = Literal["orbax", "safetensors"]
_CONFIG, _ORBAX, _SAFETENSORS = "config.json", "parameters", "parameters.safetensors"


def save_model(path: str | os.PathLike[str], model: LanguageModel, *, format: Format = "orbax") -> None:
    """Writes a language model.

    Args:
      path: A folder that does not exist yet.
      model: The model; what was folded keeps its mark.
      format: How the parameters are stored.

    Returns:
      Nothing.

    Raises:
      FileExistsError: If the path exists.
      TypeError: If the model is no `LanguageModel`.
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
    if not isinstance(model, LanguageModel):
        raise TypeError(f"expected a LanguageModel, got {type(model).__name__}.")
    target = Path(path).absolute()
    if target.exists():
        raise FileExistsError(f"{target} exists; checkpoints are not written over. Give a new path.")
    variables = boxed_leaves(nnx.state(model))
    values = {name: np.asarray(jax.device_get(v.get_value())) for name, v in variables.items()}
    marked = sorted(name for name, v in variables.items() if v.get_metadata().get("inference_only"))
    described = {"format": "normjax.models.LanguageModel", "version": 1, "inference_only": marked}
    described |= {"model": options_of(model), "config": config_to_json(model.stack.config)}
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        (partial / _CONFIG).write_text(json.dumps(described, indent=1), encoding="utf-8")
        _WRITE[format](partial, values)
        os.rename(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load_model(path: str | os.PathLike[str]) -> LanguageModel:
    """Reads a language model that `save_model` wrote.

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
    known = (described.get("format"), described.get("version"))
    if known != ("normjax.models.LanguageModel", 1):
        raise ValueError(f"{folder} holds {known}; this version reads ('normjax.models.LanguageModel', 1).")
    config = config_from_json(described["config"])
    target = nnx.eval_shape(lambda: LanguageModel(config, **described["model"], rngs=nnx.Rngs(0)))
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
