# SPDX-License-Identifier: Apache-2.0
"""What the compiled modules link to, and that no instruction set leaked into another."""

import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ISAS = ["baseline", "avx2", "avx512"]

# Registers that need AVX and AVX-512; the second includes the upper sixteen and the masks.
YMM = re.compile(r"%ymm\d")
ZMM = re.compile(r"%zmm\d|%[xy]mm(?:1[6-9]|2\d|3[01])|%k[0-7]\b")

# No libtorch, libc10, libcudart, libcuda: one build serves every torch, and imports without a driver.
LINKED = re.compile(r"(lib(gomp|omp|stdc\+\+|m|gcc_s|c|pthread|dl|rt|asan|ubsan|tsan)|ld-linux-.+)\.so(\.\d+)?")


def _run(tool: str, *arguments: str | Path) -> str:
    if not sys.platform.startswith("linux") or shutil.which(tool) is None:
        pytest.skip(f"needs {tool} and ELF files")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def _build_tree() -> Path:
    """The newest CMake tree below build/ with objects; the installed module is stripped of local symbols."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    trees = [p.parents[1] for p in (ROOT / "build").glob(f"*{tag}*/CMakeFiles/il_baseline.dir")]
    if not trees:
        pytest.skip(f"no CMake tree for {tag} in build/ (installed from a wheel, or a build folder elsewhere)")
    return max(trees, key=lambda tree: tree.stat().st_mtime)


def _objects(target: str) -> list[Path]:
    """Object files of one CMake target that belong to a source of today."""
    folder = _build_tree() / "CMakeFiles" / f"{target}.dir"
    if not folder.is_dir():
        pytest.skip(f"this build has no target {target}")
    objects = [p for p in folder.rglob("*.o") if (ROOT / p.relative_to(folder).with_suffix("")).is_file()]
    assert objects, f"{folder} holds no objects"
    return objects


def _disassemble(path: Path) -> dict[str, str]:
    """Symbol -> its instructions."""
    parts = re.split(r"^[0-9a-f]+ <(.+)>:$", _run("objdump", "-dC", "--no-show-raw-insn", path), flags=re.MULTILINE)
    code: dict[str, str] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        code[name] = code.get(name, "") + body
    return code


@pytest.mark.parametrize("name", ["_cpu", "_cuda"])
def test_links_only_the_system(name):
    spec = importlib.util.find_spec(f"innerloop.{name}")
    if spec is None:
        pytest.skip(f"this build has no {name}")
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", _run("readelf", "-d", spec.origin))
    assert needed
    assert [lib for lib in needed if not LINKED.fullmatch(lib)] == []


@pytest.mark.parametrize("target", ["_cpu", "il_baseline", "il_avx2"])
def test_objects_stay_in_their_instruction_set(target):
    for path in _objects(target):
        for symbol, body in _disassemble(path).items():
            assert not ZMM.search(body), f"{path.name}: {symbol} uses AVX-512"
            assert target == "il_avx2" or not YMM.search(body), f"{path.name}: {symbol} uses AVX"


def test_wide_sets_are_used():
    """The searches above find something where something is."""
    for target, register in (("il_avx2", YMM), ("il_avx512", ZMM)):
        for path in _objects(target):
            assert any(register.search(body) for body in _disassemble(path).values()), path


def test_linked_module_stays_in_its_instruction_sets():
    """The linker may choose any copy of a shared weak symbol: only the final module tells."""
    modules = list(_build_tree().glob("_cpu*.so"))
    if not modules:
        pytest.skip("the build folder holds no linked module")
    code = _disassemble(modules[0])
    if not any("il::" in symbol for symbol in code):
        pytest.skip("the module in the build folder is stripped")
    for symbol, body in code.items():
        if "il::avx512::" not in symbol:
            assert not ZMM.search(body), f"{symbol} uses AVX-512"
            assert "il::avx2::" in symbol or not YMM.search(body), f"{symbol} uses AVX"


# Names and descriptions of exception types, and pointers to them: data, the same in every set.
_TYPE_DATA = ("_ZTI", "_ZTS", "DW.ref.")


def test_no_weak_symbol_in_two_instruction_sets():
    """A weak symbol of two sets is one function after linking, in whichever set came first."""
    weak: dict[str, set[str]] = {}
    for target in ["_cpu", *(f"il_{isa}" for isa in ISAS)]:
        lines = "".join(_run("nm", "--defined-only", path) for path in _objects(target)).splitlines()
        names = {line.split()[-1] for line in lines if line.split()[-2] in "WVu"}
        weak[target] = {name for name in names if not name.startswith(_TYPE_DATA)}
    shared = {pair: weak[pair[0]] & weak[pair[1]] for pair in itertools.combinations(weak, 2)}
    assert {pair: names for pair, names in shared.items() if names} == {}
