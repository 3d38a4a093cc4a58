# SPDX-License-Identifier: Apache-2.0
"""Training of Poolingformer: parameters, optimizer, learning rate, a plain loop, two processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")

from innerloop.recipes._batches import TrainingBatches
from innerloop.recipes._run import load_checkpoint
from innerloop.recipes.poolingformer import Config, make_problem
from innerloop.recipes.poolingformer.module import PoolingformerTask
from recipes.poolingformer.poolingformer_cases import CONFIGS, TASKS
from tolerances import assert_close, same

# --- parameters and optimizer ---


@pytest.mark.parametrize("task", TASKS)
def test_parameters_depend_on_the_seed_alone(task, data):
    problem = make_problem(CONFIGS[task], data[task])

    def weights(seed, **changes):
        return PoolingformerTask(problem, replace(CONFIGS[task], seed=seed, **changes)).state_dict()

    torch.manual_seed(5)
    first, state = weights(1), torch.get_rng_state()
    torch.rand(3)
    assert same(first, weights(1))
    assert same(first, weights(1, lr=0.5, dropout=0.3, batch_size=3, epochs=7))
    assert not same(first, weights(2))
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())  # the caller's stream is left alone


@pytest.fixture
def watched(train, tmp_path, monkeypatch):
    """Trains, and gives the module, and for each step the learning rates of the groups."""

    def watch(task, **changes):
        step, seen = PoolingformerTask.training_step, []

        def spy(self, batch, batch_idx):
            seen.append((self, [group["lr"] for group in self.trainer.optimizers[0].param_groups]))
            return step(self, batch, batch_idx)

        monkeypatch.setattr(PoolingformerTask, "training_step", spy)
        train(task, tmp_path, {"eval_examples": 1} | changes)
        return seen[0][0], [rates for _, rates in seen]

    return watch


@pytest.mark.parametrize("task", TASKS)
def test_matrices_and_tables_are_decayed_and_nothing_else(watched, task):
    module, _ = watched(task, weight_decay=0.3, limit=1, epochs=1, relative_bias=True)
    model, (optimizer,) = module.model, module.trainer.optimizers
    assert isinstance(optimizer, torch.optim.AdamW)
    expected = {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding)
    }
    (decayed,) = [g["params"] for g in optimizer.param_groups if g["weight_decay"] == 0.3]
    (others,) = [g["params"] for g in optimizer.param_groups if g["weight_decay"] == 0]
    assert {id(p) for p in decayed} == {id(p) for p in expected.values()}
    names = {name for name, p in model.named_parameters() if any(p is other for other in others)}
    assert names == {name for name, _ in model.named_parameters()} - expected.keys()
    last = {"weight_k", "weight_v", "relative_bias", "relative_bias_pool"}
    assert {f"encoder.layers.1.attention.{name}" for name in last} <= names
    assert len(decayed) + len(others) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("warmup", "epochs", "limit", "rising"), [(0.1, 4, 5, 2), (0.5, 2, 3, 3), (0.0, 2, 2, 1), (0.9, 1, 1, 1)]
)
def test_learning_rate_rises_and_falls(watched, warmup, epochs, limit, rising):
    _, rates = watched("listops", warmup=warmup, lr=0.02, epochs=epochs, limit=limit)
    steps = epochs * limit
    up = [0.02 * (k + 1) / rising for k in range(rising)]
    down = [0.02 * (steps - k) / (steps - rising) for k in range(rising, steps)]
    assert [rate for rate, _ in rates] == pytest.approx(up + down)
    assert all(rate == other for rate, other in rates)


def plain_training(config: Config, data: Path | None, world_size: int = 1) -> dict[str, torch.Tensor]:
    """Parameters after all steps of AdamW on the mean gradient of ``world_size`` batches, without a Trainer."""
    task = PoolingformerTask(make_problem(config, data), config)
    task.log = lambda *_, **__: None
    items, lengths = torch.arange(task.problem.size("train")), task.problem.lengths("train")
    steps = []
    for epoch in range(config.epochs):
        arguments = items, config.batch_size, config.seed, lambda e=epoch: e
        of_rank = [TrainingBatches(*arguments, rank, world_size, config.limit, lengths) for rank in range(world_size)]
        steps += zip(*of_rank, strict=True)
    matrices = [m.weight for m in task.modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)]
    others = [p for p in task.parameters() if not any(p is matrix for matrix in matrices)]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer, rising = torch.optim.AdamW(groups), max(1, int(config.warmup * len(steps)))
    for k, batches in enumerate(steps):
        for group in optimizer.param_groups:
            share = (k + 1) / rising if k < rising else (len(steps) - k) / (len(steps) - rising)
            group["lr"] = config.lr * share
        optimizer.zero_grad()
        for batch in batches:
            (task.training_step(batch, k) / world_size).backward()
        torch.nn.utils.clip_grad_norm_([*matrices, *others], config.clip)
        optimizer.step()
    return task.state_dict()


@pytest.mark.parametrize("task", TASKS)
def test_training_is_a_plain_loop(runs, data, task):
    trained = load_checkpoint(runs[task][0] / "last.ckpt", "poolingformer")["state_dict"]
    for name, value in plain_training(CONFIGS[task], data[task]).items():
        assert_close(trained[name], value)


def test_every_step_draws_anew(data, monkeypatch):
    """Dropout and masks, by seed, epoch and step."""
    problem = make_problem(CONFIGS["mlm"], data["mlm"])
    seen, batch = [], type(problem).batch

    def spy(self, split, items, generator=None):
        seen.append((torch.initial_seed(), generator.initial_seed()))
        return batch(self, split, items, generator)

    monkeypatch.setattr(type(problem), "batch", spy)
    steps = [(seed, epoch, index) for seed in (0, 1) for epoch in (0, 1) for index in (0, 1, 2)]
    for again in range(2):
        torch.manual_seed(again)
        for seed, epoch, index in steps:
            task = PoolingformerTask(problem, replace(CONFIGS["mlm"], seed=seed))
            task.log = lambda *_, **__: None
            task.training_step({"items": torch.arange(2), "epoch": epoch, "index": index}, 0)
    first, second = seen[: len(steps)], seen[len(steps) :]
    assert first == second
    for column in zip(*first, strict=True):
        assert len(set(column)) == len(steps)


def test_schedule_has_the_steps_of_the_run(runs, train, tmp_path):
    for output, steps in ((runs["listops"][0], 10), (tmp_path, 6)):
        if steps == 6:
            train("listops", output, {"limit": 3})
        saved = load_checkpoint(output / "last.ckpt", "poolingformer")
        assert saved["global_step"] == saved["lr_schedulers"][0]["last_epoch"] == steps
        assert saved["lr_schedulers"][0]["_last_lr"] == [0, 0]


def test_gradients_are_clipped(train, tmp_path):
    """Gradients far below the ε of Adam change nothing."""
    changes = {"weight_decay": 0.0, "clip": 1e-16}
    train("listops", tmp_path, changes)
    after = load_checkpoint(tmp_path / "last.ckpt", "poolingformer")["state_dict"]
    config = replace(CONFIGS["listops"], **changes)
    before = PoolingformerTask(make_problem(config), config).state_dict()
    for name, value in before.items():
        assert_close(after[name], value)


# --- two processes ---


TWO_PROCESSES = """
import json, sys, time
from pathlib import Path
import torch
from innerloop.recipes._run import load_checkpoint
from innerloop.recipes.poolingformer import Config, evaluate, make_problem, train_on

folder = Path(sys.argv[1])
options = {"accelerator": "cpu", "progress": False}
rows = {}
for task, checkpoint in json.loads(sys.argv[2]).items():
    measured = evaluate(checkpoint, **options)
    saved = load_checkpoint(checkpoint, "poolingformer")["hyper_parameters"]
    config, data = Config(**saved["config"]), saved["data"] and Path(saved["data"])
    problem = make_problem(config, data)
    result = train_on(problem, config, folder / task, data=data, **options)
    rows[task] = [measured, result["test"], result["processes"]]

replace = Path.replace
Path.replace = lambda *arguments: [time.sleep(0.5), replace(*arguments)][1]  # the first process writes to a slow disk
result = train_on(problem, config, folder / "slow", data=data, **options)
rows["slow"] = [result["test"], result["chosen_epoch"]]
rank = torch.distributed.get_rank()
(folder / f"rank{rank}.json").write_text(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def two_processes(runs, tmp_path_factory):
    """What each of two processes under torchrun got, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(TWO_PROCESSES)
    checkpoints = {task: str(output / "last.ckpt") for task, (output, _) in runs.items()}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(folder / "script.py"), str(folder), json.dumps(checkpoints)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=250)
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes(runs, data, two_processes, task):
    """torchrun: evaluation equals that of one process; training that with summed gradients."""
    folder, ranks = two_processes
    assert ranks[0][task] == ranks[1][task]
    measured, _, processes = ranks[0][task]
    assert measured == pytest.approx(runs[task][1]["test"], rel=1e-5)
    assert processes == 2

    parallel = load_checkpoint(folder / task / "last.ckpt", "poolingformer")["state_dict"]
    for name, value in plain_training(CONFIGS[task], data[task], world_size=2).items():
        assert_close(parallel[name], value, op="two_processes")


@pytest.mark.slow
def test_two_processes_test_the_same_epoch(two_processes):
    """The one that does not write the checkpoint waits for it."""
    ranks = two_processes[1]
    _, test, _ = ranks[0]["mlm"]
    assert [rank["slow"] for rank in ranks] == [[test, 2]] * 2
