#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tables and charts of one or two benchmark files: plot.py NEW.json [OLD.json] [--markdown FILE] [--png FILE].

Needs only the standard library; matplotlib for --png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

COLUMNS = ("implementation", "median", "IQR", "ratio", "GB/s", "GFLOP/s", "% of limit", "peak memory")


def seconds(value: float) -> str:
    """Three significant digits with a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def size(value: float | None) -> str:
    return "?" if value is None else f"{number(value / 1e6)} MB"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def group_rows(info: dict) -> list[tuple[str, ...]]:
    """Header and one row per implementation of a group's extra_info, fastest first."""
    rows = [COLUMNS]
    for name, row in sorted(info["implementations"].items(), key=lambda item: item[1]["median_s"]):
        limit = f"{row['limit_percent']:.3g} ({row['bound']})" if "limit_percent" in row else "?"
        cells = (seconds(row["median_s"]), seconds(row["iqr_s"]), f"{row['ratio']:.2f}×")
        rates = (number(row["gb_per_s"]), number(row["gflop_per_s"]))
        rows.append((name, *cells, *rates, limit, size(row["peak_bytes"])))
    return rows


def fixed_width(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table for the terminal: first column to the left, the others to the right."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]


def read(path: str | Path) -> dict:
    """A file of --benchmark-json.

    Raises:
        ValueError: it holds no comparison of these benchmarks.
    """
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    data["groups"] = {
        entry["group"]: entry["extra_info"]
        for entry in data.get("benchmarks", [])
        if "implementations" in entry.get("extra_info", {})
    }
    if not data["groups"]:
        raise ValueError(f"{path}: holds no benchmark of innerloop")
    return data


def origin(data: dict) -> str:
    """Commit, machine and versions of a file, in one line."""
    info = next(iter(data["groups"].values()))
    cpu = data.get("machine_info", {}).get("cpu", {}).get("brand_raw", "unknown CPU")
    commit = data.get("commit_info", {}) or {}
    dirty = ", with local changes" if commit.get("dirty") else ""
    device = "" if info["device"] == "cpu" else f"{info['device']}, "
    return (
        f"commit {str(commit.get('id', 'unknown'))[:12]}{dirty}; {data.get('datetime', '?')[:10]}; {device}{cpu}; "
        f"{info['threads']} CPU threads; {info['isa']}; torch {info['torch']}"
    )


def markdown(new: dict, old: dict | None = None) -> str:
    """One table per group; with an older file a last column old / new median (above 1 is faster now)."""
    lines = [f"Measured: {origin(new)}."]
    if old is not None:
        lines.append(f"\nOlder: {origin(old)}.")
    for group, info in new["groups"].items():
        rows = group_rows(info)
        if old is not None:
            before = old["groups"].get(group, {}).get("implementations", {})
            rows = [(*row, _change(row[0], info, before)) for row in rows[1:]]
            rows.insert(0, (*COLUMNS, "older / this"))
        lines += [f"\n### {group}\n"]
        lines += ["| " + " | ".join(rows[0]) + " |", "|---" + "|---:" * (len(rows[0]) - 1) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows[1:]]
        notes = [f"{key}: {info[key]}" for key in ("path", "note") if key in info]
        notes += [f"not run: {name} ({reason})" for name, reason in info.get("absent", {}).items()]
        lines += ["\n" + "; ".join(notes) + "."] if notes else []
    return "\n".join(lines) + "\n"


def _change(name: str, info: dict, before: dict) -> str:
    if name not in before:
        return "new"
    return f"{before[name]['median_s'] / info['implementations'][name]['median_s']:.2f}×"


def chart(path: str | Path, new: dict, old: dict | None = None) -> None:
    """Bars of the medians on a logarithmic axis, one panel per group; the older file's are hatched."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = list(new["groups"].items())
    sizes = [len(info["implementations"]) for _, info in groups]
    figure, axes = plt.subplots(
        len(groups),
        figsize=(9, 0.9 * len(groups) + 0.4 * sum(sizes)),
        gridspec_kw={"height_ratios": sizes},
        squeeze=False,
        layout="constrained",
    )
    for axis, (group, info) in zip(axes[:, 0], groups, strict=True):
        names = list(info["implementations"])
        before = {} if old is None else old["groups"].get(group, {}).get("implementations", {})
        height = 0.4 if old is not None else 0.8
        _bars(axis, info["implementations"], names, 0.0, height, "#3b6ea5", "this")
        if any(name in before for name in names):
            _bars(axis, before, names, height, height, "#bcccdd", "older")
            axis.legend(fontsize=7)
        axis.set_yticks([k + (height / 2 if old is not None else 0) for k in range(len(names))], names)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.margins(x=0.2)
        axis.set_title(group, fontsize=9, loc="left")
    axes[-1, 0].set_xlabel("median seconds per call")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _bars(axis, rows: dict, names: list[str], offset: float, height: float, colour: str, label: str) -> None:
    places = [k + offset for k, name in enumerate(names) if name in rows]
    values = [rows[name]["median_s"] for name in names if name in rows]
    bars = axis.barh(places, values, height=height, color=colour, label=label)
    axis.bar_label(bars, [seconds(v) for v in values], padding=3, fontsize=7)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="plot.py", description=__doc__)
    parser.add_argument("new", help="file of --benchmark-json")
    parser.add_argument("old", nargs="?", help="an older file to compare with")
    parser.add_argument("--markdown", metavar="FILE", help="write the table here (default: standard output)")
    parser.add_argument("--png", metavar="FILE", help="write a chart here")
    options = parser.parse_args(arguments)
    try:
        new = read(options.new)
        old = read(options.old) if options.old else None
    except (OSError, ValueError) as error:
        print(f"plot.py: {error}", file=sys.stderr)
        return 1
    table = markdown(new, old)
    if options.markdown:
        Path(options.markdown).write_text(table, encoding="utf-8")
    else:
        print(table, end="")
    if options.png:
        chart(options.png, new, old)
    return 0


if __name__ == "__main__":
    sys.exit(main())
