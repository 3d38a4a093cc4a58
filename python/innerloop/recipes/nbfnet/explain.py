# SPDX-License-Identifier: Apache-2.0
"""`innerloop nbfnet explain`: the paths behind a prediction, with the names of the data set."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from innerloop.data.find import find_dataset
from innerloop.data.kg import Split
from innerloop.graph import RelGraph
from innerloop.recipes._run import load_checkpoint
from innerloop.recipes.nbfnet.config import Config

__all__ = ["explain", "find_entity", "find_relation"]


def explain(
    head: str,
    relation: str,
    tail: str,
    *,
    checkpoint: Path = Path("runs/nbfnet/fb237_v1/best.ckpt"),
    data: Path | None = None,
    split: Literal["test", "valid", "train"] = "test",
    k: int = 10,
    num_beam: int = 10,
    threads: int | None = None,
) -> dict[str, Any]:
    """Print the paths from head to tail that contribute most to the score of a triple.

    Args:
        head: entity, by its token in the files or by its readable name.
        relation: relation, by its token.
        tail: entity, like head.
        checkpoint: a file that fit wrote.
        data: folder of the data set; default the one the model was trained on.
        split: whose graph the paths run through.
        k: paths to print.
        num_beam: beginnings kept per node and step of the search.
        threads: CPU threads of this process.

    Returns:
        The score (logit), and the paths: weight and (source, relation, target) of every step, an inverse edge with
        its relation's token and a trailing "⁻¹".
    """
    from innerloop.recipes.nbfnet.module import NBFNetTask

    if threads is not None:
        torch.set_num_threads(threads)
    saved = load_checkpoint(checkpoint, "nbfnet")
    hparams = saved["hyper_parameters"]
    kg = find_dataset(hparams["dataset"], data or hparams["data"], relations=hparams["relations"])
    part: Split = getattr(kg, split)
    task = NBFNetTask(kg.relations, Config(**hparams["config"]), inductive=kg.inductive)
    task.load_state_dict(saved["state_dict"])
    h, t = find_entity("head", head, part), find_entity("tail", tail, part)
    r = find_relation(relation, kg.relations)

    facts = part.facts
    graph = RelGraph(facts[:, [0, 2]].T, facts[:, 1], part.num_entities, kg.num_relations).with_inverse()
    with torch.no_grad():
        score = task(graph, torch.tensor([[h, r, t]]), torch.tensor([[t]])).item()
    relations = [*kg.relations, *(f"{name}⁻¹" for name in kg.relations)]
    names = part.names or part.entities
    (source, target), kind = graph.edge_index, graph.edge_type
    paths = [
        {
            "weight": path.weight,
            "steps": [(names[source[e]], relations[kind[e]], names[target[e]]) for e in path.edges],
        }
        for path in task.model.explain(graph, h, r, t, k=k, num_beam=num_beam)
    ]
    print(_text((names[h], relation, names[t]), score, paths))
    return {"score": score, "paths": paths}


def find_entity(argument: str, text: str, part: Split) -> int:
    """Id of an entity by token, else by readable name; ValueError names near ones."""
    if text in part.entities:
        return list(part.entities).index(text)
    matches = [i for i, name in enumerate(part.names or ()) if name == text]
    if len(matches) > 1:
        tokens = ", ".join(part.entities[i] for i in matches[:5])
        raise ValueError(f"{argument} is {text!r}, expected one entity: {len(matches)} have this name ({tokens})")
    return matches[0] if matches else _position(argument, text, [*(part.names or ()), *part.entities])


def find_relation(text: str, relations: Sequence[str]) -> int:
    """Id of a relation by token; ValueError names near ones."""
    return _position("relation", text, relations)


def _position(argument: str, text: str, known: Sequence[str]) -> int:
    if text in known:
        return list(known).index(text)
    near = difflib.get_close_matches(text, set(known), 3, 0.5)
    hint = f"; near: {', '.join(near)}" if near else ""
    raise ValueError(f"{argument} is {text!r}, expected one of the data set's {len(known)}{hint}")


def _text(triple: tuple[str, str, str], score: float, paths: list[dict[str, Any]]) -> str:
    lines = [f"({', '.join(triple)}): score {score:.4g}", ""]
    if not paths:
        return "\n".join([*lines, "no path within the model's layers"])
    lines.append("weight    path")
    for path in paths:
        text = path["steps"][0][0] + "".join(f" -[{kind}]-> {end}" for _, kind, end in path["steps"])
        lines.append(f"{path['weight']:<9.3g} {text}")
    return "\n".join(lines)
