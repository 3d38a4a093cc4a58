# SPDX-License-Identifier: Apache-2.0
"""Checks what a wheel or sdist holds: python tools/check_dist.py dist/*"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
MAX_WHEEL_BYTES = 20_000_000

# Sources of the compiled modules, and what a build or a test run leaves behind.
_NOT_IN_WHEEL = {".cpp", ".h", ".hpp", ".cu", ".c", ".o", ".a", ".pyc", ".whl"}
_NOT_IN_SDIST = {".o", ".a", ".so", ".pyc", ".whl", ".ckpt"}
_NOT_IN_SDIST_FOLDERS = {".git", "build", "dist", "runs", "__pycache__", ".pytest_cache", ".ruff_cache"}


def _tree(folder: str) -> set[str]:
    """Files of the source tree below `folder`, relative to it."""
    base = ROOT / folder
    files = (p for p in base.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".so")
    return {p.relative_to(base).as_posix() for p in files}


def check_wheel(path: Path) -> list[str]:
    """What is wrong with the wheel, one line each; empty when nothing is."""
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        info = next((n.split("/")[0] for n in names if n.split("/")[0].endswith(".dist-info")), "none.dist-info")
        metadata = archive.read(f"{info}/METADATA").decode() if f"{info}/METADATA" in names else ""
        licence = f"{info}/licenses/LICENSE"
        licence_text = archive.read(licence).decode() if licence in names else ""

    wanted = {f"innerloop/{name}" for name in _tree("python/innerloop")}
    wanted |= {f"innerloop/triton/{name}" for name in _tree("csrc/triton")}
    has_cuda = any(re.fullmatch(r"innerloop/_cuda\..*so", name) for name in names)
    if has_cuda:
        wanted |= {f"innerloop/cuda/{name}" for name in _tree("csrc/cuda") if name.endswith(".cuh")}
    wanted |= {licence, f"{info}/licenses/NOTICE", f"{info}/entry_points.txt"}
    problems = [f"missing: {name}" for name in sorted(wanted - names)]

    for name in sorted(names):
        pure = PurePosixPath(name)
        if pure.parts[0] not in ("innerloop", info):
            problems.append(f"outside the package: {name}")
        elif pure.suffix in _NOT_IN_WHEEL or "__pycache__" in pure.parts:
            problems.append(f"does not belong here: {name}")
        elif ".so" in pure.suffixes and not re.fullmatch(r"innerloop/_(cpu|cuda)\.[^/]*so", name):
            problems.append(f"bundled library: {name}")  # a second OpenMP runtime beside torch's aborts or hangs
    if not any(re.fullmatch(r"innerloop/_cpu\..*so", name) for name in names):
        problems.append("missing: innerloop/_cpu.*.so")
    if path.name.endswith("-none-any.whl"):
        problems.append("the tag promises every platform")
    if "Apache License" not in licence_text:
        problems.append("LICENSE is not the Apache licence")
    torch = re.findall(r"^Requires-Dist: torch\b(.*)$", metadata, re.MULTILINE)
    if len(torch) != 1 or not re.fullmatch(r" ?\(?>=[\d.]+\)?", torch[0]):
        problems.append(f"torch must have a lower bound and nothing else, found {torch}")
    if path.stat().st_size > MAX_WHEEL_BYTES:
        problems.append(f"{path.stat().st_size} bytes, at most {MAX_WHEEL_BYTES} expected")
    return problems


def check_sdist(path: Path) -> list[str]:
    """What is wrong with the sdist, one line each; empty when nothing is."""
    with tarfile.open(path) as archive:
        files = [PurePosixPath(member.name) for member in archive.getmembers() if member.isfile()]
    problems = [] if len({p.parts[0] for p in files}) == 1 else ["more than one top folder"]
    names = {PurePosixPath(*p.parts[1:]).as_posix() for p in files}
    wanted = {"CMakeLists.txt", "LICENSE", "NOTICE", "PKG-INFO", "README.md", "constraints.txt", "pyproject.toml"}
    for folder in ("csrc", "python", "tests", "tools"):
        wanted |= {f"{folder}/{name}" for name in _tree(folder)}
    problems += [f"missing: {name}" for name in sorted(wanted - names)]
    for name in sorted(names):
        pure = PurePosixPath(name)
        if pure.suffix in _NOT_IN_SDIST or _NOT_IN_SDIST_FOLDERS & set(pure.parts) or pure.parts[0].startswith(".venv"):
            problems.append(f"does not belong here: {name}")
    return problems


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    status = 0
    for path in map(Path, arguments):
        problems = check_wheel(path) if path.suffix == ".whl" else check_sdist(path)
        print(f"{path.name}: {'ok' if not problems else f'{len(problems)} problems'}")
        for problem in problems:
            print(f"  {problem}")
        status |= bool(problems)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
