"""Checkpoints of models and the command that folds one."""

import dataclasses
import hashlib
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj
from normjax import fold
from normjax.fold import _rebuild
from normjax.fold.__main__ import main
from normjax.models import LanguageModel
from normjax.optim._paths import boxed_leaves

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
TOKENS = jnp.array([[1, 2, 3]])


def language_model(preset="gpt2", **options):
    config = getattr(nj.models.presets, preset)(layers=1, features=8, heads=2, hidden=16, **options)
    make = lambda: LanguageModel(config, vocabulary=11, tied=False, max_tokens=4, rngs=nnx.Rngs(0))
    rng, (graph, state) = np.random.default_rng(0), nnx.split(nnx.eval_shape(make))

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        start = "'scale'" in name or "'var'" in name
        return jnp.asarray(start + 0.3 * rng.standard_normal(leaf.shape), leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model"
    fold.save_model(path, language_model())
    return path


def contents(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_command_folds_verifies_and_leaves_its_input_alone(checkpoint, capsys):
    before = contents(checkpoint)
    assert main([str(checkpoint), "--verify", "--drop"]) == 0
    printed = capsys.readouterr().out
    assert "folding plan" in printed
    assert "verification: passed" in printed
    assert contents(checkpoint) == before
    out = checkpoint.with_name("model-folded")
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["model", "model-folded"], "nothing is left over"
    model, folded = fold.load_model(checkpoint), fold.load_model(out)
    run = nnx.jit(lambda model, x: model(x))
    assert fold.verify(lambda: run(model, TOKENS), lambda: run(folded, TOKENS), tolerance=1e-5).passed
    assert folded.head.bias is not None
    with pytest.raises(ValueError, match="folded"):
        nj.project_weights(mask=True).init(nnx.state(folded))
    assert main([str(checkpoint)]) == 2
    assert "exists" in capsys.readouterr().err


def test_the_command_writes_nothing_where_logits_differ(checkpoint, tmp_path, capsys):
    plan = fold.plan_for(fold.load_model(checkpoint))
    # The readers of the first norm are folded into nothing: the gain is lost.
    wrong = fold.Edge("before", plan.edges[0].norms, plan.edges[0].layers[:1])
    (tmp_path / "plan.json").write_text(fold.Plan((wrong,)).to_json())
    assert main([str(checkpoint), "--plan", str(tmp_path / "plan.json"), "--verify"]) == 1
    assert "nothing was written" in capsys.readouterr().out
    assert not checkpoint.with_name("model-folded").exists()
    assert main([str(tmp_path / "nothing")]) == 2
    assert "holds no config.json" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["gpt2", "gemma3", "glm4", "cohere2", "t5_encoder"])
def test_configurations_survive(preset):
    from normjax.fold._config import config_from_json, config_to_json

    config = getattr(nj.models.presets, preset)(layers=2, features=8, heads=2, hidden=16, dtype=jnp.bfloat16)
    if preset == "glm4":
        longer = dataclasses.replace(config.kinds[0].rope, scaling=nj.models.Llama3Scaling(8.0, 1.0, 4.0, 64))
        config = dataclasses.replace(config, kinds=(dataclasses.replace(config.kinds[0], rope=longer),))
    text = json.dumps(config_to_json(config))
    again = config_from_json(json.loads(text))
    assert json.dumps(config_to_json(again)) == text
    assert [again.block(d) for d in (1, 2)] == [config.block(d) for d in (1, 2)]


def test_bfloat16_and_folded_batch_norms_survive(tmp_path):
    place = nj.placements.pre(
        nj.prep_batch_norm(token_norm=nj.rms_norm(), precision=nj.Precision(parameters=jnp.bfloat16))
    )
    model = language_model(placement=place, param_dtype=jnp.bfloat16)
    ended = lambda leaf: np.zeros_like(leaf) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf
    nnx.update(model, jax.tree.map(ended, nnx.state(model)))
    fold.save_model(tmp_path / "model", model)
    again = fold.load_model(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))
    assert again.embedding.embedding.dtype == jnp.bfloat16
    # JAX's attention mixes the dtypes of bfloat16 projections and float32 masks.
    with jax.numpy_dtype_promotion("standard"):
        assert main([str(tmp_path / "model"), "--drop", *(["--verify"] if NIGHTLY else [])]) == 0
    place = fold.load_model(tmp_path / "model-folded").stack.config.placement
    assert place.norm == _rebuild.IDENTITY


def test_what_cannot_be_stored(tmp_path):
    with pytest.raises(ValueError, match="composed or hand-written"):
        fold.save_model(tmp_path / "a", language_model(placement=nj.placements.pre(nj.chain(nj.rms_norm()))))
    with pytest.raises(ValueError, match="no function of jax"):
        fold.save_model(tmp_path / "b", language_model(activation=lambda x: x))
    with pytest.raises(TypeError, match="or MLPClassifier, got Linear"):
        fold.save_model(tmp_path / "c", nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    assert not list(tmp_path.iterdir())
    fold.save_model(tmp_path / "d", language_model())
    described = json.loads((tmp_path / "d" / "config.json").read_text())
    (tmp_path / "d" / "config.json").write_text(json.dumps(described | {"version": 2}))
    with pytest.raises(ValueError, match="this version reads"):
        fold.load_model(tmp_path / "d")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("embedding/embedding"), "there is no value for embedding/embedding"),
        (lambda values: values.update({"head/kernel": np.ones((8, 2))}), r"has shape \(8, 2\), but the model expects"),
        (lambda values: values.update(more=np.ones(2)), r"no place for \['more'\]"),
    ],
)
def test_parameters_that_do_not_fit_their_configuration(change, message):
    model = language_model()
    values = {path: leaf[...] for path, leaf in boxed_leaves(nnx.state(model)).items()}
    change(values)
    with pytest.raises(ValueError, match=message):
        _rebuild.filled(_rebuild.rebuilt(model), values)


def shaken(make):
    """A model in which nothing is as it was initialized, and variances are positive."""
    rng, (graph, state) = np.random.default_rng(0), nnx.split(nnx.eval_shape(make))
    draw = lambda leaf: jnp.asarray(rng.uniform(0.2, 1.2, leaf.shape), leaf.dtype)
    return nnx.merge(graph, jax.tree.map(draw, state))


RESNET = {"depths": (1,), "widths": (4,)}
PRESETS = nj.models.resnet_presets
OTHERS = {
    "resnet": lambda: nj.models.ResNet(PRESETS.bn(**RESNET, param_dtype=jnp.bfloat16), classes=3, rngs=nnx.Rngs(0)),
    "ibn": lambda: nj.models.ResNet(PRESETS.ibn_a(**RESNET, bottleneck=True), classes=3, rngs=nnx.Rngs(0)),
    "bcn": lambda: nj.models.ResNet(PRESETS.bcn_ws(num_groups=2, **RESNET), classes=3, rngs=nnx.Rngs(0)),
    "nf": lambda: nj.models.ResNet(PRESETS.nf(**RESNET), classes=3, rngs=nnx.Rngs(0)),
    "mlp": lambda: nj.models.MLPClassifier(4, (5,), classes=3, norm=nj.batch_norm(), rngs=nnx.Rngs(0)),
    "vit": lambda: nj.models.ViT(
        nj.models.presets.vit(layers=1, features=8, heads=2, hidden=8),
        image_size=4, patch_size=2, classes=3, rngs=nnx.Rngs(0),
    ),
    "encoder": lambda: nj.models.Encoder(
        nj.models.presets.t5_encoder(layers=1, features=8, heads=2, hidden=8), vocabulary=7, pooler=True,
        rngs=nnx.Rngs(0),
    ),
    "language_model": lambda: language_model(param_dtype=jnp.bfloat16),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in OTHERS if NIGHTLY or name != "bcn"])
def test_every_model_survives_and_folds(name, tmp_path, capsys):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    model = shaken(OTHERS[name]) if name != "language_model" else OTHERS[name]()
    fold.save_model(tmp_path / "model", model, format="safetensors")
    jax.tree.map(np.testing.assert_array_equal, nnx.state(fold.load_model(tmp_path / "model")), nnx.state(model))
    # JAX's attention mixes the dtypes of bfloat16 projections and float32 masks, and the head of a ResNet is wide.
    drop = ["--drop"] if name in ("resnet", "ibn", "bcn", "mlp") else []
    with jax.numpy_dtype_promotion("standard"):
        verify = ["--verify"] if NIGHTLY or name in ("resnet", "nf", "mlp") else []
        assert main([str(tmp_path / "model"), *verify, *drop, "--size", "4"]) == 0
    assert ("passed" in capsys.readouterr().out) == bool(verify)
    assert (tmp_path / "model-folded" / "parameters.safetensors").exists()
    folded = fold.load_model(tmp_path / "model-folded")
    assert type(folded) is type(model)
    with pytest.raises(ValueError, match="folded"):
        nj.project_weights(mask=True).init(nnx.state(folded))
    if name == "resnet":
        assert folded.stem_norm is None
        assert folded.stem.bias is not None
