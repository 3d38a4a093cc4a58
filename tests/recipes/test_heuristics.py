# SPDX-License-Identifier: Apache-2.0
"""Link splits, negatives and the classical baselines."""

import pytest
import torch
from innerloop.data import read_links
from innerloop.recipes.nbfnet.heuristics import auroc_and_ap, heuristics

pytest.importorskip("torchmetrics")

# AUROC, AP as measured for the spec on the official split (other negatives, so not to the digit).
TABLE = {
    ("cora", "Katz (beta 0.005)"): (0.860, 0.887),
    ("cora", "personalized PageRank (alpha 0.85)"): (0.862, 0.887),
    ("cora", "graph distance"): (0.841, 0.877),
    ("citeseer", "Katz (beta 0.005)"): (0.774, 0.783),
    ("citeseer", "personalized PageRank (alpha 0.85)"): (0.775, 0.785),
    ("citeseer", "graph distance"): (0.747, 0.791),
}


@pytest.mark.parametrize(("name", "sizes"), [("cora", (4614, 271, 544)), ("citeseer", (4022, 236, 474))])
def test_split_is_the_official_one(name, sizes, shared_data):
    links = read_links(shared_data / "planetoid" / f"{name}.cites.xz")
    assert tuple(part.shape[1] for part in (links.train, links.valid, links.test)) == sizes
    n = sum(sizes)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    first = {"cora": [1772, 3955, 1883, 2230, 3428], "citeseer": [3380, 4547, 2134, 4161, 1056]}[name]
    assert order[sizes[0] + sizes[1] :][:5].tolist() == first


@pytest.mark.parametrize("name", ["cora", "citeseer"])
def test_table(name, shared_data, capsys):
    """Mean over ten draws of the negatives, within 0.01 of the table; one draw spreads by about 0.01."""
    runs = [heuristics(shared_data / "planetoid" / f"{name}.cites.xz", seed=seed) for seed in range(10)]
    assert f"{name} test" in capsys.readouterr().out
    for heuristic in runs[0]:
        auroc, ap = TABLE[name, heuristic]
        assert sum(r[heuristic]["auroc"] for r in runs) / 10 == pytest.approx(auroc, abs=0.01)
        assert sum(r[heuristic]["ap"] for r in runs) / 10 == pytest.approx(ap, abs=0.01)


def test_ties_are_one_threshold():
    label = torch.tensor([1, 1, 0, 0])
    assert auroc_and_ap(torch.zeros(4), label) == (0.5, 0.5)  # a stable sort would give an AP of 1
    assert auroc_and_ap(torch.tensor([3.0, 2, 1, -torch.inf]), label) == (1, 1)
    auroc, ap = auroc_and_ap(torch.tensor([1.0, 0, 1, 0]), label)
    assert (auroc, ap) == (0.5, 0.5)


def test_negatives_are_uniform_pairs_without_an_edge(tmp_path):
    file = tmp_path / "small.cites"
    file.write_text("a\tb\nb\tc\nc\td\nd\ta\na\ta\n" * 4)
    links = read_links(file)
    assert links.nodes == ["a", "b", "c", "d"]
    pairs = links.negatives("test", 4000, torch.Generator().manual_seed(0))
    counts = torch.bincount(pairs[0] * 4 + pairs[1], minlength=16).tolist()
    allowed = {(0, 2), (2, 0), (1, 3), (3, 1)}
    for h in range(4):
        for t in range(4):
            expected = 1000 if (h, t) in allowed else 0
            assert counts[h * 4 + t] == pytest.approx(expected, abs=120 if expected else 0)
    file.write_text("a\tb\nb\ta\n" * 10)
    with pytest.raises(ValueError, match="every pair of the 2 nodes has an edge"):
        read_links(file).negatives("test", 1, torch.Generator())


def test_malformed_lines_are_named(tmp_path):
    file = tmp_path / "bad.cites"
    file.write_text("a\tb\nc d\n")
    with pytest.raises(ValueError, match=r"bad\.cites:2: 'c d', expected two names"):
        read_links(file)
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_links(tmp_path / "none")
