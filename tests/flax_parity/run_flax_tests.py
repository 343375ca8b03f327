"""Runs the normalization classes of one of Flax's test files with normjax's modules in the place of Flax's.

`python -m tests.flax_parity.run_flax_tests FILE CLASS` prints one JSON object. The swap lives in the namespace of the
test file alone: Flax's own modules, and whatever they import, stay as they are.
"""

import collections
import importlib
import json
import sys
import types
import unittest

import flax
import flax.linen
import flax.nnx

import normjax.linen
import normjax.nnx


class Swapped(types.ModuleType):
    """A Flax package whose normalization modules are normjax's; it counts how often each is taken."""

    def __init__(self, original: types.ModuleType, replacement: types.ModuleType):
        super().__init__(original.__name__)
        self.original, self.replacement = original, replacement
        self.taken: collections.Counter[str] = collections.Counter()

    def __getattr__(self, name: str):
        if name.endswith("Norm") and name != "Norm" and hasattr(self.replacement, name):
            self.taken[name] += 1
            return getattr(self.replacement, name)
        return getattr(self.original, name)


def load(path: str) -> tuple[types.ModuleType, dict[str, Swapped]]:
    """Executes a test file while `flax.linen` and `flax.nnx` are swapped, and puts Flax's back."""
    swapped = {
        "linen": Swapped(flax.linen, normjax.linen),
        "nnx": Swapped(flax.nnx, normjax.nnx),
    }
    module = types.ModuleType("flax_test_file")
    module.__file__ = path
    # absl's parameterized tests look their module up.
    sys.modules[module.__name__] = module
    for name, package in swapped.items():
        setattr(flax, name, package)
        sys.modules[f"flax.{name}"] = package
    try:
        with open(path) as file:
            exec(compile(file.read(), path, "exec"), module.__dict__)
    finally:
        for name, package in swapped.items():
            setattr(flax, name, package.original)
            sys.modules[f"flax.{name}"] = package.original
    return module, swapped


def name_of(test: unittest.TestCase | unittest.TestSuite) -> str:
    """Returns the method's name; absl appends the parameters to the identifier."""
    return test.id().split(" ")[0].rpartition(".")[2] if isinstance(test, unittest.TestCase) else ""


def main(path: str, class_name: str) -> None:
    """Runs one test class and prints what passed, what differed and why."""
    flags = importlib.import_module("absl.flags")
    module, swapped = load(path)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(getattr(module, class_name))
    result = unittest.TestResult()
    names = [name_of(t) for t in suite]
    suite.run(result)
    differed = {name_of(t): text.strip().splitlines() for t, text in [*result.failures, *result.errors]}
    report = {
        "flax": flax.__version__,
        "passed": sorted(set(names) - set(differed)),
        "differed": {name: "\n".join(lines[-12:]) for name, lines in differed.items()},
        "taken": {kind: dict(package.taken) for kind, package in swapped.items()},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
