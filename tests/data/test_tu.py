# SPDX-License-Identifier: Apache-2.0
"""Graph classification sets in both layouts, and edge lists."""

import gzip
import lzma
from pathlib import Path

import pytest
import torch
from innerloop.data.tu import GraphDataset, load_mutag, read_edge_list, read_tu

PACKED = """3
3 1
5 2 1 2
4 1 0
5 1 0
1 -1
4 1 0
2 1
4 1 1
7 1 0
"""

# The same graphs; node 4 has a self loop, edge 1-2 is there in both directions and once more, edge 5-6 in one.
OFFICIAL = {
    "A": "1, 2\n2, 1\n1, 3\n3,1\n4, 4\n6, 5\n1, 2\n",
    "graph_indicator": "1\n1\n1\n2\n3\n3\n",
    "graph_labels": "1\n-1\n1\n",
    "node_labels": "5\n4\n5\n4\n4\n7\n",
    "edge_labels": "10\n20\n30\n40\n50\n60\n70\n",
    "node_attributes": "".join(f"{i}.5, -{i}\n" for i in range(6)),
    "edge_attributes": "".join(f"{i}e-1\n" for i in range(7)),
}


def write_official(folder: Path, **changes: str) -> Path:
    folder.mkdir(exist_ok=True)
    for kind, text in (OFFICIAL | changes).items():
        (folder / f"TOY_{kind}.txt").write_text(text)
    return folder


def same(a: GraphDataset, b: GraphDataset) -> bool:
    tensors = ("edge_index", "ptr", "labels", "node_tags")
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in tensors) and (a.classes, a.tags) == (
        b.classes,
        b.tags,
    )


@pytest.fixture
def packed(tmp_path) -> Path:
    path = tmp_path / "TOY.txt"
    path.write_text(PACKED)
    return path


def test_packed(packed):
    data = read_tu(packed)
    assert (data.name, len(data), data.num_nodes, data.num_classes) == ("TOY", 3, 6, 2)
    assert data.edge_index.tolist() == [[0, 0, 1, 2, 4, 5], [1, 2, 0, 0, 5, 4]]
    assert data.ptr.tolist() == [0, 3, 4, 6]
    assert (data.labels.tolist(), data.classes) == ([1, 0, 1], (-1, 1))
    assert (data.node_tags.tolist(), data.tags) == ([1, 0, 1, 0, 0, 2], (4, 5, 7))
    assert data.sizes.tolist() == [3, 1, 2]
    assert data.batch.tolist() == [0, 0, 0, 1, 2, 2]
    assert data.degree.tolist() == [2, 1, 1, 0, 1, 1]
    assert data.edge_labels is None
    assert {t.dtype for t in (data.edge_index, data.ptr, data.labels, data.node_tags)} == {torch.int64}


@pytest.mark.parametrize("ending", ["\n\n \n", "", "\r\n"])
def test_ends_of_lines(packed, ending):
    wanted = read_tu(packed)
    text = PACKED.rstrip("\n") + ending
    packed.write_bytes((text.replace("\n", "\r\n") if "\r" in ending else text).encode())
    assert same(read_tu(packed), wanted)


@pytest.mark.parametrize(("suffix", "opener"), [(".xz", lzma.open), (".gz", gzip.open)])
def test_compressed(packed, suffix, opener):
    other = packed.with_name("TOY.txt" + suffix)
    with opener(other, "wt") as file:
        file.write(PACKED)
    assert same(read_tu(other), read_tu(packed))
    assert read_tu(other).name == "TOY"
    other.write_bytes(other.read_bytes()[:20])
    with pytest.raises(ValueError, match=rf"TOY\.txt\{suffix}: cannot be decompressed"):
        read_tu(other)


def test_official_folder_is_the_same_set(packed, tmp_path):
    data = read_tu(write_official(tmp_path / "TOY"))
    assert data.name == "TOY"
    assert same(data, read_tu(packed))
    # Edges 0-1, 0-2, 1-0, 2-0, 4-5, 5-4: the first line in the edge's own direction, else in the other.
    assert data.edge_labels.tolist() == [10, 30, 20, 40, 60, 60]
    assert data.edge_attributes.flatten().tolist() == pytest.approx([0, 0.2, 0.1, 0.3, 0.5, 0.5])
    assert data.node_attributes.shape == (6, 2)
    assert data.node_attributes[3].tolist() == [3.5, -3]


def test_official_files_that_are_optional(tmp_path):
    folder = write_official(tmp_path / "TOY")
    for kind in ("node_labels", "edge_labels", "node_attributes", "edge_attributes"):
        (folder / f"TOY_{kind}.txt").unlink()
    data = read_tu(folder)
    assert data.node_tags is data.edge_labels is data.node_attributes is data.edge_attributes is None
    assert data.tags == ()
    (folder / "TOY_graph_labels.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"TOY_graph_labels\.txt: no such file"):
        read_tu(folder)
    (folder / "TOY_A.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected one file NAME_A\.txt, found none"):
        read_tu(folder)
    with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
        read_tu(tmp_path / "nowhere")


def test_one_tag_for_all_is_no_tag(packed):
    packed.write_text("1\n2 0\n0 1 1\n0 1 0\n")
    data = read_tu(packed)
    assert data.node_tags is None
    assert (data.classes, data.num_classes) == ((0,), 1)


@pytest.mark.parametrize("text", ["0\n", "2\n0 1\n0 3\n", "1\n2 0\n0 0\n1 0\n"], ids=["no graph", "no node", "no edge"])
def test_empty(packed, text):
    packed.write_text(text)
    data = read_tu(packed)
    assert len(data) == int(text[0])
    assert data.edge_index.shape == (2, 0)
    assert data.ptr.shape == (len(data) + 1,)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3\n3 1", "\n3 1", ":1: 0 numbers, expected the number of graphs"),
        ("3\n3 1", "-1\n3 1", ":1: expected the number of graphs"),
        ("3\n3 1", "4\n3 1", r":11: the text ends, expected 'n label' of graph 4 of 4"),
        ("3\n3 1", "2\n3 1", r":8: 10 lines, expected 7"),
        ("2 1\n4", "2 1 1\n4", r":8: 3 numbers, expected 'n label' of a graph"),
        ("2 1\n4", "-2 1\n4", r":8: -2 nodes, expected at least 0"),
        ("7 1 0\n", "", r":10: 9 lines, expected 10"),
        ("7 1 0\n", "7\n", r":10: expected 'tag degree neighbour …' of a node"),
        ("7 1 0\n", "7 2 0\n", r":10: 1 neighbours, expected 2, the degree"),
        ("7 1 0\n", "7 1 0 3.5\n", r":10: '3.5', expected an integer"),
        ("7 1 0\n", "7 1 2\n", r":10: neighbour 2, expected 0 to 1"),
        ("7 1 0\n", "7 1 -1\n", r":10: neighbour -1, expected 0 to 1"),
        ("7 1 0\n", "- 1 0\n", r":10: '-', expected an integer"),
        ("7 1 0\n", "7 1 1234567890123456789\n", r":10: '1234567890123456789', expected an integer of at most 18"),
    ],
)
def test_packed_file_that_is_wrong(packed, old, new, message):
    assert PACKED.count(old) == 1
    packed.write_text(PACKED.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        read_tu(packed)
    assert str(error.value).startswith(str(packed))


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        ("A", "3,1\n", "3\n", r"_A\.txt:4: 1 numbers, expected two node numbers"),
        ("A", "3,1\n", "\n", r"_A\.txt:4: 0 numbers, expected two node numbers"),
        ("A", "3,1\n", "3,0\n", r"_A\.txt:4: 0, expected a node from 1 to 6"),
        ("A", "3,1\n", "7,1\n", r"_A\.txt:4: 7, expected a node from 1 to 6"),
        ("A", "3,1\n", "3,5\n", r"_A\.txt:4: 3, expected two nodes of the same graph"),
        ("A", "3,1\n", "3,x\n", r"_A\.txt:4: 'x', expected an integer"),
        ("graph_indicator", "2\n", "0\n", r"_graph_indicator\.txt:4: 0, expected a graph from 1 to 3"),
        ("graph_indicator", "2\n3\n", "3\n2\n", r"_graph_indicator\.txt:5: 2, expected graphs in ascending order"),
        ("node_labels", "7\n", "", r"_node_labels\.txt: 5 lines, expected 6, one label in each"),
        ("node_labels", "7\n", "7, 2\n", r"_node_labels\.txt:6: 2 numbers, expected one label"),
        ("edge_labels", "70\n", "", r"_edge_labels\.txt: 6 lines, expected 7"),
        ("node_attributes", "4.5, -4\n", "", r"_node_attributes\.txt: 5 lines, expected 6"),
        ("node_attributes", OFFICIAL["node_attributes"], "", r"_node_attributes\.txt: 0 lines, expected 6"),
        ("node_attributes", "4.5, -4\n", "4.5, a\n", r"_node_attributes\.txt: could not convert string"),
    ],
)
def test_official_file_that_is_wrong(tmp_path, kind, old, new, message):
    assert old in OFFICIAL[kind]
    folder = write_official(tmp_path / "TOY", **{kind: OFFICIAL[kind].replace(old, new)})
    with pytest.raises(ValueError, match=message):
        read_tu(folder)


@pytest.mark.parametrize(("suffix", "opener"), [(".xz", lzma.open), (".gz", gzip.open)])
def test_attributes_that_cannot_be_decompressed(tmp_path, suffix, opener):
    folder = write_official(tmp_path / "TOY")
    (folder / "TOY_node_attributes.txt").unlink()
    path = folder / f"TOY_node_attributes.txt{suffix}"
    with opener(path, "wt") as file:
        file.write(OFFICIAL["node_attributes"])
    assert read_tu(folder).node_attributes[3].tolist() == [3.5, -3]
    whole = path.read_bytes()
    middle = len(whole) // 2
    for wrong in (whole[:20], b"0.5, 1\n" * 6, whole[:middle] + bytes(8 * [255]) + whole[middle + 8 :]):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"TOY_node_attributes\.txt\{suffix}: cannot be decompressed"):
            read_tu(folder)


def test_first_line_is_no_promise(packed):
    packed.write_text(PACKED.replace("3\n3 1", "100000000000000000\n3 1"))
    with pytest.raises(ValueError, match=r":11: the text ends, expected 'n label' of graph 4 of 100000000000000000"):
        read_tu(packed)


def test_mutag_ships_with_the_package():
    data = load_mutag()
    assert (data.name, len(data), data.num_nodes, data.edge_index.shape[1]) == ("MUTAG", 188, 3371, 2 * 3721)
    assert data.labels.bincount().tolist() == [63, 125]
    assert len(data.tags) == 7
    assert int(data.sizes.max()) == 28
    batch = data.batch
    assert torch.equal(batch[data.edge_index[0]], batch[data.edge_index[1]])


@pytest.mark.parametrize(
    ("name", "graphs", "nodes", "edges", "classes", "tags"),
    [
        ("PTC_MR", 344, 4915, 5054, [192, 152], 18),
        ("ENZYMES", 600, 19580, 37282, [100] * 6, 3),
        ("IMDBBINARY", 1000, 19773, 96531, [500, 500], 0),
        ("NCI1", 4110, 122747, 132753, [2053, 2057], 37),
    ],
)
def test_real_sets(shared_data, name, graphs, nodes, edges, classes, tags):
    path = shared_data / "graphs" / "tu" / f"{name}.txt.xz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    data = read_tu(path)
    assert (len(data), data.num_nodes, data.edge_index.shape[1], len(data.tags)) == (graphs, nodes, 2 * edges, tags)
    assert data.labels.bincount().tolist() == classes


# --- edge lists ---


def test_edge_list(tmp_path):
    path = tmp_path / "net.txt"
    path.write_text("# a comment\n% another\n0 1\n\n3\t1\n 1,0 \n")
    edges, n = read_edge_list(path)
    assert edges.tolist() == [[0, 3, 1], [1, 1, 0]]
    assert (edges.dtype, n) == (torch.int64, 4)
    path.write_text("# toy undirected simple nodes 6 edges 1\n0 1\n")
    assert read_edge_list(path)[1] == 6
    path.write_text("# Nodes: 1 Edges: 1\n0 1")
    assert read_edge_list(path)[1] == 2  # the ids of the file go further
    for text in ("", "\n", "# nothing\n"):
        path.write_text(text)
        edges, n = read_edge_list(path)
        assert (edges.shape, n) == ((2, 0), 0)


@pytest.mark.parametrize("text", ["0 1\n", "# Nodes: 9 Edges: 1\n0 1\n", "2\t0"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_byte_order_mark(tmp_path, text, suffix):
    path, plain = tmp_path / f"net.txt{suffix}", tmp_path / "plain.txt"
    plain.write_text(text)
    with (gzip.open if suffix else open)(path, "wb") as file:
        file.write(b"\xef\xbb\xbf" + text.encode())
    edges, n = read_edge_list(path)
    assert (edges.tolist(), n) == (read_edge_list(plain)[0].tolist(), read_edge_list(plain)[1])


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("# Directed graph\n# Nodes: 9 Edges: 1\n# FromNodeId\tToNodeId\n0 1\n", 9),
        ("# Nodes:\t9\tEdges:\t1\r\n0 1\r\n", 9),
        ("# as-22july06 undirected simple nodes 9 edges 1\n0 1\n", 9),
        ("# without the nodes 9 and 10\n0 1\n", 2),
        ("# all nodes: 9, edges: 4\n0 1\n", 2),
        ("# nodes 9\n0 1\n", 2),
        ("0 1\n# Nodes: 9 Edges: 1\n", 2),
        ("# Nodes: 999999999999 Edges: 1\n0 1\n", 2),
        ("# \n" * 100 + "# Nodes: 9 Edges: 1\n0 1\n", 2),
    ],
)
def test_edge_list_headers(tmp_path, text, nodes):
    path = tmp_path / "net.txt"
    path.write_bytes(text.encode())
    assert read_edge_list(path)[1] == nodes


def test_edge_list_in_a_folder(tmp_path):
    with pytest.raises(ValueError, match="is a folder, expected a file"):
        read_edge_list(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1 # one\n", ":1: '#', expected an integer"),
        ("u,v\n0,1\n", ":1: 'u', expected an integer"),
        ("0 1\n0\n", ":2: 1 numbers, expected two node ids"),
        ("# a\n0 1 5\n", ":2: 3 numbers, expected two node ids"),
        ("0 1\n2 -3\n", ":2: -3, expected node ids of at least 0"),
        ("0 1\na b\n", ":2: 'a', expected an integer"),
    ],
)
def test_edge_list_that_is_wrong(tmp_path, text, message):
    path = tmp_path / "net.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_edge_list(path)


def test_real_edge_list(shared_data):
    path = shared_data / "graphs" / "net" / "karate.txt.xz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    edges, n = read_edge_list(path)
    assert (edges.shape, n) == ((2, 78), 34)
