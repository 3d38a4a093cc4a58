# SPDX-License-Identifier: Apache-2.0
"""Neural Bellman-Ford Networks (Zhu et al., NeurIPS 2021): the layer and the link-prediction model.

Parameter names and layouts are those of the official code, so its checkpoints keep their meaning:
`linear` reads [h_prev (d) | update], where for PNA update = features ⊗ scalers, features channel-major and
statistic-minor ([mean, max, min, std]), the product feature-major and scaler-minor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..graph import RelGraph
from ..ops._functions import AGGREGATES, Aggregate, Message
from ..ops.nbfnet_layer import combine_pna, nbfnet_layer
from ..ops.relational_spmm import SUMS, relational_spmm

__all__ = ["ExplainedPath", "GeneralizedRelationalConv", "NBFNet", "pna_scalers"]

_MESSAGES = {"distmult": "mul", "transe": "add", "rotate": "rotate", "min": "min", "and": "and"}
_ACTIVATIONS = {"relu": F.relu, "none": lambda x: x}


def pna_scalers(graph: RelGraph, dtype: torch.dtype = torch.float32) -> Tensor:
    """Degree scalers of PNA as NBFNet uses them: (V, 3) with columns [1, s, 1 / max(s, 0.01)].

    s = log(deg + 1) / mean over nodes of log(deg + 1), deg the in-degree in the given (edge-dropped) graph. On a
    graph without edges, where the official code divides 0 by 0, s = 0.
    """
    # Half types would round large degrees, or overflow: cast last.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    log_degree = (graph.in_degree.to(wide) + 1).log()
    mean = log_degree.mean() if graph.num_nodes else log_degree.sum()
    s = log_degree / torch.where(mean > 0, mean, torch.ones_like(mean))
    return torch.stack([torch.ones_like(s), s, 1 / s.clamp(min=0.01)], dim=-1).to(dtype)


class GeneralizedRelationalConv(nn.Module):
    """One generalized Bellman-Ford layer: message, aggregate, combine.

    h'(v) = act(LayerNorm(W [h(v), ⊕ over in-edges (x, r, v) of h(x) ⊗ w_q(r), ⊕ boundary(v)] + b))

    Args:
        input_dim: d, channels of the input.
        output_dim: channels of the output.
        num_relations: relations of the graph, inverses included (2R).
        query_dim: channels of the query.
        message: "distmult", "transe" or "rotate"; also "min" and "and"; or an `innerloop.Message` of your functions.
        aggregate: "sum", "mean", "max", "min", "logsumexp", "or" or "pna"; or an `innerloop.Aggregate`.
        layer_norm: normalise before the activation.
        activation: "relu" or "none".
        dependent: every query has its own relation table, a linear map of the query; else one embedding for all.

    Shapes:
        input (V, B, input_dim), query (B, query_dim), boundary (V, B, input_dim), edge_weight (E,) or None;
        returns (V, B, output_dim).

    Raises:
        ValueError: unknown `message`, `aggregate` or `activation`, or "rotate" with an odd `input_dim`.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_relations: int,
        query_dim: int,
        message: str | Message = "distmult",
        aggregate: str | Aggregate = "pna",
        layer_norm: bool = False,
        activation: str = "relu",
        dependent: bool = True,
    ) -> None:
        super().__init__()
        # Beside a function of one's own: what can be compiled together with it.
        messages = _MESSAGES if not isinstance(aggregate, Aggregate) else ("distmult", "transe")
        sums = SUMS if not isinstance(message, Message) else AGGREGATES
        for name, value, known, own in (
            ("message", message, messages, Message),
            ("aggregate", aggregate, sums, Aggregate),
            ("activation", activation, _ACTIVATIONS, ()),
        ):
            if not isinstance(value, own) and value not in known:
                raise ValueError(f"GeneralizedRelationalConv: {name} is {value!r}, expected one of {', '.join(known)}")
        if message == "rotate" and input_dim % 2:
            raise ValueError(
                f"GeneralizedRelationalConv: input_dim is {input_dim}, expected an even number for message='rotate'"
            )
        self.input_dim, self.output_dim = input_dim, output_dim
        self.num_relations, self.query_dim = num_relations, query_dim
        self.message, self.aggregate, self.activation = message, aggregate, activation
        self._product = message if isinstance(message, Message) else _MESSAGES[message]
        self.dependent = dependent
        self.layer_norm = nn.LayerNorm(output_dim) if layer_norm else None
        self.linear = nn.Linear(input_dim * (13 if aggregate == "pna" else 2), output_dim)
        if dependent:
            self.relation_linear = nn.Linear(query_dim, num_relations * input_dim)
        else:
            self.relation = nn.Embedding(num_relations, input_dim)

    def relation_table(self, query: Tensor) -> Tensor:
        """Edge representations w_q: (2R, B, d) when dependent on the query, else (2R, d)."""
        if not self.dependent:
            return self.relation.weight
        table = self.relation_linear(query)
        return table.view(len(query), self.num_relations, self.input_dim).transpose(0, 1)

    def forward(
        self,
        graph: RelGraph,
        input: Tensor,
        query: Tensor,
        boundary: Tensor,
        edge_weight: Tensor | None = None,
    ) -> Tensor:
        return self.step(graph, self.relation_table(query), input, boundary, edge_weight)

    def step(
        self, graph: RelGraph, relation: Tensor, input: Tensor, boundary: Tensor, edge_weight: Tensor | None = None
    ) -> Tensor:
        """`forward` with given edge representations, (2R, B, d) or (2R, d)."""
        update = relational_spmm(
            graph,
            relation.to(input.dtype),
            input,
            sum=self.aggregate,
            mul=self._product,
            boundary=boundary.to(input.dtype),
            edge_weight=edge_weight,
        )
        if self.aggregate == "pna":
            scalers = pna_scalers(graph, input.dtype)
            hidden = combine_pna(input, update, self.linear.weight, self.linear.bias, scalers)
        else:
            hidden = self._combine(input, update)
        if self.layer_norm is not None:
            hidden = self.layer_norm(hidden)
        return _ACTIVATIONS[self.activation](hidden)

    def fused(
        self, graph: RelGraph, input: Tensor | None, source: Tensor, query: Tensor, scalers: Tensor, residual: bool
    ) -> Tensor:
        """`forward` for aggregate="pna" with the query at its source as boundary, plus the short cut, as one op.

        No `input`: the boundary is the input, as in the first layer.
        """
        norm = self.layer_norm
        dtype = query.dtype if input is None else input.dtype
        return nbfnet_layer(
            graph,
            self.relation_table(query).to(dtype),
            input,
            source,
            query.to(dtype),
            self.linear.weight.to(dtype),
            self.linear.bias.to(dtype),
            None if norm is None else norm.weight,
            None if norm is None else norm.bias,
            scalers,
            mul=self._product,
            eps=1e-5 if norm is None else norm.eps,
            relu=self.activation == "relu",
            residual=residual,
        )

    def _combine(self, input: Tensor, update: Tensor) -> Tensor:
        own, rest = self.linear.weight.split([self.input_dim, self.input_dim], dim=1)
        return F.linear(input, own, self.linear.bias) + F.linear(update, rest)

    def extra_repr(self) -> str:
        return (
            f"{self.input_dim}, {self.output_dim}, num_relations={self.num_relations}, message={self.message}, "
            f"aggregate={self.aggregate}, dependent={self.dependent}"
        )


def check_queries(model: str, graph: RelGraph, source: Tensor, relation: Tensor, target: Tensor | None) -> None:
    """Raises where shapes do not fit (ValueError) or an id is out of range (IndexError; not under torch.compile)."""
    if source.dim() != 1 or source.shape != relation.shape:
        raise ValueError(
            f"{model}: source and relation have shapes {tuple(source.shape)} and {tuple(relation.shape)}, "
            "expected (B,) each"
        )
    if target is not None and (target.dim() != 2 or len(target) != len(source)):
        raise ValueError(f"{model}: target has shape {tuple(target.shape)}, expected ({len(source)}, N) or None")
    _check_ids(model, "source", source, graph.num_nodes)
    _check_ids(model, "relation", relation, graph.num_relations)
    if target is not None:
        _check_ids(model, "target", target, graph.num_nodes)


def _check_ids(model: str, name: str, ids: Tensor, limit: int) -> None:
    if torch.compiler.is_compiling() or not ids.numel():
        return
    if int(ids.min()) < 0 or int(ids.max()) >= limit:
        bad = ids[(ids < 0) | (ids >= limit)].flatten()[0]
        raise IndexError(f"{model}: {name} holds {int(bad)}, expected ids in [0, {limit})")


class ExplainedPath(NamedTuple):
    """A path that contributes to a prediction, see :meth:`NBFNet.explain`."""

    weight: float
    """Mean over its steps of d score / d edge weight of the step's layer."""
    edges: list[int]
    """Positions in `graph.edge_index`, first step first."""


class NBFNet(nn.Module):
    """Neural Bellman-Ford Network for link prediction on a knowledge graph or, with `inverse=False`, an undirected one.

    Runs `num_layers` Bellman-Ford layers from the source of each query and scores targets with an MLP. With PNA and
    without edge weights each layer is one op, `nbfnet_layer`, reached through `GeneralizedRelationalConv.fused`: module
    hooks on the layers do not run then.

    Args:
        num_relations: R, relations before inverses are added.
        dim: channels of every layer and of the query embedding.
        num_layers: Bellman-Ford steps.
        message, aggregate, dependent, layer_norm: see :class:`GeneralizedRelationalConv`.
        short_cut: add the input of a layer to its output.
        concat_hidden: read out all layers, not only the last.
        num_mlp_layers: linear layers of the readout.
        checkpoint: keep only the input of each layer for the backward pass, and run the layer again there: less memory
            for one more forward pass.
        inverse: the graph given to `forward` has 2R relations (`graph.with_inverse()`), and so have the query embedding
            and the layers. False: R, for a graph whose edges already run both ways, see `pair_scores`.

    Source: Zhu et al. 2021, section 3.3 and appendix; defaults are those of the published runs.
    """

    def __init__(
        self,
        num_relations: int,
        dim: int = 32,
        num_layers: int = 6,
        message: str | Message = "distmult",
        aggregate: str | Aggregate = "pna",
        dependent: bool = True,
        short_cut: bool = True,
        layer_norm: bool = True,
        concat_hidden: bool = False,
        num_mlp_layers: int = 2,
        checkpoint: bool = False,
        inverse: bool = True,
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        for name, value in (
            ("num_relations", num_relations),
            ("dim", dim),
            ("num_layers", num_layers),
            ("num_mlp_layers", num_mlp_layers),
        ):
            if value < 1:
                raise ValueError(f"NBFNet: {name} is {value}, expected at least 1")
        self.num_relations, self.dim, self.inverse = num_relations, dim, inverse
        self.short_cut, self.concat_hidden = short_cut, concat_hidden
        kinds = 2 * num_relations if inverse else num_relations
        self.query = nn.Embedding(kinds, dim)
        self.layers = nn.ModuleList(
            GeneralizedRelationalConv(dim, dim, kinds, dim, message, aggregate, layer_norm, "relu", dependent)
            for _ in range(num_layers)
        )
        width = dim * (num_layers + 1 if concat_hidden else 2)
        mlp: list[nn.Module] = []
        for _ in range(num_mlp_layers - 1):
            mlp += [nn.Linear(width, width), nn.ReLU()]
        self.mlp = nn.Sequential(*mlp, nn.Linear(width, 1))

    def forward(
        self,
        graph: RelGraph,
        source: Tensor,
        relation: Tensor,
        target: Tensor | None = None,
        edge_weight: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Scores of (source, relation, target) as logits.

        Args:
            graph: V nodes and 2R relations (R if `inverse` is False).
            source: int64 (B,). relation: int64 (B,) in [0, 2R); a head query (?, r, t) is source t, relation r + R.
            target: int64 (B, N), or None for all nodes.
            edge_weight: floating (E,) weights of the messages in every layer, or one such tensor for each layer.

        Returns:
            (B, N), or (B, V) when `target` is None.

        Raises:
            ValueError: shapes that do not fit, or a graph with another number of relations.
            IndexError: an id out of range.
        """
        self._check(graph, source, relation, target)
        hidden, query = self.node_features(graph, source, relation, edge_weight)
        if target is None:
            hidden = hidden.transpose(0, 1)  # (B, V, d)
        else:
            hidden = hidden[target, torch.arange(len(source), device=target.device)[:, None]]  # (B, N, d)
        return self.score(hidden, query)

    def pair_scores(
        self, graph: RelGraph, head: Tensor, tail: Tensor, relation: int = 0, *, symmetric: bool = True
    ) -> Tensor:
        """Scores of the pairs (head_i, tail_i) as logits; each distinct source is run once.

        symmetric: MLP([(h(u, v) + h(v, u)) / 2, query]), equal for (u, v) and (v, u); else MLP([h(u, v), query]).

        Args:
            graph: V nodes and 2R relations (R if `inverse` is False).
            head, tail: int64 (n,).
            relation: of the query, in both directions.
            symmetric: run from the heads and from the tails, else from the heads alone.

        Returns:
            (n,).

        Raises:
            ValueError: shapes that do not fit, or a graph with another number of relations.
            IndexError: an id out of range.

        Source: Zhu et al. 2021, appendix on homogeneous graphs; the official code's `symmetric`.
        """
        if head.dim() != 1 or head.shape != tail.shape:
            raise ValueError(
                f"NBFNet.pair_scores: head and tail have shapes {tuple(head.shape)} and {tuple(tail.shape)}, "
                "expected (n,) each"
            )
        self._check_graph(graph)
        for name, ids in (("head", head), ("tail", tail)):
            _check_ids("NBFNet.pair_scores", name, ids, graph.num_nodes)
        asked = torch.tensor([relation], device=head.device)
        _check_ids("NBFNet.pair_scores", "relation", asked, graph.num_relations)
        source, target = torch.stack([head, tail]), torch.stack([tail, head])
        if not symmetric:
            source, target = source[:1], target[:1]
        source, column = torch.unique(source, return_inverse=True)
        hidden, _ = self.node_features(graph, source, asked.expand(len(source)))
        return self.score(hidden[target, column].mean(0)[None], self.query(asked))[0]

    def node_features(
        self,
        graph: RelGraph,
        source: Tensor,
        relation: Tensor,
        edge_weight: Tensor | Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Pair representations h_q(u, v) of all nodes, (V, B, d or layers·d), and the query (B, d)."""
        query = self.query(relation)
        weighted = edge_weight is not None or graph.edge_weight is not None
        fused = self.layers[0].aggregate == "pna" and not weighted
        if fused:
            scalers, hidden = pna_scalers(graph, query.dtype), None
        else:
            columns = torch.arange(len(source), device=source.device)
            boundary = query.new_zeros(graph.num_nodes, len(source), self.dim)
            hidden = boundary = boundary.index_put((source, columns), query)
        weights = edge_weight if isinstance(edge_weight, list | tuple) else [edge_weight] * len(self.layers)
        if len(weights) != len(self.layers):
            raise ValueError(
                f"NBFNet: edge_weight has {len(weights)} tensors, expected {len(self.layers)}, one per layer"
            )
        states = []

        def step(layer: GeneralizedRelationalConv, hidden: Tensor | None, weight: Tensor | None) -> Tensor:
            if fused:
                return layer.fused(graph, hidden, source, query, scalers, self.short_cut)
            output = layer(graph, hidden, query, boundary, weight)
            return output + hidden if self.short_cut else output

        for layer, weight in zip(self.layers, weights, strict=True):
            if self.checkpoint and torch.is_grad_enabled():
                hidden = checkpoint(step, layer, hidden, weight, use_reentrant=False)
            else:
                hidden = step(layer, hidden, weight)
            states.append(hidden)
        return (torch.cat(states, dim=-1) if self.concat_hidden else hidden), query

    def score(self, hidden: Tensor, query: Tensor) -> Tensor:
        """MLP([hidden, query]) for hidden (B, N, k) and query (B, d): logits (B, N).

        The first layer is split so that the query is multiplied once, not once for each of the N targets.
        """
        first = self.mlp[0]
        own, rest = first.weight.split([hidden.shape[-1], self.dim], dim=1)
        out = F.linear(hidden, own) + F.linear(query, rest, first.bias).unsqueeze(1)
        return self.mlp[1:](out).squeeze(-1)

    def explain(
        self, graph: RelGraph, source: int, relation: int, target: int, *, k: int = 10, num_beam: int = 10
    ) -> list[ExplainedPath]:
        """The k paths from `source` to `target` that contribute most to the score of (source, relation, target).

        Every layer gets edge weights of its own, all 1. The weight of a path is the sum over its steps t of
        d score / d (weight of its edge in layer t), divided by its length: a first-order estimate of what the path
        adds. A beam search keeps the `num_beam` best beginnings per node and step; a path ends where it meets the
        target. No tensor with a row of channels per edge is formed.

        Args:
            graph: V nodes and 2R relations, without edge weights.
            source, relation, target: ids; a head query (?, r, t) is source t, relation r + R.
            k: paths to return. num_beam: width of the beam.

        Returns:
            At most k paths, best first; fewer where there are fewer, none where the target is out of reach.

        Raises:
            ValueError: a graph with edge weights or another number of relations, or k or num_beam below 1.
            IndexError: an id out of range.

        Source: Zhu et al. 2021, section 3.4 and appendix (num_beam = 10, the ten best paths).
        """
        from .. import _cpu

        if graph.edge_weight is not None:
            raise ValueError("NBFNet.explain: graph has edge weights, expected none")
        for name, value in (("k", k), ("num_beam", num_beam)):
            if value < 1:
                raise ValueError(f"NBFNet.explain: {name} is {value}, expected at least 1")
        device, dtype = self.query.weight.device, self.query.weight.dtype
        query = torch.tensor([[source], [relation], [target]], device=device)
        weights = [torch.ones(graph.num_edges, device=device, dtype=dtype).requires_grad_() for _ in self.layers]
        with torch.enable_grad():
            score = self(graph, query[0], query[1], query[2:], weights)
            grads = torch.autograd.grad(score.sum(), weights)
        table = torch.stack([g.detach().double().cpu() for g in grads])
        return [
            ExplainedPath(*path)
            for path in _cpu.best_paths(graph.csr.cpu(), table, len(table), int(source), int(target), k, num_beam)
        ]

    def _check(self, graph: RelGraph, source: Tensor, relation: Tensor, target: Tensor | None) -> None:
        self._check_graph(graph)
        check_queries("NBFNet", graph, source, relation, target)

    def _check_graph(self, graph: RelGraph) -> None:
        expected = self.query.num_embeddings
        if graph.num_relations != expected:
            kind = "2R: use graph.with_inverse()" if self.inverse else "R: the model has inverse=False"
            raise ValueError(f"NBFNet: graph has {graph.num_relations} relations, expected {expected} ({kind})")
