"""Hugging Face checkpoints as files: a config.json beside one safetensors file, or several."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from normjax.loaders.convert import from_hf, to_hf


def load(
    path: str | Path | Sequence[str | Path],
    *,
    config: Mapping[str, Any] | None = None,
    param_dtype: Any = None,
    ignore: Sequence[str] = (),
    **changes: Any,
) -> Any:
    """Reads a Hugging Face checkpoint of BERT, Gemma 2 or 3 (text), GPT-2, Llama, OLMo 2, Qwen 3 or ViT.

    Args:
      path: A folder, a safetensors file, or several that hold parts of one model.
      config: What its config.json holds; `None` reads the one in the folder of the first file.
      param_dtype, ignore: As in `from_hf`.
      **changes: Fields of `TransformerConfig`, such as `scan=True`.

    Returns:
      A `LanguageModel`; for BERT an `Encoder`, for ViT a `ViT`.

    Raises:
      ValueError: If a file is no safetensors file, or as in `from_hf`.
      FileNotFoundError: If there are no such files.
      ImportError: If safetensors is not installed: `pip install normjax[loaders]`.

    Example:
      >>> import tempfile, jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> hf = {"model_type": "gpt2", "n_layer": 1, "n_embd": 4, "n_head": 2, "n_positions": 8, "vocab_size": 5}
      >>> config, options = nj.loaders.config_from_hf(hf)
      >>> model = nj.models.LanguageModel(config, **options, rngs=nnx.Rngs(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     nj.loaders.save(model, folder, hf)
      ...     again = nj.loaders.load(folder)
      >>> tokens = jnp.array([[1, 2, 3]])
      >>> bool((model(tokens) == again(tokens)).all())
      True
    """
    files = _files(path)
    hf = json.loads((files[0].parent / "config.json").read_text()) if config is None else config
    with _opened(files) as tensors:
        return from_hf(tensors, hf, param_dtype=param_dtype, ignore=ignore, **changes)


def save(model: Any, folder: str | Path, config: Mapping[str, Any]) -> None:
    """Writes a checkpoint that Hugging Face's transformers read.

    Args:
      model: As `load` makes it.
      folder: Where `config.json` and `model.safetensors` go; made if it is not there.
      config: What config.json shall hold.

    Returns:
      Nothing.

    Raises:
      ValueError: If the model is not one that the configuration describes.
      ImportError: If safetensors is not installed: `pip install normjax[loaders]`.

    Example:
      >>> import os, tempfile, normjax as nj
      >>> from flax import nnx
      >>> hf = {"model_type": "gpt2", "n_layer": 1, "n_embd": 4, "n_head": 2, "n_positions": 8, "vocab_size": 5}
      >>> config, options = nj.loaders.config_from_hf(hf)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     nj.loaders.save(nj.models.LanguageModel(config, **options, rngs=nnx.Rngs(0)), folder, hf)
      ...     print(sorted(os.listdir(folder)))
      ['config.json', 'model.safetensors']
    """
    _safetensors()
    from safetensors.numpy import save_file

    tensors, target = to_hf(model, config), Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    # Transformers refuse a file that does not name the framework.
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")


def _files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    if not isinstance(path, str | Path):
        files = [Path(p) for p in path]
    elif Path(path).is_dir():
        files = _of_folder(Path(path))
    else:
        files = [Path(path)]
    if not files:
        raise ValueError("path=() names no file.")
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"there is no {file}.")
        if file.suffix != ".safetensors":
            raise ValueError(
                f"{file} is no safetensors file, and others are not opened: unpickling runs whatever code is in them. "
                'In PyTorch, `safetensors.torch.save_file(torch.load(file, weights_only=True), "model.safetensors")` '
                "converts it."
            )
    return files


def _of_folder(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    # Refused with what there is to do about it, where only these are there.
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))
    if not pickled:
        raise FileNotFoundError(f"there is neither model.safetensors nor model.safetensors.index.json in {folder}.")
    return pickled[:1]


def _safetensors() -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise ImportError("reading and writing checkpoints needs safetensors: pip install normjax[loaders]") from error
    return safetensors


class _Tensors(Mapping[str, Any]):
    """The tensors of open files by name, each read when it is asked for."""

    def __init__(self, files: Iterable[Any]):
        self._files: dict[str, Any] = {}
        for file in files:
            # An open file is no mapping.
            for name in file.keys():  # noqa: SIM118
                if name in self._files:
                    raise ValueError(f"the tensor {name} is in several files; give those of one model.")
                self._files[name] = file

    def __getitem__(self, name: str) -> Any:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@contextlib.contextmanager
def _opened(files: Iterable[Path]) -> Iterator[Mapping[str, Any]]:
    with contextlib.ExitStack() as stack:
        library = _safetensors()
        try:
            opened = [stack.enter_context(library.safe_open(file, framework="numpy")) for file in files]
        except library.SafetensorError as error:
            raise ValueError(f"one of {list(map(str, files))} is no safetensors file: {error}.") from error
        yield _Tensors(opened)
