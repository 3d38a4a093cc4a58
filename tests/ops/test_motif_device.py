# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of triangles, orbits and match without a GPU: CUDA compiled as C++, a fiber for each thread."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from gpu_ops import compile_with_nvrtc
from innerloop import Graph, cuda, edge_orbits, graphlets, node_orbits, triangles
from innerloop.ops import _motif_gpu as gpu
from innerloop.ops._match_ops import Search, match_count
from innerloop.ops._match_plan import HEADER, LEVEL, SET, Level, compile_plan
from innerloop.ops._patterns import as_pattern
from innerloop.ops.match import _request
from innerloop.reference.match import match as reference_match
from torch import Tensor

ROOT = Path(__file__).parents[2]
FILES = tuple(gpu.KERNELS)
pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the source tree")


@pytest.fixture(scope="session")
def kernels(tmp_path_factory) -> gpu.MotifKernels:
    compiler = shutil.which("g++") or pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("cuda")
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    flags += ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'cuda'}"]
    loaded = {}
    for name in FILES:
        source, library = ROOT / "tests" / "cuda" / f"{name}.cpp", folder / f"{name}.so"
        subprocess.run([compiler, *flags, *include, str(source), "-o", str(library)], check=True)
        loaded[name] = ctypes.CDLL(str(library))

    def launch(file, kernel, blocks, args, device, stream) -> None:
        assert not loaded[file].launch(kernel, blocks, args, ctypes.c_size_t(len(args)))

    return gpu.MotifKernels(launch)


def random_graph(n: int, density: float) -> Graph:
    pairs = torch.triu_indices(n, n, 1)
    pairs = pairs[:, torch.rand(pairs.shape[1]) < density]
    return Graph(pairs[:, torch.randperm(pairs.shape[1])], n)


def complete(n: int) -> Graph:
    return Graph(torch.triu_indices(n, n, 1), n)


def hubs() -> Graph:
    """Two hubs with 90 common neighbours, three of the latter in a triangle; a pendant path and an isolated node."""
    leaves = torch.arange(2, 92)
    ends = torch.cat([leaves, leaves, torch.tensor([1, 3, 4, 4, 92, 93])])
    starts = torch.cat([torch.zeros(90), torch.ones(90), torch.tensor([0, 2, 2, 3, 5, 92])]).long()
    return Graph(torch.stack([starts, ends]), 95)


# Sparse and dense, one word of bits and several, empty, and rows longer than a warp.
GRAPHS = {
    "none": lambda: Graph(torch.empty(2, 0, dtype=torch.int64), 0),
    "isolated": lambda: Graph(torch.empty(2, 0, dtype=torch.int64), 3),
    "edge": lambda: complete(2),
    "sparse": lambda: random_graph(60, 0.06),
    "middle": lambda: random_graph(40, 0.3),
    "dense": lambda: random_graph(24, 0.9),
    "complete": lambda: complete(70),
    "hubs": hubs,
}


def test_nvrtc_compiles_every_kernel():
    """What CuPy will do at first use: the text alone, each kernel by its name."""
    for file, names in gpu.KERNELS.items():
        compile_with_nvrtc(cuda.source(f"{file}.cuh"), {f"il::{name}" for name in names}, "-std=c++17")


@pytest.fixture(params=GRAPHS)
def graph(request) -> Graph:
    return GRAPHS[request.param]()


def test_triangles(kernels, graph):
    for by_edge, per in ((False, "node"), (True, "edge")):
        counts = kernels.triangles(graph.index, graph.adjacency, by_edge)
        assert counts.dtype == torch.int64
        assert torch.equal(counts, triangles(graph, per))


@pytest.mark.parametrize("induced", [True, False])
@pytest.mark.parametrize("k", [3, 4])
@pytest.mark.parametrize("op", [node_orbits, edge_orbits], ids=lambda op: op.__name__)
def test_orbits(kernels, graph, op, k, induced):
    counts = getattr(kernels, op.__name__)(graph.index, graph.adjacency, k, induced)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, op(graph, k, induced=induced))


@pytest.mark.parametrize("op", [node_orbits, edge_orbits], ids=lambda op: op.__name__)
def test_cycles_in_parts(kernels, op, monkeypatch):
    """Every node with more than three lower neighbours is shared by several blocks; each block has rows of its own."""
    monkeypatch.setattr(gpu, "_PART", 3)
    for graph in (random_graph(50, 0.2), hubs()):
        assert torch.equal(getattr(kernels, op.__name__)(graph.index, graph.adjacency, 4, True), op(graph))


def test_scratch_is_bounded(monkeypatch):
    graph = random_graph(50, 0.2)
    packed = gpu._Packed.of(graph.index, graph.adjacency)
    assert gpu.MotifKernels._blocks(packed, gpu._SCRATCH // 2) == 2
    assert gpu.MotifKernels._blocks(packed, gpu._SCRATCH) == 1
    assert gpu.MotifKernels._blocks(packed, gpu._SCRATCH * 2) == 1


def matches(kernels, graph: Graph, plan, node_labels=None, edge_labels=None) -> int:
    roots = kernels.match_roots(graph.index, graph.adjacency, plan.code, node_labels, edge_labels)
    assert roots.shape == (graph.num_nodes,)
    assert roots.dtype == torch.int64
    return int(roots.sum()) * plan.multiplier


@pytest.fixture(scope="module")
def small() -> Graph:
    torch.manual_seed(0)
    return random_graph(14, 0.45)


@pytest.mark.parametrize("heavy", [0, 10, 4096])
@pytest.mark.parametrize("induced", [True, False])
def test_match_finds_every_graphlet(kernels, small, induced, heavy, monkeypatch):
    """Edges of a sum of degrees of `heavy` and more are shared by three warps."""
    monkeypatch.setattr(gpu, "_HEAVY", heavy)
    monkeypatch.setattr(gpu, "_SHARED_BY", 3)
    expected = graphlets(small, 5, induced=induced)[0].tolist()
    chosen = range(30) if heavy == 10 else (6, 9, 16, 20, 28)
    for i in chosen:
        assert matches(kernels, small, compile_plan(as_pattern(f"G{i}", "match"), induced)) == expected[i], f"G{i}"


@pytest.mark.parametrize("pattern", ["K3,3", "wheel6", "star6", "path6", "cycle6", "K2,4"])
def test_match_larger_patterns(kernels, pattern):
    graph = random_graph(9, 0.5)
    shape = as_pattern(pattern, "match")
    for induced in (False, True):
        expected = reference_match(graph.edges.T, 9, shape.edges, shape.num_nodes, induced)[0]
        assert matches(kernels, graph, compile_plan(shape, induced)) == expected


@pytest.mark.parametrize("heavy", [0, 100, 4096])
def test_match_in_rows_longer_than_a_warp(kernels, heavy, monkeypatch):
    monkeypatch.setattr(gpu, "_HEAVY", heavy)
    monkeypatch.setattr(gpu, "_SHARED_BY", 3)
    graph = hubs()
    for name, i in (("cycle4", 5), ("diamond", 7), ("K4", 8), ("paw", 6), ("path4", 3), ("star4", 4)):
        expected = int(graphlets(graph)[0, i])
        assert matches(kernels, graph, compile_plan(as_pattern(name, "match"), True)) == expected, name


def test_match_labels(kernels):
    """Labels of nodes and edges, -1 in the pattern for any."""
    graph = random_graph(11, 0.5)
    node_labels, edge_labels = torch.randint(2, (11,)), torch.randint(2, (graph.num_edges,))
    found = 0
    for name in ("edge", "wedge", "triangle", "star4", "paw", "diamond", "cycle4", "house"):
        size, count = as_pattern(name, "match").num_nodes, len(as_pattern(name, "match").edges)
        for nodes, edges in (((0,) + (-1,) * (size - 1), None), (None, (1,) + (-1,) * (count - 1)), (
            (1, 0) * (size // 2) + (1,) * (size % 2), (0, -1) * (count // 2) + (0,) * (count % 2),
        )):  # fmt: skip
            shape = as_pattern(name, "match", nodes, edges)
            labels = {
                "node_labels": None if nodes is None else node_labels,
                "edge_labels": None if edges is None else edge_labels,
            }
            for induced in (False, True):
                expected = reference_match(
                    graph.edges.T, 11, shape.edges, size, induced,
                    pattern_node_labels=nodes, pattern_edge_labels=shape.edge_labels, **labels,
                )[0]  # fmt: skip
                plan = compile_plan(shape, induced)
                assert matches(kernels, graph, plan, **labels) == expected, (name, nodes, edges, induced)
                found += expected
    assert found > 0


def test_match_count_takes_the_kernels(kernels):
    """With labels, seeds and roots, as the op does it on a GPU."""
    graph = random_graph(14, 0.5)
    labels = {"node_labels": torch.arange(14) % 3, "pattern_node_labels": [0, -1, 1]}
    labels |= {"edge_labels": torch.arange(graph.num_edges) % 2, "pattern_edge_labels": [-1, 1]}
    for options in ({"symmetry": "all"}, {"seeds": torch.tensor([3, 11])}, {"roots": (2, 9)}, labels):
        request = _request("match", graph, "wedge", **options)
        search = Search(*request)
        counts = search.by_node(search.count_on(kernels))
        assert counts.count_nonzero()
        assert torch.equal(counts, match_count(*request))


def test_match_counts_at_the_root(kernels):
    """Each match counts at one node, that of level 0, in the order of the nodes."""
    graph = Graph(torch.tensor([[3, 3], [0, 2]]), 5)
    wedge = as_pattern("wedge", "match")  # its middle is node 1
    for root, expected in ((1, [0, 0, 0, 1, 0]), (0, [1, 0, 1, 0, 0])):
        roots = kernels.match_roots(graph.index, graph.adjacency, compile_plan(wedge, root=root).code)
        assert roots.tolist() == expected


def test_python_packs_the_members_of_the_structs():
    def members(file: str, struct: str) -> tuple[str, ...]:
        text = (ROOT / "csrc" / "cuda" / f"{file}.cuh").read_text()
        body = re.sub(r"//.*", "", re.search(rf"struct {struct} \{{(.*?)\n\}};", text, re.S)[1])
        names = [name.strip() for line in body.split(";") for name in line.split(",") if name.strip()]
        return tuple(re.sub(r".*[\s*]", "", name) for name in names)

    graph = members("simple_graph", "PackedGraph")
    for file, struct in (("triangles", "TriangleArgs"), ("node_orbits", "OrbitArgs"), ("match", "MatchArgs")):
        first, *rest = members(file, struct)
        assert first == "graph"
        assert (*graph, *rest) == gpu.ARGUMENTS[file]


def test_kernels_by_number():
    """The tables of the launchers and of Python, and what NVRTC is asked for."""
    for file, names in gpu.KERNELS.items():
        text = (ROOT / "csrc" / "cuda" / f"{file}.cuh").read_text()
        assert tuple(re.findall(r"__global__ void __launch_bounds__\(THREADS\) (\w+)", text)) == names
        table = re.search(r"Kernels\[\]\)\(\w+\) = \{(.*?)\};", text, re.S)[1]
        assert tuple(re.findall(r"\w+", table)) == names
        assert "#include" not in cuda.source(f"{file}.cuh")


def test_layout_of_the_plan():
    text = (ROOT / "csrc" / "cuda" / "match.cuh").read_text()
    value = {name: int(number) for name, number in re.findall(r"\b([A-Z_]+) = (\d+)", text)}
    assert (value["PLAN_HEADER"], value["PLAN_LEVEL"], value["PLAN_SET"]) == (HEADER, LEVEL, SET)
    for name in ("distinct", "node_label", "adjacent", "apart", "lower", "higher"):
        assert value[name.upper()] == Level._fields.index(name)


def test_packed_tensors_are_checked(kernels):
    graph = complete(4)
    for index, adjacency in (
        (graph.index, graph.adjacency[:-1]),
        (graph.index.int(), graph.adjacency),
        (graph.index, graph.adjacency.long()),
    ):
        with pytest.raises(ValueError, match="expected those of one Graph"):
            kernels.triangles(index, adjacency, False)


def test_without_being_asked_for_the_cpu_counts(monkeypatch):
    """The implementation for CUDA tensors, called with CPU tensors: no kernel is launched."""
    graph = random_graph(20, 0.3)
    op = torch.ops.innerloop.node_orbits
    monkeypatch.setattr(gpu, "_launcher", None)
    monkeypatch.setattr(gpu, "gpu_kernels", lambda: None)
    gpu._warn_on_cpu.cache_clear()

    class Op:
        name = "node_orbits"

        def __call__(self, *args) -> Tensor:
            return op(*args)

    with pytest.warns(UserWarning, match="node_orbits: no kernel is taken"):
        counts = gpu.count(Op(), "node_orbits", graph.index, graph.adjacency, 4, True)
    assert torch.equal(counts, node_orbits(graph))
    monkeypatch.setattr(gpu, "gpu_kernels", lambda: "cuda")
    assert torch.equal(gpu.count(Op(), "", graph.index, graph.adjacency, 5, True), node_orbits(graph, 5))


def test_graph_to():
    graph = Graph(torch.tensor([[0, 1, 3], [1, 2, 4]]), ptr=torch.tensor([0, 3, 5]))
    moved = graph.to("cpu")
    assert moved.device == torch.device("cpu")
    assert (moved.num_nodes, moved.num_edges, moved.num_graphs) == (5, 3, 2)
    for name in ("index", "adjacency", "ptr", "edges", "batch", "degree", "rank", "order"):
        assert torch.equal(getattr(moved, name), getattr(graph, name))
    meta = graph.to("meta")
    assert {getattr(meta, name).device.type for name in ("index", "adjacency", "ptr", "edges", "order")} == {"meta"}
