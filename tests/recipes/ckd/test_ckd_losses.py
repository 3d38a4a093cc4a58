# SPDX-License-Identifier: Apache-2.0
"""One step of distillation: the loss of every method from its definition, and what a student starts from."""

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("pytorch_lightning")

from innerloop import reference
from innerloop.nn.distillation_features import pkt, rkd, sp
from innerloop.recipes.ckd import METHODS, Problem
from innerloop.recipes.ckd.module import CKDTask
from recipes.ckd.ckd_cases import tiny
from tolerances import assert_close, same


def logits_of(task: CKDTask, items: torch.Tensor):
    images, labels = task.problem.batch("train", items)
    student, teacher = task.model(images, features=True), task.teacher.features(images)
    return student, teacher, labels


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p.log() - q.log())).sum(1).mean()


def expected_loss(task: CKDTask, items: torch.Tensor, epoch: int) -> torch.Tensor:
    """The loss of a step from the definitions."""
    (s, maps, pooled), (t, teacher_maps, teacher_pooled), y = logits_of(task, items)
    config, method = task.config, task.config.method
    T = config.temperature
    p, q = (t / T).softmax(1), (s / T).softmax(1)
    other = F.one_hot(y, 10) == 0
    if method == "plain":
        loss = 0
    elif method == "kd":
        loss = T**2 * kl(p, q)
    elif method == "dkd":
        p_y, q_y = p.gather(1, y[:, None]), q.gather(1, y[:, None])
        target = kl(torch.cat([p_y, 1 - p_y], 1), torch.cat([q_y, 1 - q_y], 1))
        rest = kl(p[other].view(-1, 9) / (1 - p_y), q[other].view(-1, 9) / (1 - q_y))
        loss = min((epoch + 1) / config.warmup_epochs, 1) * T**2 * (target + config.beta * rest)
    elif method == "cosine":
        loss = (1 - F.cosine_similarity(s, t)).mean()
    elif method in ("ckd", "ckd-masked", "ckd-symmetric"):
        options = {"labels": y} if method == "ckd-masked" else {"symmetric": method == "ckd-symmetric"}
        loss = reference.ckd(s, t, temperature=T, **options)
    else:
        loss = {
            "rkd": lambda: rkd(pooled, teacher_pooled),
            "sp": lambda: sp(maps[-1], teacher_maps[-1]),
            "pkt": lambda: pkt(pooled, teacher_pooled),
        }[method]()
    return config.ce_weight * F.cross_entropy(s, y) + config.kd_weight * loss


@pytest.mark.parametrize("method", [m for m in METHODS if m != "crd"])
@pytest.mark.parametrize("epoch", [1, 9])
def test_loss_of_a_step(images, teacher, method, epoch):
    config = tiny(method, temperature=1.7, ce_weight=0.7)
    task = CKDTask(Problem(images, config), config, teacher)
    task.log = lambda *_, **__: None
    task._teacher_logits = None
    items = torch.arange(20)
    loss = task.training_step({"items": items, "epoch": epoch, "index": 3}, 0)
    assert_close(loss, expected_loss(task, items, epoch))
    loss.backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in task.parameters())
    assert all(p.grad is None for p in teacher.network.parameters())


def test_crd_has_one_vector_a_training_image_and_is_trained(images, teacher):
    config = tiny("crd")
    task = CKDTask(Problem(images, config), config, teacher)
    task.log = lambda *_, **__: None
    assert task.crd.memory_student.shape == (52, 128)
    assert (task.crd.num_negatives, task.crd.temperature) == (52, 0.07)
    before = task.crd.memory_student.clone()
    items = torch.tensor([4, 50])
    losses = [float(task.training_step({"items": items, "epoch": 0, "index": i}, 0).detach()) for i in (0, 0, 1)]
    moved = (task.crd.memory_student != before).any(1).nonzero().flatten().tolist()
    assert moved == [4, 50]
    assert len(set(losses)) == 3  # the banks move, the negatives are drawn anew
    task.trainer = type("Trainer", (), {"world_size": 2})
    with pytest.raises(ValueError, match="method is 'crd', expected another in several processes"):
        task.on_train_start()


def test_a_method_without_teacher_is_refused(images):
    with pytest.raises(ValueError, match="CKDTask: teacher is None, expected one for the method kd"):
        CKDTask(Problem(images, tiny("kd")), tiny("kd"))


def test_students_of_one_seed_start_alike(images, teacher):
    def student(method, **changes):
        config = tiny(method, **changes)
        return CKDTask(Problem(images, config), config, teacher).model.state_dict()

    torch.manual_seed(5)
    first, state = student("plain"), torch.get_rng_state()
    for method in METHODS:
        assert same(first, student(method))
    assert not same(first, student("ckd", seed=1))
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())  # the caller's stream is left alone
