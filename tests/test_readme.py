"""The README's examples run, and its links lead somewhere."""

import pathlib
import re
import shlex

import jax
import pytest
import tyro

from experiments.__main__ import EXPERIMENTS

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("source", EXAMPLES, ids=lambda s: s.splitlines()[0][:40])
def test_example_runs(source, capsys):
    # The reader's settings, not the suite's strict ones.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(source, "README.md", "exec"), {"__name__": "readme"})
    for line in source.splitlines():
        if line.startswith("print("):
            assert capsys.readouterr().out.strip() == line.partition("  # ")[2].strip()


def test_every_quickstart_is_short():
    assert len(EXAMPLES) >= 2
    assert all(len([line for line in e.splitlines() if line.strip()]) <= 16 for e in EXAMPLES)


@pytest.mark.parametrize(
    "document", [p.relative_to(ROOT) for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))], ids=str
)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        if "://" not in target:
            assert (ROOT / document).parent.joinpath(target).exists(), f"{document} links to {target}"


@pytest.mark.parametrize("name", ["flagship", "tests"])
def test_commands_are_marked(name):
    block = re.search(rf"<!-- command: {name} -->\n```\n(.*?)\n```", README, flags=re.DOTALL)
    assert block is not None
    assert len(block.group(1).splitlines()) == 1


def test_every_experiment_command_is_one():
    block = re.search(r"<!-- commands: experiment -->\n```\n(.*?)\n```", README, flags=re.DOTALL)
    assert block is not None
    shown = block.group(1).splitlines()
    assert len(shown) <= 15
    inline = re.findall(r"`(python -m experiments [^`\n]+)`", README)
    commands = [c for c in (*shown, *inline) if "NAME" not in c and "--help" not in c]
    assert len(commands) > len(shown)
    for command in commands:
        name, *flags = shlex.split(command, comments=True)[3:]
        tyro.cli(EXPERIMENTS[name].config, args=flags)
