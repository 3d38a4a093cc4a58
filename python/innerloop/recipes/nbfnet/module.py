# SPDX-License-Identifier: Apache-2.0
"""NBFNet as LightningModules: ranking on a knowledge graph, and links of an undirected graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from innerloop.data.kg import Split
from innerloop.graph import RelGraph
from innerloop.recipes._batches import step_generator
from innerloop.recipes._task import Task
from innerloop.recipes.nbfnet.config import Config
from innerloop.recipes.nbfnet.heuristics import auroc_and_ap
from innerloop.recipes.nbfnet.memory import InParts, explained, node_state_text
from innerloop.recipes.nbfnet.tasks import (
    FactIndex,
    adversarial_loss,
    easy_edges,
    filtered_rank,
    given_rank,
    metrics_of,
    training_queries,
)

#: Settings that may be others in a resumed run.
_MAY_CHANGE = ("epochs", "eval_batch_size", "hits_samples", "checkpoint")


class NBFNetTask(Task):
    """Trains and ranks with ``innerloop.nn.NBFNet`` on the graph of an ``NBFNetData``.

    Args:
        relations: relation tokens, in the order of their ids (inverses not included).
        config: a ``Config`` or its fields.
        dataset: name of the data set, for evaluation from a checkpoint.
        data: folder of the data set; None if it ships with the package.
        inductive: whether HITS@10_n is reported.
        model: takes the place of the NBFNet of ``config``; an ``innerloop.nn.Ultra`` also gets the relation graph of
            the split, without dropped edges.
    """

    recipe = "nbfnet"
    monitor = "mrr"
    identity = ("relations",)
    may_change = _MAY_CHANGE

    def __init__(
        self,
        relations: Sequence[str],
        config: Config | dict[str, Any],
        dataset: str = "",
        data: str | None = None,
        inductive: bool = False,
        model: torch.nn.Module | None = None,
    ) -> None:
        super().__init__(config if isinstance(config, Config) else Config(**config))
        from innerloop.nn import NBFNet, Ultra

        config = self.config
        self.num_relations = len(relations)
        self.relations = list(relations)
        self.hits_samples = list(dict.fromkeys((config.hits_samples, 50, 49))) if inductive else []
        self.save_hyperparameters(
            {
                "relations": self.relations,
                "config": asdict(config),
                "dataset": dataset,
                "data": data,
                "inductive": inductive,
            }
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = model or NBFNet(self.num_relations, **config.model_arguments())
        self._relations: Any = None  # relation graph of the split last asked for
        self._is_ultra = isinstance(self.model, Ultra)
        self._graphs: dict[tuple[int, int], tuple[Any, FactIndex, FactIndex, Any]] = {}
        self._in_parts = InParts()

    def remarks(self) -> list[str]:
        return ["hits@10_n: in expectation over n sampled negatives"] if self.hits_samples else []

    def forward(self, graph: Any, query: Tensor, target: Tensor | None = None) -> Tensor:
        """Logits of the targets (B, N), or of all entities (B, V), of queries (B, 3)."""
        options = {"relations": self._relations} if self._is_ultra else {}
        return self.model(graph, query[:, 0], query[:, 1], target, **options)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        config = self.config
        split = self.trainer.datamodule.kg.train
        graph, facts, _ = self._graph(split)
        query = training_queries(batch["items"], self.num_relations)
        generator = step_generator(config.seed, batch["epoch"], 1 + batch["index"])
        typed = {} if split.types is None else {"types": split.types.to(self.device), "answer": query[:, 2]}
        negative = facts.sample_negatives(query[:, 0], query[:, 1], config.num_negative, generator, **typed)
        easy = easy_edges(facts, query, negative, self.num_relations, config.remove_one_hop)
        with explained(self._training_memory):
            logits = self(graph.drop(easy), query, torch.cat([query[:, 2:], negative], dim=1))
        return self._record(adversarial_loss(logits, config.adversarial_temperature), len(query))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        with explained(self._training_memory):
            super().backward(loss, *args, **kwargs)

    def on_validation_epoch_start(self) -> None:
        self._start_ranking(self.trainer.datamodule.kg.valid)

    def on_test_epoch_start(self) -> None:
        self._start_ranking(self.trainer.datamodule.kg.test)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._rank(batch, self.trainer.datamodule.kg.valid)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._rank(batch, self.trainer.datamodule.kg.test)

    def _start_ranking(self, split: Split) -> None:
        # One row per query, filled by the process that ranks it: their sum over processes is exact.
        self._ranks = torch.zeros(2 * len(split.targets), 2, dtype=torch.float64, device=self.device)

    def _rank(self, batch: dict[str, Tensor], split: Split) -> None:
        columns = [batch[name] for name in ("query", "negative") if name in batch]
        if len(batch["query"]):
            graph, _, known = self._graph(split)
            with explained(partial(self._ranking_memory, split)):
                ranks = self._in_parts(partial(self._ranks_of, graph, known), *columns)
            self._ranks[batch["position"]] = ranks

    def _ranks_of(self, graph: Any, known: FactIndex, query: Tensor, negative: Tensor | None = None) -> Tensor:
        """Rank and number of negatives of each query, float64 (B, 2): among ``negative`` (B, N), or filtered."""
        if negative is None:
            ranks = filtered_rank(self(graph, query), query, known)
        else:
            ranks = given_rank(self(graph, query, torch.cat([query[:, 2:], negative], dim=1)), query)
        return torch.stack([column.double() for column in ranks], dim=1)

    def _training_memory(self) -> str:
        config, split = self.config, self.trainer.datamodule.kg.train
        keep = "" if config.checkpoint else ", or set checkpoint, which keeps little more than these states"
        return (
            f"out of memory in a training step: {self._node_states(split, config.batch_size)}, "
            f"besides what the layers keep for the backward pass; lower batch_size ({config.batch_size}) "
            f"or dim ({config.dim}){keep}"
        )

    def _ranking_memory(self, split: Split) -> str:
        return (
            f"out of memory at one query at a time (eval_batch_size is {self.config.eval_batch_size}): "
            f"{self._node_states(split, 1)}; what is left to lower is dim ({self.config.dim})"
        )

    def _node_states(self, split: Split, batch: int) -> str:
        size = next(self.parameters()).element_size()
        return node_state_text(split.num_entities, batch, self.config.dim, self.config.num_layers, size)

    def _measure(self) -> dict[str, float]:
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self._ranks)
        rank, num_negative = self._ranks.cpu().unbind(1)
        return metrics_of(rank, num_negative, self.hits_samples)

    def _graph(self, split: Split) -> tuple[Any, FactIndex, FactIndex]:
        """Graph with inverses, index of its facts and index of the known triples of a split."""
        known_triples = split.filter if split.negatives is None else split.facts  # given negatives need no filter
        key = (id(split.facts), id(known_triples))  # transductive splits share one graph
        if key not in self._graphs:
            from innerloop.nn import relation_graph

            h, r, t = split.facts.to(self.device).unbind(1)
            graph = RelGraph(
                torch.stack([h, t]),
                r,
                num_nodes=split.num_entities,
                num_relations=self.num_relations,
            ).with_inverse()
            facts = FactIndex(graph.edge_index, graph.edge_type, graph.num_nodes, graph.num_relations)
            known = facts
            if known_triples is not split.facts:
                known = FactIndex.from_triples(known_triples.to(self.device), split.num_entities, self.num_relations)
            relations = relation_graph(graph) if self._is_ultra else None
            self._graphs[key] = (graph, facts, known, relations)
        *found, self._relations = self._graphs[key]
        return tuple(found)


class LinkTask(Task):
    """Trains and tests a symmetric NBFNet of one relation on the undirected graph of a ``LinkData``.

    Each positive pair of a batch has ``num_negative`` negatives of their own, head and tail. All edges between the two
    ends of any pair of the batch are taken out of the graph, but for the self-loop that every node has.

    Args:
        config: a ``Config`` or its fields.
        dataset, num_nodes, num_edges: of the data; a run can only be resumed on the same.
    """

    recipe, command = "nbfnet", "links"
    monitor = "auroc"
    identity = ("dataset", "num_nodes", "num_edges")
    may_change = _MAY_CHANGE

    def __init__(self, config: Config | dict[str, Any], dataset: str, num_nodes: int, num_edges: int) -> None:
        super().__init__(config if isinstance(config, Config) else Config(**config))
        from innerloop.nn import NBFNet

        self.save_hyperparameters(
            {
                "command": self.command,
                "config": asdict(self.config),
                "dataset": dataset,
                "num_nodes": num_nodes,
                "num_edges": num_edges,
            }
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.model = NBFNet(1, inverse=False, **self.config.model_arguments())
        self._graph: tuple[RelGraph, FactIndex] | None = None

    def forward(self, graph: RelGraph, head: Tensor, tail: Tensor) -> Tensor:
        """Logits of the pairs (head_i, tail_i), (n,)."""
        return self.model.pair_scores(graph, head, tail)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        config = self.config
        positive = batch["items"][:, [0, 2]].T  # (2, B)
        shape = (2, positive.shape[1], config.num_negative)
        generator = step_generator(config.seed, batch["epoch"], 1 + batch["index"])
        negative = self.trainer.datamodule.links.negatives("train", shape[1] * shape[2], generator)
        pairs = torch.cat([positive[..., None], negative.to(self.device).view(shape)], dim=2)
        head, tail = pairs.flatten(1)
        logits = self(self.visible(head, tail), head, tail).view(pairs.shape[1:])
        return self._record(adversarial_loss(logits, config.adversarial_temperature), len(logits))

    def visible(self, head: Tensor, tail: Tensor) -> RelGraph:
        """The graph of messages without the edges between head_i and tail_i, in both directions, for every i."""
        graph, edges = self._message_graph()
        easy = edges.edges_between(head, tail)
        easy[graph.num_edges - graph.num_nodes :] = False  # the self-loops, which stand last
        return graph.drop(easy)

    def on_validation_epoch_start(self) -> None:
        self._start_scoring("valid")

    def on_test_epoch_start(self) -> None:
        self._start_scoring("test")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._run_sources(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._run_sources(batch)

    def _start_scoring(self, split: str) -> None:
        self._pairs, self._label = self.trainer.datamodule.pairs(split)
        # h(u, v) + h(v, u) of every pair (u, v), each added by the process that runs its source.
        width = self.model.mlp[0].in_features - self.model.dim
        self._feature = torch.zeros(self._pairs.shape[1], width, device=self.device)

    def _run_sources(self, batch: dict[str, Tensor]) -> None:
        source = batch["source"]
        if len(source):
            graph, _ = self._message_graph()
            hidden, _ = self.model.node_features(graph, source, torch.zeros_like(source))
            found = hidden[batch["target"], batch["column"]]
            self._feature.index_add_(0, batch["pair"], found.to(self._feature.dtype))

    def _measure(self) -> dict[str, float]:
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(self._feature)
        score = self.model.score(self._feature[None] / 2, self.model.query.weight)[0].cpu()
        if score.isnan().any():
            u, v = self._pairs[:, int(score.isnan().nonzero()[0])].tolist()
            raise ValueError(
                f"the model scored the pair ({u}, {v}) with NaN: the metrics would mean nothing "
                "(has training diverged?)"
            )
        return dict(zip(("auroc", "ap"), auroc_and_ap(score, self._label), strict=True))

    def _message_graph(self) -> tuple[RelGraph, FactIndex]:
        """The training edges in both directions with self-loops, and their index."""
        if self._graph is None:
            graph = self.trainer.datamodule.links.message_graph(self_loops=True).to(self.device)
            self._graph = graph, FactIndex(graph.edge_index, graph.edge_type, graph.num_nodes, 1)
        return self._graph
