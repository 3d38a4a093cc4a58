# SPDX-License-Identifier: Apache-2.0
"""benchmarks/plot.py: tables and charts from files of --benchmark-json."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "plot.py"


def write(path: Path, *, faster: float = 1.0) -> Path:
    """A file as pytest-benchmark writes it, reduced to what is read."""

    def row(median: float) -> dict:
        return {
            "median_s": median,
            "iqr_s": 0.1 * median,
            "min_s": median,
            "ratio": median / (0.01 / faster),
            "gb_per_s": 1234.0,
            "gflop_per_s": 5.678,
            "peak_bytes": 2_000_000,
            "limit_percent": 50.0,
            "bound": "memory",
        }

    info = {
        "device": "cpu",
        "threads": 1,
        "isa": "avx2",
        "torch": "2.13.0",
        "implementations": {"innerloop": row(0.01 / faster), "eager": row(0.25)},
        "absent": {"PyG scatter": "not installed"},
        "path": "CPU kernel (avx2)",
    }
    data = {
        "machine_info": {"cpu": {"brand_raw": "Test CPU"}},
        "commit_info": {"id": "0123456789abcdef", "dirty": True},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [
            {"group": "sum forward", "extra_info": info},
            {"group": "else", "extra_info": {}},
        ],
    }
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def plot(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-X", "utf8", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)


def test_markdown_of_one_file(tmp_path):
    done = plot(write(tmp_path / "new.json"))
    assert done.returncode == 0, done.stderr
    assert "commit 0123456789ab, with local changes; 2026-01-02; Test CPU; 1 CPU threads; avx2" in done.stdout
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert table[0].startswith("| implementation | median | IQR | ratio |")
    assert table[2] == "| innerloop | 10 ms | 1 ms | 1.00× | 1234 | 5.68 | 50 (memory) | 2 MB |"
    assert table[3].startswith("| eager | 250 ms | 25 ms | 25.00× |")
    assert "not run: PyG scatter (not installed)" in done.stdout


def test_markdown_of_two_files_shows_the_change(tmp_path):
    target = tmp_path / "table.md"
    new, old = write(tmp_path / "new.json", faster=2.0), write(tmp_path / "old.json")
    done = plot(new, old, "--markdown", target)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    ours, eager = [line for line in target.read_text(encoding="utf-8").splitlines() if line.startswith("|")][2:]
    assert ours.endswith("| 2.00× |")
    assert eager.endswith("| 1.00× |")


@pytest.mark.parametrize("files", [1, 2])
def test_chart_is_a_picture(tmp_path, files):
    pytest.importorskip("matplotlib")
    data = [write(tmp_path / f"{k}.json", faster=k + 1) for k in range(files)]
    done = plot(*data, "--png", tmp_path / "chart.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_file_without_comparisons_is_an_error(tmp_path):
    (tmp_path / "empty.json").write_text('{"benchmarks": []}')
    done = plot(tmp_path / "empty.json")
    assert done.returncode == 1
    assert "empty.json: holds no benchmark of innerloop" in done.stderr


def test_missing_file_is_an_error(tmp_path):
    done = plot(tmp_path / "none.json")
    assert done.returncode == 1
    assert "none.json" in done.stderr
    assert "Traceback" not in done.stderr
