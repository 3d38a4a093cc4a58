# SPDX-License-Identifier: Apache-2.0
"""What a run trains on: the inputs of all graphs, made once, and the network that fits them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from innerloop.data.tu import GraphDataset, load_mutag, read_tu
from innerloop.nn.ma_gcnn import MAGCNN, MGCNN
from innerloop.ops.motif_grid import motif_grid
from innerloop.ops.node_orbits import node_orbits
from innerloop.recipes.ma_gcnn.blocks import forward_blocks, number_blocks
from innerloop.recipes.ma_gcnn.config import GRID_NODES, Config, known_as
from innerloop.simple_graph import Graph

__all__ = ["Problem", "histogram", "make_problem", "read_dataset"]

#: Degrees from here on are one bin of a histogram.
_DEGREES = 128
#: Blocks are numbered where there are so many times fewer distinct ones than blocks in a batch.
_FEWER = 4


def read_dataset(data: Path | None = None) -> GraphDataset:
    """The set in the folder or file ``data``; MUTAG, which ships with the package, where it is None."""
    return load_mutag() if data is None else read_tu(data)


@dataclass(frozen=True, eq=False)
class Problem:
    """The graphs of a set as a model sees them.

    Attributes:
        name, digest: of the set; the digest tells sets of one name apart.
        inputs: of ``logits``, each with one row a graph: histograms (B, T); or grids (B, F, 3S, 3N), or the numbers of
            their blocks, int64 (B, N, S); with orbits ``orbit_statistics``, (B, G), behind.
        labels: int64 (B,).
        grid: (F, S, N) of grids.
        blocks: (1, F, 3, 3U), where the inputs are numbers of blocks.
    """

    name: str
    digest: str
    inputs: tuple[Tensor, ...]
    labels: Tensor
    num_classes: int
    grid: tuple[int, int, int] | None = None
    blocks: Tensor | None = None

    def network(self, config: Config, items: Tensor | None = None) -> nn.Module:
        """The model of ``config.variant``, with parameters of torch's generator, to train on ``items``, int64."""
        if config.variant == "structure-free":
            return nn.Sequential(
                nn.Linear(self.inputs[0].shape[1], config.hidden),
                nn.ReLU(),
                nn.Linear(config.hidden, config.hidden),
                nn.ReLU(),
                nn.Linear(config.hidden, self.num_classes),
            )
        channels, slots, nodes = self.grid
        if config.variant == "m-gcnn":
            return MGCNN(nodes, slots, self.num_classes, in_channels=channels)
        if config.variant == "ma-gcnn":
            return MAGCNN(slots, self.num_classes, in_channels=channels)
        model = MAGCNN(
            slots,
            self.num_classes,
            in_channels=channels,
            graph_features=self.inputs[1].shape[1],
            graph_bins=config.bins,
            graph_hidden=config.hidden,
        )
        if items is not None and config.bins:
            model.fit_bins(self.inputs[1][items])
        return model

    def to(self, device: str) -> Problem:
        moved = tuple(x.to(device) for x in self.inputs)
        blocks = None if self.blocks is None else self.blocks.to(device)
        return replace(self, inputs=moved, labels=self.labels.to(device), blocks=blocks)

    def logits(self, network: nn.Module, items: Tensor) -> Tensor:
        """(b, C) of the graphs ``items``, int64 (b,)."""
        x, *statistics = (x[items] for x in self.inputs)
        options = {"graph_features": statistics[0]} if statistics else {}
        return network(x, **options) if self.blocks is None else forward_blocks(network, self.blocks, x, **options)


def make_problem(dataset: GraphDataset, config: Config) -> Problem:
    """Grids, or histograms, of all graphs.

    Raises:
        ValueError: the set has no graph, or one class only.
    """
    if dataset.num_classes < 2:
        raise ValueError(f"{dataset.name}: {dataset.num_classes} classes, expected graphs of at least 2")
    if config.variant == "structure-free":
        inputs, grid, blocks = (histogram(dataset).log1p(),), None, None
    else:
        inputs = _grids(dataset, config)
        _, channels, rows, columns = inputs[0].shape
        grid, blocks = (channels, rows // 3, columns // 3), None
        numbered = number_blocks(inputs[0], config.batch_size * grid[1] * grid[2] // _FEWER)
        if numbered is not None:
            blocks, code = numbered
            inputs = (code, *inputs[1:])
    return Problem(dataset.name, _digest(dataset), inputs, dataset.labels, dataset.num_classes, grid, blocks)


def _grids(dataset: GraphDataset, config: Config) -> tuple[Tensor, ...]:
    """(B, F, 3S, 3N), and with orbits their statistics, (B, G)."""
    graph = Graph(dataset.edge_index, dataset.num_nodes, ptr=dataset.ptr)
    nodes = config.grid_nodes or GRID_NODES.get(known_as(dataset.name)) or -(-dataset.num_nodes // len(dataset))
    grid = motif_grid(
        graph,
        nodes,
        config.slots,
        node_labels=dataset.node_tags,
        num_labels=_DEGREES if dataset.node_tags is None and config.content == "onehot" else None,
        tie=config.tie,
        content=config.content,
    )
    if config.variant != "ma-gcnn+orbits":
        return (grid.x,)
    return grid.x, orbit_statistics(dataset, node_orbits(graph, config.orbit_size))


def orbit_statistics(dataset: GraphDataset, counts: Tensor) -> Tensor:
    """What a graph's orbit counts, node labels and size come to, the same whatever the order of its nodes.

    Args:
        counts: (n, O), orbits of all nodes; below, c is log(1 + count).

    Returns:
        float32 (B, 3O + 2): mean, standard deviation and maximum of each c over a graph's nodes, log(1 + nodes),
        log(1 + edges). Where nodes have T labels, (2 + O) T columns more: the share of each label, log(1 + nodes with
        it), and the mean of each c over these, 0 where there are none.
    """
    c, batch, size = counts.double().log1p(), dataset.batch, len(dataset)
    nodes = dataset.sizes.double()[:, None]
    edges = torch.bincount(batch, dataset.degree.double(), size)[:, None] / 2

    def mean(values: Tensor, group: Tensor, members: Tensor) -> Tensor:
        total = values.new_zeros(len(members), values.shape[1]).index_add_(0, group, values)
        return total / members.clamp(min=1)

    center = mean(c, batch, nodes)
    greatest = torch.zeros_like(center).scatter_reduce_(0, batch[:, None].expand_as(c), c, "amax")
    columns = [center, mean((c - center[batch]).square(), batch, nodes).sqrt(), greatest, nodes.log1p(), edges.log1p()]
    if dataset.node_tags is not None:
        bins = len(dataset.tags)
        labelled = histogram(dataset).double()
        by_label = mean(c, batch * bins + dataset.node_tags, labelled.view(-1, 1))
        columns += [labelled / nodes.clamp(min=1), labelled.log1p(), by_label.view(size, -1)]
    return torch.cat(columns, 1).float()


def histogram(dataset: GraphDataset) -> Tensor:
    """Nodes of each label in each graph, float32 (B, T); of each degree up to 127 where nodes have no labels."""
    if dataset.node_tags is None:
        bin_of, bins = dataset.degree.clamp(max=_DEGREES - 1), _DEGREES
    else:
        bin_of, bins = dataset.node_tags, len(dataset.tags)
    counts = torch.bincount(dataset.batch * bins + bin_of, minlength=len(dataset) * bins)
    return counts.view(len(dataset), bins).float()


def _digest(dataset: GraphDataset) -> str:
    """16 hexadecimal digits of edges, sizes, labels and tags."""
    state = hashlib.sha256()
    for tensor in (dataset.edge_index, dataset.ptr, dataset.labels, dataset.node_tags):
        if tensor is not None:
            state.update(repr(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    return state.hexdigest()[:16]
