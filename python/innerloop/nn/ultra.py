# SPDX-License-Identifier: Apache-2.0
"""ULTRA (Galkin et al., ICLR 2024): NBFNet on the graph of relations, then on the graph of entities.

No parameter belongs to an entity or a relation, so one checkpoint works on any graph. Parameter names and shapes are
those of DeepGraphLearning/ULTRA: its checkpoints load as they are, see :func:`Ultra.from_checkpoint`.
"""

from __future__ import annotations

import warnings
from os import PathLike

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..graph import RelGraph
from ._checkpoint import read_checkpoint
from .nbfnet import GeneralizedRelationalConv, check_queries

__all__ = ["Ultra", "relation_graph"]

_KINDS = 4  # head-head, tail-tail, head-tail, tail-head


def relation_graph(graph: RelGraph) -> RelGraph:
    """The graph whose nodes are relations: an edge a → b of kind k where an entity is an end of both.

    Kinds: 0 head-head, 1 tail-tail, 2 head-tail (the head of an a edge is the tail of a b edge), 3 tail-head. One edge
    for each pair and kind, however many entities they share; a relation is joined to itself.

    Args:
        graph: V nodes and R relations, inverses included (`with_inverse`).

    Returns:
        A graph of R nodes and 4 relations that aggregates at a, from b, as ULTRA does.

    Source: Galkin et al., Towards Foundation Models for Knowledge Graph Reasoning (ICLR 2024), section 4.1.
    """
    source, target = graph.edge_index
    size = (graph.num_nodes, graph.num_relations)

    def incidence(node: Tensor) -> Tensor:
        """(V, R), 1 where the node is this end of an edge of the relation."""
        key = torch.unique(node * graph.num_relations + graph.edge_type)
        index = torch.stack([key // max(graph.num_relations, 1), key % max(graph.num_relations, 1)])
        ones = torch.ones(len(key), device=node.device)
        return torch.sparse_coo_tensor(index, ones, size, is_coalesced=True, check_invariants=True)

    head, tail = incidence(source), incidence(target)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        products = [torch.sparse.mm(a.t(), b) for a, b in ((head, head), (tail, tail), (head, tail), (tail, head))]
    pairs = [p.coalesce().indices() for p in products]
    kind = torch.cat([torch.full((p.shape[1],), k, device=p.device) for k, p in enumerate(pairs)])
    return RelGraph(torch.cat(pairs, dim=1), kind, graph.num_relations, _KINDS, flow="target_to_source")


class _ProjectedConv(GeneralizedRelationalConv):
    """A layer whose edge representations are a two-layer MLP of given relation vectors."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 1, dim, "distmult", "sum", layer_norm=True, dependent=False)
        del self.relation
        self.relation_projection = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))


class _RelationModel(nn.Module):
    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GeneralizedRelationalConv(dim, dim, _KINDS, dim, "distmult", "sum", layer_norm=True, dependent=False)
            for _ in range(num_layers)
        )


class _EntityModel(nn.Module):
    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_ProjectedConv(dim) for _ in range(num_layers))
        self.mlp = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, 1))


class Ultra(nn.Module):
    """The two-level model: called like :class:`innerloop.nn.NBFNet`, on any graph.

    Args:
        dim: channels of every layer. num_layers: Bellman-Ford steps on each level.

    Source: Galkin et al. (ICLR 2024), section 4; defaults are those of the published checkpoints.
    """

    def __init__(self, dim: int = 64, num_layers: int = 6) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("num_layers", num_layers)):
            if value < 1:
                raise ValueError(f"Ultra: {name} is {value}, expected at least 1")
        self.dim = dim
        self.relation_model = _RelationModel(dim, num_layers)
        self.entity_model = _EntityModel(dim, num_layers)

    @classmethod
    def from_checkpoint(cls, path: str | PathLike[str]) -> Ultra:
        """Reads a checkpoint of DeepGraphLearning/ULTRA, or of this class; no code in it is run.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or holds another model; the message names what does not fit.
        """
        saved = read_checkpoint(path)
        state = saved.get("model", saved) if isinstance(saved, dict) else {}
        if "state_dict" in state:  # of innerloop ultra fit
            state = {name.removeprefix("model."): value for name, value in state["state_dict"].items()}
        layers = [k for k in state if k.startswith("relation_model.layers.") and k.endswith(".linear.weight")]
        if not layers:
            raise ValueError(f"{path}: not a checkpoint of ULTRA: it has no relation_model.layers")
        model = cls(dim=len(state[layers[0]]), num_layers=len(layers))
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{path}: not a checkpoint of ULTRA with DistMult and sum: {error}") from error
        return model

    def forward(
        self,
        graph: RelGraph,
        source: Tensor,
        relation: Tensor,
        target: Tensor | None = None,
        *,
        relations: RelGraph | None = None,
    ) -> Tensor:
        """Scores of (source, relation, target) as logits.

        Args:
            graph: V nodes and 2R relations (`with_inverse`), without edge weights.
            source: int64 (B,). relation: int64 (B,) in [0, 2R); a head query (?, r, t) is source t, relation r + R.
            target: int64 (B, N), or None for all nodes.
            relations: `relation_graph(graph)`, made at each call unless given; in training that of the graph before
                edges were dropped.

        Returns:
            (B, N), or (B, V) when `target` is None.

        Raises:
            ValueError: shapes that do not fit. IndexError: an id out of range.
        """
        check_queries("Ultra", graph, source, relation, target)
        relations = relation_graph(graph) if relations is None else relations
        vectors = self.relation_vectors(relations, relation)
        columns = torch.arange(len(source), device=source.device)
        query = vectors[relation, columns]
        boundary = query.new_zeros(graph.num_nodes, len(source), self.dim).index_put((source, columns), query)
        # ULTRA aggregates at the head of an edge: on the graph with inverses, the same as along the inverse edges.
        reverse = graph.by_source
        hidden = boundary
        for layer in self.entity_model.layers:
            hidden = layer.step(reverse, layer.relation_projection(vectors), hidden, boundary) + hidden
        hidden = hidden.transpose(0, 1) if target is None else hidden[target, columns[:, None]]
        first, *rest = self.entity_model.mlp
        own, other = first.weight.split([self.dim, self.dim], dim=1)
        out = F.linear(hidden, own) + F.linear(query, other, first.bias).unsqueeze(1)
        for module in rest:
            out = module(out)
        return out.squeeze(-1)

    def relation_vectors(self, relations: RelGraph, query: Tensor) -> Tensor:
        """Vectors of all relations relative to each query relation: (2R, B, d)."""
        columns = torch.arange(len(query), device=query.device)
        weight = self.relation_model.layers[0].linear.weight
        boundary = weight.new_zeros(relations.num_nodes, len(query), self.dim)
        boundary = boundary.index_put((query, columns), weight.new_ones(()))
        hidden = boundary
        for layer in self.relation_model.layers:
            hidden = layer.step(relations, layer.relation.weight, hidden, boundary) + hidden
        return hidden
