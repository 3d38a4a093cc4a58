# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of the paper by data set, and the numbers it reports."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from innerloop.recipes._settings import UsageError, check_integers, check_numbers


@dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run, besides the data.

    Attributes:
        epochs: passes over the training facts.
        batch_size: triples per step and process.
        lr: learning rate of Adam, constant.
        num_negative: negatives per positive.
        adversarial_temperature: T of the self-adversarial negative weights; 0 weights all alike.
        remove_one_hop: drop every edge between the two ends of each pair in the batch, positives
            and negatives, instead of only the facts of the batch and their inverses.
        dim, num_layers, message, aggregate, dependent, short_cut, layer_norm, concat_hidden,
            num_mlp_layers: see ``innerloop.nn.NBFNet``.
        seed: of the initial parameters, the order of the facts and the negatives.
        eval_batch_size: queries scored together in evaluation.
        limit: training steps of a process in an epoch at most, on facts drawn anew in each; None for all.
        hits_samples: n of HITS@10_n, reported on inductive data beside the two values in use:
            50 (the official code) and 49 (the authors' PyG code).
        valid_triples: validate on so many triples, the same in every run; 0 takes all.
        checkpoint: see ``innerloop.nn.NBFNet``; the result is the same.
    """

    epochs: int = 20
    batch_size: int = 64
    lr: float = 5e-3
    num_negative: int = 32
    adversarial_temperature: float = 0.5
    remove_one_hop: bool = False
    dim: int = 32
    num_layers: int = 6
    message: str = "distmult"
    aggregate: str = "pna"
    dependent: bool = True
    short_cut: bool = True
    layer_norm: bool = True
    concat_hidden: bool = False
    num_mlp_layers: int = 2
    seed: int = 1024
    eval_batch_size: int = 64
    hits_samples: int = 50
    limit: int | None = None
    valid_triples: int = 0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        limit = () if self.limit is None else ("limit",)
        check_integers(self, 1, ("epochs", "batch_size", "num_negative", "dim", "num_layers", "num_mlp_layers",
                                 "eval_batch_size", "hits_samples", *limit))  # fmt: skip
        check_integers(self, 0, ("seed", "valid_triples"))
        check_numbers(self, ("adversarial_temperature",))
        check_numbers(self, ("lr",), positive=True)

    def model_arguments(self) -> dict[str, Any]:
        """The part that ``innerloop.nn.NBFNet`` takes."""
        names = ("dim", "num_layers", "message", "aggregate", "dependent", "short_cut",
                 "layer_norm", "concat_hidden", "num_mlp_layers", "checkpoint")  # fmt: skip
        return {name: getattr(self, name) for name in names}


_FB: dict[str, Any] = {"remove_one_hop": True}
_WN: dict[str, Any] = {"dependent": False, "adversarial_temperature": 1.0, "batch_size": 32}

#: Settings of the paper's runs (20 epochs where nothing else is said), by data set name in lower case.
PRESETS: dict[str, dict[str, Any]] = {
    "fb15k-237": _FB,
    "wn18rr": _WN,
    "ogbl-biokg": _FB | {"lr": 2e-4, "batch_size": 8, "epochs": 10, "limit": 200, "valid_triples": 1000},
    **{f"fb237_v{k}": _FB for k in (1, 2, 3, 4)},
    **{f"wn18rr_v{k}": _WN for k in (1, 2, 3, 4)},
}

_LINKS: dict[str, Any] = {
    "num_negative": 1,
    "adversarial_temperature": 0.0,
    "remove_one_hop": True,
    "dependent": False,
}

#: The same for undirected graphs; any other graph gets those of Cora.
LINK_PRESETS: dict[str, dict[str, Any]] = {
    "cora": _LINKS,
    "citeseer": _LINKS,
    "pubmed": _LINKS | {"batch_size": 16, "epochs": 10},
}

#: Epochs of ``--preset quick``, chosen to end in minutes on two CPU cores.
QUICK_EPOCHS = {"fb237_v1": 3, "wn18rr_v1": 1}

#: metric -> value, by data set and source. hits@10_n: n = 50 official, n = 49 PyG.
PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    "fb15k-237": {
        "official": {"mr": 114, "mrr": 0.415, "hits@1": 0.321, "hits@3": 0.454, "hits@10": 0.599},
        "PyG": {"mr": 113, "mrr": 0.416, "hits@1": 0.322, "hits@3": 0.456, "hits@10": 0.602},
    },
    "wn18rr": {
        "official": {"mr": 636, "mrr": 0.551, "hits@1": 0.497, "hits@3": 0.573, "hits@10": 0.666},
        "PyG": {"mr": 650, "mrr": 0.551, "hits@1": 0.496, "hits@3": 0.573, "hits@10": 0.661},
    },
    "ogbl-biokg": {"official": {"mrr": 0.829, "hits@1": 0.768, "hits@3": 0.870, "hits@10": 0.946}},
    **{
        f"{family}_v{k + 1}": {
            "official": {"hits@10_50": official[k]},
            "PyG": {"hits@10_49": pyg[k]},
        }
        for family, official, pyg in (
            ("fb237", (0.834, 0.949, 0.951, 0.960), (0.821, 0.948, 0.957, 0.959)),
            ("wn18rr", (0.948, 0.905, 0.893, 0.890), (0.954, 0.903, 0.909, 0.888)),
        )
        for k in range(4)
    },
    "cora": {"official": {"auroc": 0.956, "ap": 0.962}},
    "citeseer": {"official": {"auroc": 0.923, "ap": 0.936}},
    "pubmed": {"official": {"auroc": 0.983, "ap": 0.982}},
}


def make_config(dataset: str, preset: str = "published", **overrides: Any) -> Config:
    """The settings for a data set: the paper's where it has them, generic ones otherwise.

    Args:
        dataset: name, any case.
        preset: ``published`` is the full schedule; ``quick`` has fewer epochs.
        overrides: fields of ``Config``; None means "not given".
    """
    if preset not in ("quick", "published"):
        raise UsageError(f"preset must be 'quick' or 'published', got {preset!r}")
    name = dataset.lower()
    values = dict(PRESETS.get(name, {}))
    if preset == "quick":
        values["epochs"] = QUICK_EPOCHS.get(name, 4)
    values.update({key: value for key, value in overrides.items() if value is not None})
    unknown = values.keys() - {field.name for field in fields(Config)}
    if unknown:
        raise TypeError(f"make_config() got unknown settings {sorted(unknown)}")
    values.setdefault("eval_batch_size", values.get("batch_size", Config.batch_size))
    return Config(**values)


def make_link_config(dataset: str, **overrides: Any) -> Config:
    """The paper's settings for an undirected graph; ``overrides`` as in ``make_config``."""
    values = LINK_PRESETS.get(dataset.lower(), _LINKS)
    return Config(**values | {key: value for key, value in overrides.items() if value is not None})
