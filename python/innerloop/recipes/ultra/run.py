# SPDX-License-Identifier: Apache-2.0
"""Zero-shot answers, ranking and fine-tuning with an ULTRA checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from tqdm.auto import tqdm

from innerloop.data.find import choose_dataset
from innerloop.data.kg import KnowledgeGraph, Split
from innerloop.graph import RelGraph
from innerloop.nn.ultra import Ultra, relation_graph
from innerloop.recipes.nbfnet.config import Config
from innerloop.recipes.nbfnet.explain import find_entity, find_relation
from innerloop.recipes.nbfnet.run import train
from innerloop.recipes.nbfnet.tasks import FactIndex, filtered_rank, metrics_of, queries_of

__all__ = ["evaluate", "fit", "predict"]


def predict(
    checkpoint: Path,
    head: str,
    relation: str,
    *,
    data: Path | None = None,
    dataset: str | None = None,
    split: Literal["test", "valid", "train"] = "test",
    inverse: bool = False,
    known: bool = False,
    k: int = 10,
    threads: int | None = None,
) -> list[tuple[str, float]]:
    """Print the k most likely tails of (head, relation, ?), without any training on this graph.

    Args:
        checkpoint: of DeepGraphLearning/ULTRA, or of innerloop.
        head: entity, by its token in the files or by its readable name.
        relation: relation, by its token.
        data: folder of the data set. dataset: or the name of an embedded one (default fb237_v1).
        split: whose graph is read.
        inverse: ask for heads of (?, relation, head) instead.
        known: also list answers that the graph already holds.
        k: answers to print.
        threads: CPU threads of this process.

    Returns:
        (entity, probability) of the answers, most likely first.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    model = Ultra.from_checkpoint(checkpoint).eval()
    kg = choose_dataset(dataset, data)
    part: Split = getattr(kg, split)
    source = find_entity("head", head, part)
    asked = find_relation(relation, kg.relations) + (kg.num_relations if inverse else 0)
    graph = _graph(kg, part)
    with torch.no_grad():
        score = model(graph, torch.tensor([source]), torch.tensor([asked]))[0]
    if not known:
        here = (graph.edge_index[0] == source) & (graph.edge_type == asked)
        score[graph.edge_index[1, here]] = -torch.inf
    value, entity = score.sort(descending=True, stable=True)
    count = min(k, int(value.isfinite().sum()))
    names = part.names or part.entities
    answers = [(names[i], float(p)) for i, p in zip(entity[:count].tolist(), value[:count].sigmoid(), strict=True)]
    print(f"(?, {relation}, {head})" if inverse else f"({head}, {relation}, ?)")
    for name, probability in answers:
        print(f"{probability:.4f}  {name}")
    return answers


def evaluate(
    checkpoint: Path,
    *,
    data: Path | None = None,
    dataset: str | None = None,
    split: Literal["test", "valid"] = "test",
    batch_size: int = 16,
    threads: int | None = None,
) -> dict[str, float]:
    """Rank one split by an ULTRA checkpoint, both directions, filtered; ties count against the answer.

    Args:
        checkpoint: of DeepGraphLearning/ULTRA, or of innerloop.
        data: folder of the data set. dataset: or the name of an embedded one (default fb237_v1).
        split: test or valid.
        batch_size: queries scored together.
        threads: CPU threads of this process.

    Returns:
        Metric name -> value.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    model = Ultra.from_checkpoint(checkpoint).eval()
    kg = choose_dataset(dataset, data)
    part: Split = getattr(kg, split)
    graph = _graph(kg, part)
    relations = relation_graph(graph)
    queries = torch.cat(queries_of(part.targets, kg.num_relations))
    known = FactIndex.from_triples(part.filter, part.num_entities, kg.num_relations)
    results = []
    for batch in tqdm(queries.split(batch_size), disable=None, leave=False):
        with torch.no_grad():
            score = model(graph, batch[:, 0], batch[:, 1], relations=relations)
        results.append(torch.stack(filtered_rank(score, batch, known), 1))
    rank, negatives = torch.cat(results).unbind(1)
    metrics = metrics_of(rank, negatives, [50, 49] if kg.inductive else [])
    print(", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    return metrics


def fit(
    checkpoint: Path,
    *,
    data: Path | None = None,
    dataset: str | None = None,
    epochs: int = 1,
    batch_size: int = 16,
    lr: float = 5e-4,
    num_negative: int = 256,
    adversarial_temperature: float = 1.0,
    remove_one_hop: bool = False,
    seed: int = 1024,
    eval_batch_size: int = 16,
    output: Path | None = None,
    resume: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Fine-tune an ULTRA checkpoint on one data set, keep the best epoch, and report it on the test split.

    Args:
        checkpoint: of DeepGraphLearning/ULTRA, or of innerloop.
        data: folder of the data set. dataset: or the name of an embedded one (default fb237_v1).
        epochs, batch_size, lr, num_negative, adversarial_temperature, remove_one_hop, seed, eval_batch_size: as for
            innerloop nbfnet fit.
        output: where checkpoints and metrics.json go; default runs/ultra/<data set>.
        resume: "auto", or a checkpoint of an interrupted run.
        threads: CPU threads of this process.
        progress: show a progress bar.

    Returns:
        What metrics.json holds.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    model = Ultra.from_checkpoint(checkpoint)
    kg = choose_dataset(dataset, data)
    config = Config(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        num_negative=num_negative,
        adversarial_temperature=adversarial_temperature,
        remove_one_hop=remove_one_hop,
        seed=seed,
        eval_batch_size=eval_batch_size,
        dim=model.dim,
        num_layers=len(model.entity_model.layers),
        aggregate="sum",
        dependent=False,
    )
    output = output or Path("runs") / "ultra" / kg.name.lower()
    return train(kg, config, output, data=data, resume=resume, progress=progress, model=model)


def _graph(kg: KnowledgeGraph, part: Split) -> RelGraph:
    facts = part.facts
    return RelGraph(facts[:, [0, 2]].T, facts[:, 1], part.num_entities, kg.num_relations).with_inverse()
