# SPDX-License-Identifier: Apache-2.0
"""What README.md and docs/ show: examples run, commands and links exist, numbers are filled in."""

import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run_python

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

# In README.md, each below the marker of its name.
COMMANDS = {
    "train-command": "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt '.[train]' "
    "&& .venv/bin/innerloop nbfnet fit",
    "test-command": "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt '.[test]' "
    "&& .venv/bin/python -m pytest",
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


EXAMPLES = [
    pytest.param(code, id=f"{page.name}-{i}") for page in PAGES for i, code in enumerate(blocks(page, "python"), 1)
]


def test_pages_show_examples():
    assert len(blocks(README, "python")) >= 1
    assert len(EXAMPLES) >= 5, "the pattern must find the blocks, or the next test runs none"


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code, tmp_path):
    run_python(code, cwd=tmp_path, timeout=120)


def test_first_example_is_short_and_its_interpreter_ends_well(tmp_path):
    code = blocks(README, "python")[0]
    assert len(code.splitlines()) <= 10
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_readme_has_the_two_set_up_commands():
    shown = re.findall(r"^<!-- ([\w-]+) -->\n```bash\n(.*?)\n```$", README.read_text("utf-8"), re.MULTILINE)
    assert shown == list(COMMANDS.items())
    assert len(blocks(README, "bash")) == len(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholder_is_left(page):
    assert "@@" not in page.read_text("utf-8")


def test_shown_options_exist():
    pytest.importorskip("pytorch_lightning")
    lines = [line for page in PAGES for code in blocks(page, "bash") for line in code.splitlines()]
    pattern = r"innerloop ((?:nbfnet|ultra|poolingformer|ckd|ma-gcnn) .*)"
    uses = [shlex.split(found[1], comments=True) for line in lines if (found := re.search(pattern, line))]
    assert {recipe for recipe, *_ in uses} == {"nbfnet", "ultra", "poolingformer", "ckd", "ma-gcnn"}
    for recipe, command, *words in uses:
        function = getattr(importlib.import_module(f"innerloop.recipes.{recipe.replace('-', '_')}"), command)
        known = inspect.signature(function).parameters
        for word in words:
            assert not word.startswith("--") or word[2:].replace("-", "_") in known, f"{command} {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_exist(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).is_file(), target


def test_named_files_exist():
    """docs/architecture.md leads a reader by file names."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    names = re.findall(r"`((?:csrc|python|tests)/[\w/.]+\.\w+)`", text)
    assert len(names) > 5
    assert [name for name in names if not (ROOT / name).is_file()] == []
