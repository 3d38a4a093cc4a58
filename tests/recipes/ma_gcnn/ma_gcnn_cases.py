# SPDX-License-Identifier: Apache-2.0
"""Shared material of the motif classifier's tests: small settings, a toy data set."""

from pathlib import Path

QUIET = {"progress": False}
SMALL = {"grid_nodes": 4, "slots": 3, "epochs": 3, "batch_size": 8, "num_folds": 3, "seeds": [0, 1], "lrs": [0.01, 0.1]}


def write_toy(path: Path, count: int = 40) -> Path:
    """Even graphs are cycles, odd ones stars; tags tell them apart a little; sorted by class, as TU files are."""
    graphs = []
    for i in range(count):
        label, n = i * 2 // count, 4 + i % 3
        edges = [(0, j) for j in range(1, n)] if label else [(j, (j + 1) % n) for j in range(n)]
        near = [[b if a == v else a for a, b in edges if v in (a, b)] for v in range(n)]
        rows = [f"{(v + i) % 2 + label * (i % 4 == 0)} {len(near[v])} {' '.join(map(str, near[v]))}" for v in range(n)]
        graphs.append("\n".join([f"{n} {label}", *rows]))
    path.write_text(f"{count}\n" + "\n".join(graphs) + "\n")
    return path
