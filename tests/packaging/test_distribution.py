# SPDX-License-Identifier: Apache-2.0
"""What the sdist and the wheel hold. The checker is tools/check_dist.py; CI runs it on dist/*."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

_spec = importlib.util.spec_from_file_location("check_dist", ROOT / "tools" / "check_dist.py")
check_dist = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_dist)

INFO = "innerloop-0.1.0.dist-info"
NAME = "innerloop-0.1.0-cp311-cp311-linux_x86_64.whl"


def _wheel(folder: Path, *, without: str = "", torch: str = "torch>=2.11", name: str = NAME, **extra: str) -> Path:
    """A wheel of the right shape, less `without`, plus `extra`."""
    files = {f"innerloop/{n}": "" for n in check_dist._tree("python/innerloop")}
    files |= {f"innerloop/triton/{n}": "" for n in check_dist._tree("csrc/triton")}
    files |= {
        "innerloop/_cpu.cpython-311-x86_64-linux-gnu.so": "",
        f"{INFO}/METADATA": f"Name: innerloop\nRequires-Dist: {torch}\nRequires-Dist: numpy>=1.26\n",
        f"{INFO}/entry_points.txt": "",
        f"{INFO}/licenses/LICENSE": "Apache License",
        f"{INFO}/licenses/NOTICE": "",
    }
    files.pop(without, None)
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files | extra).items():
            archive.writestr(file, text)
    return path


def test_a_right_wheel_passes(tmp_path):
    assert check_dist.check_wheel(_wheel(tmp_path)) == []
    assert check_dist.main([str(tmp_path / NAME)]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"without": "innerloop/py.typed"}, "missing: innerloop/py.typed"),
        ({"without": "innerloop/data/embedded/README.md"}, "missing: innerloop/data/embedded/README.md"),
        ({"without": "innerloop/_cpu.cpython-311-x86_64-linux-gnu.so"}, "missing: innerloop/_cpu.*.so"),
        ({"without": f"{INFO}/licenses/NOTICE"}, f"missing: {INFO}/licenses/NOTICE"),
        ({"innerloop/cuda/a.cu": ""}, "does not belong here: innerloop/cuda/a.cu"),
        ({"innerloop/core/simd.h": ""}, "does not belong here: innerloop/core/simd.h"),
        ({"innerloop.libs/libgomp.so.1": ""}, "outside the package: innerloop.libs/libgomp.so.1"),
        ({"innerloop/libgomp.so.1": ""}, "bundled library: innerloop/libgomp.so.1"),
        ({"tests/test_a.py": ""}, "outside the package: tests/test_a.py"),
        ({"torch": "torch==2.13.0"}, "torch must have a lower bound"),
        ({"torch": "torch<3,>=2.11"}, "torch must have a lower bound"),
        ({"name": "innerloop-0.1.0-py3-none-any.whl"}, "the tag promises every platform"),
    ],
)
def test_a_wrong_wheel_is_named(change, message, tmp_path, capsys):
    path = _wheel(tmp_path, **change)
    (problem,) = check_dist.check_wheel(path)
    assert message in problem
    assert check_dist.main([str(path)]) == 1
    assert problem in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sdist_and_the_wheel_built_from_it(tmp_path):
    for module in ("build", "scikit_build_core", "pybind11"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install build scikit-build-core pybind11 ninja")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "-C", "cmake.define.IL_CUDA=OFF", "-o", tmp_path, ROOT],
        check=True,
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    (wheel,) = tmp_path.glob("*.whl")
    assert check_dist.check_sdist(sdist) == []
    assert check_dist.check_wheel(wheel) == []
