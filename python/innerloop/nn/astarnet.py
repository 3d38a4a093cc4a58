# SPDX-License-Identifier: Apache-2.0
"""A*Net (Zhu et al., NeurIPS 2023): NBFNet whose layers run on the nodes and edges that a learned priority selects.

The state is kept for reached nodes only, and a layer sees one graph: the disjoint union of the subgraphs that the
queries of the batch have selected. Parameter names and shapes are those of DeepGraphLearning/AStarNet with its one-hot
indicator.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..graph import RelGraph
from ..ops.nbfnet_layer import combine_pna
from ..ops.relational_spmm import relational_spmm
from ..reference.relational_spmm import PRODUCTS
from .nbfnet import GeneralizedRelationalConv, check_queries, pna_scalers

__all__ = ["AStarNet", "AStarSearch", "AStarSelection"]

_PRODUCTS = {"distmult": "mul", "transe": "add", "rotate": "rotate"}
_AGGREGATES = ("sum", "mean", "max", "min", "pna")


class AStarSelection(NamedTuple):
    """What one layer works on: query by query, highest priority first."""

    node: Tensor
    """int64 (2, n): query in the batch and id of each node that sends messages."""
    edge: Tensor
    """int64 (2, m): query in the batch and position in `graph.edge_index` of each edge that carries one."""


class AStarSearch(NamedTuple):
    """What :meth:`AStarNet.search` has found: n reached nodes of B queries."""

    node: Tensor
    """int64 (2, n): query in the batch and id of each reached node, sorted."""
    hidden: Tensor
    """(n, d): pair representations h_q(u, x). That of a node that was not reached is 0."""
    logit: Tensor
    """(n,): scores."""
    default: Tensor
    """(B,): score of every node that was not reached."""
    layers: list[AStarSelection]
    """What each layer selected."""


class _State(NamedTuple):
    key: Tensor  # int64 (n,), sorted: b · V + x for node x, reached by query b
    hidden: Tensor  # (n, d)
    logit: Tensor  # (n,)


class AStarNet(nn.Module):
    """A*Net: called like :class:`innerloop.nn.NBFNet`, at the cost of the selected nodes and edges.

    With h⁰(u) = q, and 0 elsewhere, each layer takes for each query

        s(x) = f(h(x) ⊗ g([h(x), q])),  ŝ(x) = sigmoid(s(x))                 the priority of a node; s is also its score
        X = the K nodes of highest s among those reached                     K = max(1, ⌊node_ratio · |V|⌋)
        Y = the L out-edges (x, r, v) of X of highest s(v)                   L = max(1, ⌊degree_ratio · K · |E| / |V|⌋)
        m(v) = ⊕ over (x, r, v) in Y of (ŝ(x) h(x)) ⊗ w_q(r),  ⊕ h⁰(v)
        h(v) ← relu(LayerNorm(W [ŝ(v) h(v), m(v)] + b)) + h(v)               where v has an edge in Y; else h(v) stays

    or all where there are fewer than K or L. `g` is `linear`, `f` is `mlp`. The choice has no gradient; s gets one
    through ŝ and as the score. To choose, s is rounded to 1e-4, so that nodes alike in the graph tie whatever the order
    of sums; ties go to the lower node, or for edges to the sender first in X, then the lower (relation, destination).

    "mean" and "pna" count a pruned message as 0 in mean and standard deviation: they divide by the in-degree in the
    whole graph, and the degree scalers are those of the whole graph, as in the official code's fused path.

    With both ratios 1 nothing is pruned: a layer is NBFNet's with input ŝ h, but only reached nodes send, and only
    nodes with an in-edge from one change. NBFNet updates the others too: bias and LayerNorm do not leave them 0.

    Args:
        num_relations: R, relations before inverses are added; the graph given to `forward` has 2R
            (`graph.with_inverse()`).
        dim: channels of every layer and of the query embedding.
        num_layers: Bellman-Ford steps.
        message: ⊗: "distmult", "transe" or "rotate".
        aggregate: ⊕: "sum", "mean", "max", "min" or "pna".
        dependent, layer_norm: see :class:`GeneralizedRelationalConv`.
        short_cut: add h(v) to the output of a layer, as above.
        num_mlp_layers: linear layers of f.
        node_ratio: α in (0, 1]. degree_ratio: β > 0, edges per selected node in units of the mean degree.
        test_node_ratio, test_degree_ratio: the same in evaluation mode. Default: as in training.
        break_ties: order equal priorities at random, drawn from torch's default generator. Without it the result is
            deterministic and, up to rounding, does not depend on the other queries of the batch.

    Raises:
        ValueError: an argument out of range.

    Source: Zhu et al., A*Net: A Scalable Path-based Reasoning Approach for Knowledge Graphs (NeurIPS 2023), section 3;
    defaults are those of the published FB15k-237 run.
    """

    def __init__(
        self,
        num_relations: int,
        dim: int = 32,
        num_layers: int = 6,
        message: str = "distmult",
        aggregate: str = "pna",
        dependent: bool = True,
        short_cut: bool = True,
        layer_norm: bool = True,
        num_mlp_layers: int = 2,
        node_ratio: float = 0.1,
        degree_ratio: float = 1.0,
        test_node_ratio: float | None = None,
        test_degree_ratio: float | None = None,
        break_ties: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (
            ("num_relations", num_relations),
            ("dim", dim),
            ("num_layers", num_layers),
            ("num_mlp_layers", num_mlp_layers),
        ):
            if value < 1:
                raise ValueError(f"AStarNet: {name} is {value}, expected at least 1")
        for name, value, known in (("message", message, _PRODUCTS), ("aggregate", aggregate, _AGGREGATES)):
            if value not in known:
                raise ValueError(f"AStarNet: {name} is {value!r}, expected one of {', '.join(known)}")
        test_node_ratio = node_ratio if test_node_ratio is None else test_node_ratio
        test_degree_ratio = degree_ratio if test_degree_ratio is None else test_degree_ratio
        for name, value in (("node_ratio", node_ratio), ("test_node_ratio", test_node_ratio)):
            if not 0 < value <= 1:
                raise ValueError(f"AStarNet: {name} is {value}, expected a ratio in (0, 1]")
        for name, value in (("degree_ratio", degree_ratio), ("test_degree_ratio", test_degree_ratio)):
            if not 0 < value < float("inf"):
                raise ValueError(f"AStarNet: {name} is {value}, expected a finite number above 0")
        self.num_relations, self.dim, self.short_cut = num_relations, dim, short_cut
        self.message, self.aggregate = message, aggregate
        self.node_ratio, self.degree_ratio = node_ratio, degree_ratio
        self.test_node_ratio, self.test_degree_ratio = test_node_ratio, test_degree_ratio
        self.break_ties = break_ties
        self.query = nn.Embedding(2 * num_relations, dim)
        self.layers = nn.ModuleList(
            GeneralizedRelationalConv(
                dim, dim, 2 * num_relations, dim, message, aggregate, layer_norm, "relu", dependent
            )
            for _ in range(num_layers)
        )
        self.linear = nn.Linear(2 * dim, dim)
        widths = [dim, *[2 * dim] * (num_mlp_layers - 1), 1]
        # The official names are mlp.layers.0, mlp.layers.1, ...
        self.mlp = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))})

    def forward(self, graph: RelGraph, source: Tensor, relation: Tensor, target: Tensor | None = None) -> Tensor:
        """Scores of (source, relation, target) as logits.

        Args:
            graph: V nodes and 2R relations; its edge weights, if any, multiply the messages (not with "pna").
            source: int64 (B,). relation: int64 (B,) in [0, 2R); a head query (?, r, t) is source t, relation r + R.
            target: int64 (B, N), or None for all nodes.

        Returns:
            (B, N), or (B, V) when `target` is None. All targets that were not reached have one score per query.

        Raises:
            ValueError: shapes that do not fit, or a graph with another number of relations, or weights and "pna".
            IndexError: an id out of range.
        """
        self._check(graph, source, relation, target)
        found = self.search(graph, source, relation)
        if target is None:
            return found.default[:, None].repeat(1, graph.num_nodes).index_put(tuple(found.node), found.logit)
        rows = torch.arange(len(source), device=target.device)[:, None]
        key = found.node[0] * graph.num_nodes + found.node[1]
        return _lookup(key, found.logit, rows * graph.num_nodes + target, found.default[:, None])

    def search(self, graph: RelGraph, source: Tensor, relation: Tensor) -> AStarSearch:
        """Runs all layers from `source` (B,) for the query relations (B,); see `forward` for the arguments."""
        self._check(graph, source, relation, None)
        query = self.query(relation)
        rows = torch.arange(len(source), device=source.device)
        default = self.score(torch.zeros_like(query), query, rows)
        state = _State(rows * graph.num_nodes + source, query, self.score(query, query, rows))
        scalers = pna_scalers(graph, query.dtype) if self.aggregate == "pna" else None
        layers = []
        for layer in self.layers:
            selection = self._select(graph, state, default)
            reached, hidden = self._propagate(layer, graph, selection.edge, source, query, scalers, state)
            logit = self.score(hidden, query, reached // graph.num_nodes)
            # Rows of reached nodes are replaced or added; the others stay.
            key, row = torch.unique(torch.cat([state.key, reached]), return_inverse=True)
            old, new = (row[: len(state.key)],), (row[len(state.key) :],)
            state = _State(
                key,
                hidden.new_zeros(len(key), self.dim).index_put(old, state.hidden).index_put(new, hidden),
                logit.new_zeros(len(key)).index_put(old, state.logit).index_put(new, logit),
            )
            layers.append(selection)
        return AStarSearch(_split(state.key, graph), state.hidden, state.logit, default, layers)

    def score(self, hidden: Tensor, query: Tensor, row: Tensor) -> Tensor:
        """f(h ⊗ g([h, q])), the score and the priority's logit: (n,).

        hidden (n, d), query (B, d); row (n,) is the query of each node.
        """
        own, other = self.linear.weight.split([self.dim, self.dim], dim=1)
        heuristic = F.linear(hidden, own) + F.linear(query, other, self.linear.bias)[row]
        first, *rest = self.mlp["layers"]
        out = first(PRODUCTS[_PRODUCTS[self.message]](hidden, heuristic))
        for layer in rest:
            out = layer(out.relu())
        return out.squeeze(-1).to(hidden.dtype)

    def priority(self, logit: Tensor) -> Tensor:
        """ŝ, the weight in [0, 1] of the state of a node with this score."""
        return logit.sigmoid()

    def budget(self, graph: RelGraph) -> tuple[int, int]:
        """K and L: the most nodes and edges that a layer selects for a query, in the present mode."""
        node_ratio = self.node_ratio if self.training else self.test_node_ratio
        degree_ratio = self.degree_ratio if self.training else self.test_degree_ratio
        # 0.29 * 100 is 28.999999999999996 in binary, and 29 is meant.
        nodes = max(1, int(node_ratio * graph.num_nodes + 1e-6))
        return nodes, max(1, int(degree_ratio * nodes * graph.num_edges / max(graph.num_nodes, 1) + 1e-6))

    def _check(self, graph: RelGraph, source: Tensor, relation: Tensor, target: Tensor | None) -> None:
        if graph.num_relations != 2 * self.num_relations:
            raise ValueError(
                f"AStarNet: graph has {graph.num_relations} relations, expected {2 * self.num_relations} "
                "(2R: use graph.with_inverse())"
            )
        if self.aggregate == "pna" and graph.edge_weight is not None:
            raise ValueError("AStarNet: graph has edge weights, expected none with aggregate='pna'")
        check_queries("AStarNet", graph, source, relation, target)

    @torch.no_grad()
    def _select(self, graph: RelGraph, state: _State, default: Tensor) -> AStarSelection:
        """The nodes and edges of the next layer: a few integers per edge, no channels."""
        num_nodes, num_edges = self.budget(graph)
        query, node = _split(state.key, graph)
        kept = self._top(state.logit, query, num_nodes)
        query, node = query[kept], node[kept]

        out = graph.by_source
        start, count = out.indptr[node].long(), out.indptr.diff()[node].long()
        sender = torch.arange(len(node), device=node.device).repeat_interleave(count)
        within = torch.arange(len(sender), device=node.device) - (count.cumsum(0) - count)[sender]
        position = start[sender] + within
        edge = torch.stack([query[sender], out.eid[position].long()])
        end = edge[0] * graph.num_nodes + out.src[position]  # `out` is reversed: its sources are the destinations
        kept = self._top(_lookup(state.key, state.logit, end, default[edge[0]]), edge[0], num_edges)
        return AStarSelection(torch.stack([query, node]), edge[:, kept])

    def _top(self, value: Tensor, group: Tensor, k: int) -> Tensor:
        """Positions of the k largest values of each group, group by group, largest first; ties in their order.

        `group` (n,) is sorted.
        """
        n = len(value)
        order = (torch.randperm if self.break_ties else torch.arange)(n, device=value.device)
        order = order[torch.round(value[order], decimals=4).argsort(descending=True, stable=True)]
        order = order[group[order].argsort(stable=True)]
        rank = torch.arange(n, device=value.device) - torch.searchsorted(group, group)
        return order[rank < k]

    def _propagate(
        self,
        layer: GeneralizedRelationalConv,
        graph: RelGraph,
        edge: Tensor,
        source: Tensor,
        query: Tensor,
        scalers: Tensor | None,
        state: _State,
    ) -> tuple[Tensor, Tensor]:
        """Keys (n,) and new states (n, d) of the nodes at the end of a selected edge (2, m)."""
        row, position = edge
        ends = row * graph.num_nodes + graph.edge_index[:, position]
        nodes, ends = torch.unique(ends, return_inverse=True)
        table, kind = layer.relation_table(query).to(query.dtype), graph.edge_type[position]
        if layer.dependent:  # (2R, B, d): each query has relations of its own
            kind = kind + row * graph.num_relations
            table = table.transpose(0, 1).flatten(0, 1)
        edge_weight = None if graph.edge_weight is None else graph.edge_weight[position]
        union = RelGraph(ends, kind, len(nodes), len(table), edge_weight)

        row, node = _split(nodes, graph)
        hidden = _lookup(state.key, state.hidden, nodes, query.new_zeros(()))
        weight = self.priority(_lookup(state.key, state.logit, nodes, query.new_zeros(())))
        weighted = weight[:, None] * hidden
        boundary = torch.where((node == source[row])[:, None], query[row], 0)
        update = relational_spmm(
            union, table, weighted, sum=self.aggregate, mul=_PRODUCTS[self.message], boundary=boundary
        )
        # Share of its messages that a node gets, the boundary counted as one.
        share = (union.in_degree.to(query.dtype) + 1) / (graph.in_degree[node].to(query.dtype) + 1)
        if self.aggregate == "pna":
            update = _rescale_pna(update, share[:, None])
            linear = layer.linear
            output = combine_pna(weighted[:, None], update[:, None], linear.weight, linear.bias, scalers[node])
            output = output.squeeze(1)
        else:
            if self.aggregate == "mean":
                update = update * share[:, None]
            output = layer.linear(torch.cat([weighted, update], dim=-1))
        if layer.layer_norm is not None:
            output = layer.layer_norm(output)
        output = F.relu(output).to(hidden.dtype)
        output = output + hidden if self.short_cut else output
        reached = union.in_degree > 0
        return nodes[reached], output[reached]

    def extra_repr(self) -> str:
        return f"node_ratio={self.node_ratio}, degree_ratio={self.degree_ratio}"


def _split(key: Tensor, graph: RelGraph) -> Tensor:
    """int64 (2, n): query and node of each key b · V + x."""
    return torch.stack([key // max(graph.num_nodes, 1), key % max(graph.num_nodes, 1)])


def _lookup(key: Tensor, value: Tensor, wanted: Tensor, default: Tensor) -> Tensor:
    """Rows of `value` (n, ...) at the sorted `key` (n,) for `wanted`, of any shape; `default` where a key is absent."""
    if not len(key):
        return value.new_zeros(*wanted.shape, *value.shape[1:])
    row = torch.searchsorted(key, wanted).clamp(max=len(key) - 1)
    present = (key[row] == wanted).view(*wanted.shape, *[1] * (value.dim() - 1))
    return torch.where(present, value[row], default)


def _rescale_pna(features: Tensor, share: Tensor) -> Tensor:
    """[mean, max, min, std] (n, 4, d) over some messages, to mean and std over all where the rest are 0.

    With E the mean over all: E[m] = share · mean, E[m²] = share · (std² + mean²).
    """
    mean, maximum, minimum, std = features.unbind(-2)
    square = share * (std.square() + mean.square())
    mean = share * mean
    std = (square - mean.square()).clamp(min=1e-6).sqrt()
    return torch.stack([mean, maximum, minimum, std], dim=-2)
