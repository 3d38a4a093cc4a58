# SPDX-License-Identifier: Apache-2.0
"""One name in every room, arrows one way, and lists that equal the tree."""

import ast
import re
from importlib.metadata import version
from pathlib import Path

import innerloop
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "innerloop"
CSRC = ROOT / "csrc"
OPS = sorted(path.stem for path in (CSRC / "cpu").glob("*.cpp"))
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".cpp", ".h", ".cu", ".cuh"})
MODULES = sorted(PACKAGE.rglob("*.py"))

# Lower must not import higher, nor a neighbour of its own height.
HEIGHT = {
    "_cpu": 0, "_cuda": 0, "reference": 0, "distributed": 0, "system": 1, "cuda": 1, "triton": 1, "graph": 1,
    "simple_graph": 1, "ops": 2, "compat": 3, "nn": 3, "data": 3, "recipes": 4, "doctor": 4, "cli": 5, "__main__": 6,
}  # fmt: skip

# What a file compiled once per instruction set may include: nothing here emits a shared inline function.
KERNEL_HEADERS = {
    "arm_neon.h", "cmath", "cstddef", "cstdint", "cstdlib", "cstring", "immintrin.h", "sys/mman.h",
}  # fmt: skip


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("op", OPS)
def test_one_name_in_every_room(op):
    rooms = [
        PACKAGE / "ops" / f"{op}.py",
        PACKAGE / "reference" / f"{op}.py",
        ROOT / "tests" / "ops" / f"test_{op}.py",
        ROOT / "benchmarks" / f"bench_{op}.py",
    ]
    assert [_id(room) for room in rooms if not room.is_file()] == []
    assert callable(getattr(innerloop, op))
    assert callable(getattr(innerloop.reference, op))


@pytest.mark.parametrize("room", ["ops", "reference"])
def test_python_rooms_hold_no_other_name(room):
    assert sorted(p.stem for p in (PACKAGE / room).glob("*.py") if not p.stem.startswith("_")) == OPS


@pytest.mark.parametrize("folder", ["cuda", "triton"])
def test_gpu_files_are_named_after_ops(folder):
    known = {*OPS, "device_info", "simple_graph", "__init__"}
    files = [p for p in (CSRC / folder).iterdir() if p.suffix in {".cu", ".cuh", ".py"}]
    assert [_id(p) for p in files if p.stem not in known] == []


def test_cmake_lists_equal_the_tree():
    text = (ROOT / "CMakeLists.txt").read_text()
    assert "file(GLOB" not in text
    listed = re.findall(r"csrc/\S+?\.(?:cpp|cu)\b", text)
    assert sorted(listed) == sorted(_id(p) for p in SOURCES if p.suffix in {".cpp", ".cu"})


@pytest.mark.parametrize("path", SOURCES, ids=_id)
def test_core_knows_no_torch(path):
    assert [h for h in _includes(path) if re.match(r"(torch|ATen|c10|caffe2)\b", h)] == []


@pytest.mark.parametrize("op", OPS)
def test_kernel_files_share_no_inline_code(op):
    """Through every header they include: an inline std function would be one symbol for all sets."""
    seen, todo, outside = set(), [CSRC / "cpu" / f"{op}.cpp"], set()
    while todo:
        path = todo.pop()
        seen.add(path)
        for header in _includes(path):
            if (CSRC / header).is_file():
                todo += {CSRC / header} - seen
            else:
                outside.add(header)
    assert outside - KERNEL_HEADERS == set()


def _imported(path: Path) -> set[str]:
    """First components below `innerloop` that the file imports, at any depth of nesting."""
    parts = ("innerloop", *path.relative_to(PACKAGE).with_suffix("").parts)
    package = parts[:-1]  # of an __init__.py too: its own folder
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            names += [[*base, alias.name] for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names += [arg.value.split(".") for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    below = {name[1] for name in names if name[0] == "innerloop" and len(name) > 1}
    return {name for name in below if name in HEIGHT or not name.startswith("__")}


@pytest.mark.parametrize("path", [p for p in MODULES if p != PACKAGE / "__init__.py"], ids=_id)
def test_arrows_run_one_way(path):
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    wrong = {name for name in _imported(path) - {here} if HEIGHT.get(name, 99) >= HEIGHT[here]}
    assert wrong == set(), f"{here} must not import {wrong}"


def test_reference_imports_nothing_of_the_package():
    for path in (PACKAGE / "reference").glob("*.py"):
        assert _imported(path) <= {"reference"}, path


def test_one_version():
    declared = re.search(r'^version = "(.+?)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert declared == innerloop.__version__ == version("innerloop")


def test_exported_names_are_there():
    assert [name for name in innerloop.__all__ if not hasattr(innerloop, name)] == []
    assert set(innerloop._EXPORTS) <= set(innerloop.__all__)


def test_hooks_use_the_pinned_versions():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    used = re.findall(r"additional_dependencies: \[(.+)\]", (ROOT / ".pre-commit-config.yaml").read_text())
    assert used
    assert [u for u in used if u not in pins] == []


def test_every_requirement_is_pinned():
    text = (ROOT / "pyproject.toml").read_text()
    lists = re.findall(r"^(?:requires|dependencies|train|bench|test|dev) = \[(.+)\]", text, re.MULTILINE)
    assert len(lists) == 6
    wanted = {re.split(r"[>=<\[]", item)[0] for line in lists for item in re.findall(r'"(.+?)"', line)}
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert wanted - pinned - {"innerloop"} == set()


def test_every_source_names_its_licence():
    scripts = [p for folder in ("tests", "benchmarks", "tools") for p in (ROOT / folder).rglob("*.py")]
    missing = [
        _id(p)
        for p in [*SOURCES, *MODULES, *scripts]
        if "SPDX-License-Identifier: Apache-2.0" not in p.read_text()[:100]
    ]
    assert missing == []
