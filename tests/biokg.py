# SPDX-License-Identifier: Apache-2.0
"""A small folder in the layout of ogbl-biokg."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch

COUNTS = {"protein": 12, "disease": 5, "drug": 9}  # not in alphabetical order
ENDS = [("drug", "disease"), ("protein", "protein"), ("drug", "protein")]  # types of head and tail, by relation
SIZES = {"train": 80, "valid": 9, "test": 7}


def tables(num_negative: int = 6, seed: int = 0) -> dict[str, dict[str, Any]]:
    """The dicts of the three split files: distinct triples, ids local to their type."""
    rng = np.random.default_rng(seed)
    every = [(h, r, t) for r, (a, b) in enumerate(ENDS) for h in range(COUNTS[a]) for t in range(COUNTS[b])]
    chosen = iter(rng.permutation(len(every)).tolist())
    result = {}
    for stem, size in SIZES.items():
        head, relation, tail = np.array([every[next(chosen)] for _ in range(size)]).T.copy()
        ends = [ENDS[r] for r in relation]
        table = {
            "head": head,
            "relation": relation,
            "tail": tail,
            "head_type": [a for a, _ in ends],
            "tail_type": [b for _, b in ends],
        }
        if stem != "train":
            for side in ("head", "tail"):
                kinds = table[f"{side}_type"]
                table[f"{side}_neg"] = np.stack([rng.integers(COUNTS[kind], size=num_negative) for kind in kinds])
        result[stem] = table
    return result


def write_csv(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))
    return path


def write_biokg(folder: Path, splits: dict[str, dict[str, Any]] | None = None, **options: Any) -> Path:
    """Writes the folder; ``options`` go to torch.save."""
    write_csv(folder / "raw/num-node-dict.csv.gz", f"{','.join(COUNTS)}\n{','.join(map(str, COUNTS.values()))}\n")
    (folder / "split/random").mkdir(parents=True)
    for stem, table in (splits or tables()).items():
        torch.save(table, folder / f"split/random/{stem}.pt", **options)
    return folder
