"""Everything public is documented, every documented example runs, and imports only ever point down."""

import ast
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re

import jax
import pytest

import normjax
import pallas_kernels

ROOT = pathlib.Path(normjax.__file__).resolve().parents[1]
ROOMS = [
    "normjax",
    "normjax.diagnostics",
    "normjax.fold",
    "normjax.linen",
    "normjax.loaders",
    "normjax.models",
    "normjax.models.presets",
    "normjax.models.resnet_presets",
    "normjax.nnx",
    "normjax.norms",
    "normjax.optim",
    "normjax.placements",
    "normjax.task_vectors",
    "normjax.sharding",
    "normjax.weights",
    "pallas_kernels",
    "pallas_kernels.analysis",
    "pallas_kernels.add_norm",
    "pallas_kernels.peri_norm",
    "pallas_kernels.projection",
    "pallas_kernels.group_norm",
    "pallas_kernels.gated_norm",
    "pallas_kernels.modulated_norm",
    "pallas_kernels.qk_norm",
    "pallas_kernels.quantized_norm",
    "pallas_kernels.row_norm",
]
# Floors from the ground up: a module may import from its own floor or from below.
FLOORS = [
    ["normjax._checks", "normjax._method", "normjax.precision", "normjax.sharding"],
    ["normjax.reductions"],
    ["normjax._centre"],
    ["normjax.moments"],
    ["normjax.backward_state", "normjax.transform"],
    ["normjax._compat", "normjax.norms", "normjax.optim"],
    ["normjax.task_vectors", "normjax.weights"],
    ["normjax.linen"],
    ["normjax.nnx"],
    ["normjax.placements"],
    ["normjax.models"],
    ["normjax.fold"],
    ["normjax.loaders"],
    ["normjax.diagnostics"],
    ["normjax"],
]


def modules():
    for package in (normjax, pallas_kernels):
        yield package.__name__
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            yield info.name


def public_objects():
    seen = {}
    for room in ROOMS:
        module = importlib.import_module(room)
        for name, value in vars(module).items():
            own = getattr(value, "__module__", "").split(".")[0] in ("normjax", "pallas_kernels")
            if not name.startswith("_") and own and (inspect.isfunction(value) or inspect.isclass(value)):
                seen[f"{value.__module__}.{value.__qualname__}"] = value
    return seen


PUBLIC = public_objects()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_object_is_documented(name):
    value = PUBLIC[name]
    doc = inspect.getdoc(value) or ""
    assert doc.splitlines(), f"{name} has no docstring"
    assert doc.splitlines()[0].endswith("."), f"{name}: the first line is not a sentence"
    if inspect.isfunction(value):
        parameters = [p for p in inspect.signature(value).parameters if not p.startswith("_")]
        assert ">>>" in doc, f"{name} has no runnable example"
        assert "Returns:" in doc, f"{name} does not say what it returns"
        arguments = doc.partition("Args:")[2]
        # Several arguments with one meaning may share a line: "mask, axis_name: As in ...".
        missing = [p for p in parameters if not re.search(rf"(?m)^ *([*\w]+, )*[*]*{p}(, [*\w]+)*:", arguments)]
        assert not missing, f"{name} does not describe {missing}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_examples_run(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    # optax's own Adam mixes dtypes; that the library does not is tested strictly everywhere else.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples of {name} fail"


def _floor(name):
    depth = [
        (len(prefix), floor) for floor, prefixes in enumerate(FLOORS) for prefix in prefixes if _inside(name, prefix)
    ]
    return max(depth)[1]


def _inside(name, prefix):
    return name == prefix or name.startswith(prefix + ".")


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if (ROOT / full.replace(".", "/")).with_suffix(".py").exists() else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "normjax").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for target in _imports(path):
        if target.split(".")[0] == "experiments" or (
            name.startswith("pallas_kernels") and target.startswith("normjax")
        ):
            raise AssertionError(f"{name} imports {target}, which lies above it")
        # `from normjax import x` names a module of the package, resolved above.
        if _inside(target, "normjax") and target != "normjax":
            assert _floor(target) <= _floor(name), f"{name} imports {target}, which lies above it"


@pytest.mark.parametrize("path", sorted((ROOT / "pallas_kernels").rglob("*.py")), ids=lambda p: p.name)
def test_kernels_know_nothing_of_the_library(path):
    assert not [t for t in _imports(path) if t.split(".")[0] in ("normjax", "experiments")]
