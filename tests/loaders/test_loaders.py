"""Tiny checkpoints that Hugging Face's transformers wrote: their outputs, the way back, and what is refused."""

import dataclasses
import json
import pathlib
import pickle
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from normjax import fold, loaders, models

FOLDER = pathlib.Path(__file__).parent / "checkpoints"
NAMES = sorted(folder.name for folder in FOLDER.iterdir())


def stored(name):
    file = FOLDER / name / "model.safetensors"
    return safetensors.numpy.load_file(file), json.loads((FOLDER / name / "config.json").read_text())


def input_of(expected):
    x = expected.pop("x")
    return jnp.asarray(x, jnp.float32 if x.ndim == 4 else jnp.int32)


def outputs_of(model, x):
    y = model(x)
    if not isinstance(model, models.Encoder):
        return {"y": y}
    return {"y": y if model.head is None else model.logits(y)} | (
        {} if model.pooler is None else {"pooled": model.pooled(y)}
    )


outputs = nnx.jit(outputs_of)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_transformers(name):
    expected = dict(np.load(FOLDER / name / "expected.npz"))
    model = loaders.load(FOLDER / name)
    actual = outputs(model, input_of(expected))
    assert set(actual) == set(expected)
    for key, value in expected.items():
        # A few matrix products, norms and softmaxes in a row, each within 80 eps of its largest value.
        np.testing.assert_allclose(actual[key], value, rtol=0, atol=1e-4 * np.abs(value).max(), err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_stay_after_folding(name):
    """Every gain that a loaded model can give away is gone; BERT's stay, for its norms' outputs are its stream."""
    expected = dict(np.load(FOLDER / name / "expected.npz"))
    model = loaders.load(FOLDER / name)
    folded, report = fold.fold_model(model, untie=isinstance(model, models.LanguageModel))
    if name.startswith("bert"):
        assert not report.applied
        jax.tree.map(np.testing.assert_array_equal, nnx.state(folded), nnx.state(model))
        return
    assert report.applied
    actual = outputs(folded, input_of(expected))
    for key, value in expected.items():
        # Two more roundings of each matrix than above.
        np.testing.assert_allclose(actual[key], value, rtol=0, atol=1e-4 * np.abs(value).max(), err_msg=key)


def test_scanned_blocks_compute_the_same():
    expected = np.load(FOLDER / "llama" / "expected.npz")
    model = loaders.load(FOLDER / "llama", scan=True)
    assert model.stack.runs == (3,)
    assert loaders.load(FOLDER / "gemma3", scan=True).stack.runs == (1, 1, 1)
    actual = outputs(model, input_of(dict(expected)))
    np.testing.assert_allclose(actual["y"], expected["y"], rtol=0, atol=1e-4 * np.abs(expected["y"]).max())


@pytest.mark.parametrize(("name", "scan"), [*((name, True) for name in NAMES), ("llama", False), ("gpt2", False)])
def test_the_way_back_is_exact(name, scan, tmp_path):
    tensors, config = stored(name)
    loaders.save(loaders.load(FOLDER / name, scan=scan), tmp_path, config)
    again = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    prefix = "bert." if name == "bert" else ""
    assert set(again) == {prefix + key for key in tensors}
    for key, value in tensors.items():
        np.testing.assert_array_equal(again[prefix + key], value, err_msg=key)
    assert json.loads((tmp_path / "config.json").read_text()) == config
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def dtypes(model):
    return {v.dtype for v in jax.tree.leaves(nnx.state(model, nnx.Param))}


def test_dtypes_are_kept_or_cast():
    tensors, config = stored("llama")
    narrow = {name: value.astype(jnp.bfloat16) for name, value in tensors.items()}
    model = loaders.from_hf(narrow, config)
    assert dtypes(model) == {jnp.dtype(jnp.bfloat16)}
    assert model.stack.config.param_dtype == jnp.bfloat16
    again = loaders.to_hf(model, config)
    for name, value in narrow.items():
        np.testing.assert_array_equal(again[name].view(np.uint16), value.view(np.uint16), err_msg=name)
    wide = loaders.from_hf(narrow, config, param_dtype=jnp.float32)
    assert dtypes(wide) == {jnp.dtype(jnp.float32)}
    assert wide.stack.config.param_dtype == jnp.float32


def test_parts_older_names_and_copies(tmp_path):
    """Sharded files, TensorFlow's names, buffers and a written-out tied head are what checkpoints in use have."""
    tensors, config = stored("bert_masked")
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in tensors.items()
    }
    old |= {"bert.embeddings.position_ids": np.arange(12)[None], "cls.seq_relationship.weight": np.ones((2, 16))}
    old |= {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"]}
    names = sorted(old)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        safetensors.numpy.save_file({k: old[k] for k in own}, tmp_path / file)
    index = {"weight_map": {k: file for file, own in parts.items() for k in own}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"missing tensors: none; unexpected tensors: cls\.seq_relationship\.weight"):
        loaders.load(tmp_path)
    model = loaders.load(tmp_path, ignore=["cls.seq_relationship.*"])
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(loaders.load(FOLDER / "bert_masked")))
    again = loaders.load([tmp_path / file for file in parts], config=config, ignore=["cls.seq_relationship.*"])
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(again))
    with pytest.raises(ValueError, match="is in several files"):
        loaders.load([tmp_path / "b.safetensors", FOLDER / "bert_masked" / "model.safetensors"], config=config)


def test_a_base_model_has_no_prefix_and_old_ones_have_buffers():
    tensors, config = stored("gpt2")
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    bare |= {f"h.{i}.attn.bias": np.ones((1, 1, 12, 12), np.float32) for i in range(2)}
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.state(loaders.from_hf(bare, config)),
        nnx.state(loaders.from_hf(tensors, config)),
    )


def test_rotations_of_either_version_are_read():
    read = lambda name, **changes: loaders.config_from_hf(_without_rope(name) | changes)[0].kinds
    scaled = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    old = read("llama", rope_theta=1e4, rope_scaling=scaled | {"rope_type": "llama3"})
    assert old == loaders.config_from_hf(stored("llama")[1])[0].kinds
    old = read(
        "gemma3", rope_theta=1e4, rope_local_base_freq=100.0, rope_scaling={"rope_type": "linear", "factor": 2.0}
    )
    assert old == loaders.config_from_hf(stored("gemma3")[1])[0].kinds
    windows = [k.window for k in read("gemma3", layer_types=None, num_hidden_layers=7)]
    assert windows == [4, 4, 4, 4, 4, None, 4]


def _without_rope(name):
    return {k: v for k, v in stored(name)[1].items() if k != "rope_parameters"}


def changed(name, **changes):
    tensors, config = stored(name)
    return loaders.from_hf(tensors, config | changes)


def replaced(name, **tensors):
    own, config = stored(name)
    return loaders.from_hf({k: v for k, v in (own | tensors).items() if v is not None}, config)


FUSED = "transformer.h.0.attn.c_attn.weight"
GATE, HEAD = "model.layers.1.mlp.gate_proj.weight", {"lm_head.weight": np.ones((32, 16), np.float32)}
REFUSED = {
    "missing": (lambda: replaced("llama", **{GATE: None}), f"missing tensors: {GATE}; unexpected tensors: none"),
    "unexpected": (lambda: replaced("llama", extra=np.ones(1)), "missing tensors: none; unexpected tensors: extra"),
    "shape": (lambda: replaced("llama", **{GATE: np.ones((2, 3))}), rf"{GATE} has shape \(2, 3\), expected \(24, 16\)"),
    "fused shape": (
        lambda: replaced("gpt2", **{FUSED: np.ones((16, 24), np.float32)}),
        rf"{FUSED} has shape \(16, 24\), expected \(16, 48\)",
    ),
    "dtype": (lambda: replaced("llama", **{GATE: np.ones((24, 16))}), f"{GATE} is float64, which cannot be kept"),
    "twice": (
        lambda: replaced("bert", **{"embeddings.LayerNorm.gamma": np.ones(16, np.float32)}),
        "embeddings.LayerNorm.weight and tensors of other names are the same",
    ),
    "fewer layers": (lambda: changed("llama", num_hidden_layers=2), "unexpected tensors: model.layers.2.*and 1 more"),
    "another head": (lambda: replaced("qwen3", **HEAD), "lm_head.weight differs from model.embed_tokens.weight"),
    "model": (
        lambda: changed("llama", model_type="mamba"),
        "model_type='mamba' is not supported; expected one of bert",
    ),
    "activation": (lambda: changed("llama", hidden_act="mish"), "activation 'mish' is not supported"),
    "rotation": (
        lambda: changed("llama", rope_parameters={"rope_type": "yarn", "factor": 2.0}),
        "scaled by 'yarn' are not supported",
    ),
    "rotation by layer": (
        lambda: changed("llama", rope_parameters={"full_attention": {"rope_theta": 1e4}}),
        "differs between types of layers",
    ),
    "layers": (lambda: changed("qwen3", layer_types=["linear_attention"] * 3), "'linear_attention'.*not supported"),
    "window": (
        lambda: changed("qwen3", layer_types=["sliding_attention"] * 3, sliding_window=None),
        "there is no sliding_window",
    ),
    "biases": (lambda: changed("llama", attention_bias=True), "attention_bias and mlp_bias differ"),
    "setting": (lambda: changed("gpt2", scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
    "features of ViT": (lambda: changed("vit", qkv_bias=False), "qkv_bias=False of a 'vit' is not supported"),
    "size": (lambda: changed("llama", hidden_size=None), "has no hidden_size"),
    "architecture": (lambda: changed("bert", architectures=["BertForTokenClassification"]), "only BertModel"),
    "change": (lambda: loaders.load(FOLDER / "llama", layers=2), r"with \{'layers': 2\} it is another model.*9 param"),
    "another model": (
        lambda: loaders.to_hf(loaders.load(FOLDER / "llama"), stored("qwen3")[1]),
        "is no 'qwen3' of this configuration",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_model_of_another_class_is_refused():
    with pytest.raises(TypeError, match="expected a LanguageModel for 'llama', got a Encoder"):
        loaders.to_hf(loaders.load(FOLDER / "bert"), stored("llama")[1])


class Trap:
    """Would run on being unpickled."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_nothing_is_unpickled(tmp_path):
    shutil.copy(FOLDER / "llama" / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        loaders.load(tmp_path)
    trap = tmp_path / "pytorch_model.bin"
    trap.write_bytes(pickle.dumps(Trap()))
    for path in (tmp_path, trap):
        with pytest.raises(ValueError, match=r"pytorch_model.bin is no safetensors file.*weights_only=True"):
            loaders.load(path)
    shutil.copy(trap, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"is no safetensors file: "):
        loaders.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no .*other.safetensors"):
        loaders.load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="names no file"):
        loaders.load([])


def test_without_safetensors_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install normjax\[loaders\]"):
        loaders.load(FOLDER / "llama")


def test_a_loaded_configuration_makes_new_models():
    config, options = loaders.config_from_hf(stored("gemma2")[1])
    fresh = nnx.eval_shape(
        lambda: models.LanguageModel(dataclasses.replace(config, layers=1), **options, rngs=nnx.Rngs(0))
    )
    assert fresh.embedding_scale == 4
    assert (fresh.logit_softcap, config.softcap, config.kinds[0].window) == (3.0, 2.0, 4)
