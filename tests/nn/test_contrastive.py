# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses against their formulas and the packages they stand in for; the queue; cached steps."""

from __future__ import annotations

import copy
import importlib.util
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import innerloop
import pytest
import torch
from innerloop.nn.contrastive import (
    CKDLoss,
    ClipLoss,
    EmbeddingQueue,
    InfoNCELoss,
    NTXentLoss,
    SigLipLoss,
    SupConLoss,
)
from innerloop.nn.grad_cache import cached_contrastive_step
from tolerances import assert_close
from torch import Tensor, multiprocessing, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

B, D = 7, 5
FLOAT32 = torch.float32


def unit_rows(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def number(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype)


def check_same(ours: Callable, theirs: Callable, *inputs: Tensor) -> None:
    """Values and gradients against all inputs."""
    a, b = leaves(*inputs), leaves(*inputs)
    mine, expected = ours(*a), theirs(*b)
    assert_close(mine, expected)
    mine.sum().backward()
    expected.sum().backward()
    for x, y in zip(a, b, strict=True):
        assert_close(x.grad, torch.zeros_like(y) if y.grad is None else y.grad)


def clip(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    logits = scale * image @ text.T + (0 if bias is None else bias)
    labels = torch.arange(len(image))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    sign = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -F.logsigmoid(sign * (scale * image @ text.T + bias)).sum() / len(image)


def load_open_clip() -> ModuleType | None:
    """Its losses, which need torch alone; its package needs torchvision."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        return None
    file = Path(spec.submodule_search_locations[0]) / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, OSError):
        return None
    return module


# ---- drop-ins ----


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_clip_and_siglip_are_their_formulas(scale):
    """With the gradient of the exponentiated scale, not of its logarithm."""
    torch.manual_seed(0)
    inputs = [*unit_rows(2, B, D), number(scale)]
    check_same(ClipLoss(), clip, *inputs)
    check_same(ClipLoss(), clip, *inputs, number(-3.0))
    check_same(SigLipLoss(), sigmoid_loss, *inputs, number(-10.0))


@pytest.mark.parametrize(("ours", "theirs"), [(ClipLoss, clip), (SigLipLoss, sigmoid_loss)])
def test_scale_and_bias_may_be_numbers_or_one_element(ours, theirs):
    image, text = unit_rows(2, B, D)
    expected = theirs(image, text, number(10.0), number(-2.0))
    for scale, bias in ((10.0, -2.0), (number([10.0]), number([-2.0])), (number(10.0, FLOAT32), number(-2.0, FLOAT32))):
        assert_close(ours()(image, text, scale, bias), expected)
    assert_close(ours()(image, text, 10.0, None), theirs(image, text, number(10.0), number(0.0)))
    result = ours()(image, text, 10.0, -2.0, output_dict=True)
    assert list(result) == ["contrastive_loss"]
    assert_close(result["contrastive_loss"], expected)


def test_the_scale_survives_its_logarithm():
    """In a half type it is off by a percent."""
    image, text = unit_rows(2, 64, D)
    expected = clip(image, text, number(100.0))
    assert_close(ClipLoss()(image, text, number(100.0, torch.bfloat16)), expected)


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_equal_to_open_clip(name):
    module = load_open_clip()
    if module is None:
        pytest.skip("open_clip is not installed")
    theirs = getattr(module, name)()
    ours = {"ClipLoss": ClipLoss, "SigLipLoss": SigLipLoss}[name]()
    inputs = [*unit_rows(2, 33, D), number(20.0), number(-5.0)]
    check_same(ours, theirs, *inputs)
    assert_close(ours(*inputs, True)["contrastive_loss"], theirs(*inputs, True)["contrastive_loss"])


def test_equal_to_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, B, D, dtype=torch.float64)
    pairs = torch.arange(B).repeat(2)
    check_same(NTXentLoss(0.2), lambda a, b: losses.NTXentLoss(temperature=0.2)(torch.cat([a, b]), pairs), z1, z2)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    check_same(lambda z: SupConLoss(0.1)(z, labels), lambda z: losses.SupConLoss(temperature=0.1)(z, labels), z1)


def test_equal_to_lightly():
    module = pytest.importorskip("lightly.loss.ntx_ent_loss", exc_type=ImportError)
    check_same(NTXentLoss(0.3), module.NTXentLoss(temperature=0.3), *torch.randn(2, B, D, dtype=torch.float64))


def test_simclr_formula():
    def formula(z1: Tensor, z2: Tensor) -> Tensor:
        z = F.normalize(torch.cat([z1, z2]), dim=1)
        scores = (z @ z.T / 0.3).masked_fill(torch.eye(2 * B, dtype=torch.bool), -torch.inf)
        return F.cross_entropy(scores, torch.arange(2 * B).roll(B))

    check_same(NTXentLoss(0.3), formula, *torch.randn(2, B, D, dtype=torch.float64))


def test_supcon_formula_and_views():
    """-1/|P| Σ log p, as the authors' code with base_temperature, of two views of each sample."""

    def formula(views: Tensor, labels: Tensor) -> Tensor:
        z, labels = F.normalize(torch.cat(views.unbind(1)), dim=1), labels.repeat(2)
        others = ~torch.eye(len(z), dtype=torch.bool)
        scores = z @ z.T / 0.1
        log_p = scores - scores.masked_fill(~others, -torch.inf).logsumexp(1, keepdim=True)
        positive = (labels[:, None] == labels) & others
        return -(0.1 / 0.07) * ((log_p * positive).sum(1) / positive.sum(1)).mean()

    views = torch.randn(B, 2, D, dtype=torch.float64)
    loss = SupConLoss(0.1, base_temperature=0.07)
    labels = torch.tensor([0, 0, 1, 2, 1, 2, 3])
    check_same(lambda z: loss(z, labels), lambda z: formula(z, labels), views)
    check_same(loss, lambda z: formula(z, torch.arange(B)), views)
    with pytest.raises(ValueError, match=r"SupConLoss: labels is None, expected labels with z of shape \(7, 5\)"):
        loss(views[:, 0])


@pytest.mark.parametrize("negatives", ["teacher_student", "student_student"])
def test_ckd_formula(negatives):
    def formula(student: Tensor) -> Tensor:
        s, t = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
        scores = (t if negatives == "teacher_student" else s) @ s.T
        scores = torch.where(torch.eye(B, dtype=torch.bool), t @ s.T, scores) / 2
        if labels is not None:
            scores = scores.masked_fill((labels[:, None] == labels).fill_diagonal_(False), -torch.inf)
        return F.cross_entropy(scores, torch.arange(B))

    student, teacher = torch.randn(2, B, D, dtype=torch.float64)
    loss = CKDLoss(2.0, negatives)
    for labels in (None, torch.tensor([0, 0, 1, 1, 2, 3, 0])):
        check_same(lambda s, labels=labels: loss(s, teacher, labels), formula, student)


def test_reductions_reach_the_ops():
    z1, z2, labels = *torch.randn(2, B, D), torch.arange(B) % 3
    for losses in (
        lambda reduction: NTXentLoss(reduction=reduction)(z1, z2),
        lambda reduction: SupConLoss(reduction=reduction)(z1, labels),
        lambda reduction: CKDLoss(reduction=reduction)(z1, z2),
        lambda reduction: InfoNCELoss(reduction=reduction)(z1, z2),
    ):
        assert_close(losses("none").sum(), losses("sum"))
        assert_close(losses("none").mean(), losses("mean"))


# ---- InfoNCELoss ----


def test_infonce_options_reach_the_op():
    q, k, queue = torch.randn(B, D), torch.randn(B + 2, D), torch.randn(4, D)
    arguments = {
        "targets": torch.arange(B) + 1, "weights": torch.rand(B), "queue": queue,
        "hard_negatives": torch.randn(B, 3, D),
    }  # fmt: skip
    labels = {"labels_q": torch.arange(B) % 3, "labels_k": torch.arange(B + 2) % 3}
    options = {"normalize": False, "symmetric": False, "tau_plus": 0.1, "decoupled": True, "reduction": "none"}
    for mask, more in (({"negatives_mask": "same_label"}, labels), ({"negatives_mask": "margin", "margin": 0.3}, {})):
        actual = InfoNCELoss(0.5, **options, **mask)(q, k, **arguments, **more)
        expected = innerloop.infonce(q, k, log_scale=math.log(2), **arguments, **more, **options, **mask)
        assert torch.equal(actual, expected)


def test_learned_temperature():
    """Is clamped before it is used; what an earlier call saved for its backward pass stays valid."""
    q, k = torch.randn(2, B, D)
    loss = InfoNCELoss(0.07, learned=True, max_scale=20)
    assert [name for name, _ in loss.named_parameters()] == ["log_scale"]
    assert list(InfoNCELoss().state_dict()) == []
    first, second = loss(q, k), loss(q, k)
    (first + second).backward()
    plain = number(math.log(1 / 0.07), FLOAT32).requires_grad_()
    innerloop.infonce(q, k, log_scale=plain, normalize=True).backward()
    assert_close(loss.log_scale.grad, 2 * plain.grad)
    with torch.no_grad():
        loss.log_scale.fill_(5.0)
    assert_close(loss(q, k), innerloop.infonce(q, k, log_scale=math.log(20), normalize=True))
    assert_close(loss.log_scale.detach(), number(math.log(20), FLOAT32))
    assert "temperature=0.05, normalize=True" in repr(loss)


def test_empty_queue():
    q, k = torch.randn(2, B, D)
    loss = InfoNCELoss()
    assert_close(loss(q, k, queue=EmbeddingQueue(3, D).embeddings), loss(q, k))


# ---- the queue ----


@pytest.mark.parametrize("labelled", [True, False])
def test_queue_is_a_ring(labelled):
    """Pushes of any size leave what pushes one by one leave: the last rows, each in the oldest's place."""
    size = 7
    queue, places = EmbeddingQueue(size, 2, labelled=labelled), [None] * size
    count = 0
    for batch in (3, 2, 0, 4, 7, 1, 20, 6, 15, 14):
        rows = torch.arange(count, count + batch)
        queue.push(torch.stack([rows, -rows], 1).double(), *([rows.int()] if labelled else []))
        for row in rows.tolist():
            places[row % size] = row
        count += batch
        expected = torch.tensor([p for p in places if p is not None])
        assert len(queue) == min(count, size)
        assert torch.equal(queue.embeddings, torch.stack([expected, -expected], 1).float())
        if labelled:
            assert torch.equal(queue.labels, expected)
        else:
            assert queue.labels is None


def test_queue_goes_on_from_its_state():
    queue = EmbeddingQueue(5, 2, labelled=True)
    queue.push(torch.randn(3, 2), torch.arange(3))
    again = EmbeddingQueue(5, 2, labelled=True)
    again.load_state_dict(queue.state_dict())
    for _ in range(2):
        assert len(again) == len(queue)
        assert torch.equal(again.embeddings, queue.embeddings)
        assert torch.equal(again.labels, queue.labels)
        rows = torch.randn(4, 2)
        queue.push(rows, torch.arange(4))
        again.push(rows, torch.arange(4))
    assert list(EmbeddingQueue(5, 2).state_dict()) == ["all_embeddings", "pushed"]


def test_queue_keeps_no_graph_and_guards_those_of_others():
    queue, q, k = EmbeddingQueue(8, D), *leaves(*torch.randn(2, B, D))
    queue.push(k)
    assert not queue.embeddings.requires_grad
    value = InfoNCELoss(symmetric=False)(q, k, queue=queue.embeddings)
    queue.push(k)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
    value = InfoNCELoss(symmetric=False)(q, k, queue=queue.embeddings.clone())
    queue.push(k)
    value.backward()


@pytest.mark.parametrize(
    ("push", "kind", "text"),
    [
        ((torch.ones(2, 3),), ValueError, r"EmbeddingQueue: embeddings has shape \(2, 3\), expected \(B, 2\)"),
        ((torch.ones(2),), ValueError, r"EmbeddingQueue: embeddings has shape \(2,\)"),
        ((torch.ones(2, 2, dtype=torch.int64),), TypeError, r"EmbeddingQueue: embeddings has dtype torch\.int64"),
        (([[1.0, 2.0]],), TypeError, "EmbeddingQueue: embeddings is list, expected a tensor"),
        ((torch.ones(2, 2),), ValueError, "EmbeddingQueue: labels is None, expected labels of a labelled queue"),
        ((torch.ones(2, 2), torch.arange(3)), ValueError, r"EmbeddingQueue: labels has shape \(3,\), expected \(2,\)"),
        ((torch.ones(2, 2), torch.ones(2)), TypeError, r"EmbeddingQueue: labels has dtype torch\.float32"),
    ],
)
def test_bad_pushes(push, kind, text):
    queue = EmbeddingQueue(4, 2, labelled=True)
    with pytest.raises(kind, match=text):
        queue.push(*push)
    assert len(queue) == 0


def test_labels_of_an_unlabelled_queue():
    with pytest.raises(ValueError, match=r"EmbeddingQueue: labels is tensor.*, expected None without labelled=True"):
        EmbeddingQueue(4, 2).push(torch.ones(1, 2), torch.ones(1, dtype=torch.int64))


# ---- cached steps ----


class Encoder(nn.Module):
    """With dropout; the scale is a plain argument."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, D))

    def forward(self, x: Tensor, scale: float = 1.0, shift: Tensor | None = None) -> Tensor:
        return self.layers(scale * x if shift is None else scale * x + shift)


def step_with_graph(encoders: list[nn.Module], inputs: list, loss: Callable, size: int) -> Tensor:
    """All micro-batches with their graphs at a time; inputs are lists of them."""
    value = loss(*(torch.cat([enc(*a, **kw) for a, kw in x]) for enc, x in zip(encoders, inputs, strict=True)))
    value.backward()
    return value.detach()


def gradients(*modules: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for module in modules for p in module.parameters()]


@pytest.mark.parametrize("shared", [False, True])
def test_cached_step_has_the_gradients_of_the_whole_batch(shared):
    """With dropout, a remainder, positional and named inputs, and a loss with a parameter and random numbers.

    Gradients are added up, and the random numbers that follow are the same.
    """
    torch.manual_seed(0)
    image = Encoder(6).double()
    text = image if shared else Encoder(6).double()
    info = InfoNCELoss(learned=True).double()
    x, y, shift = torch.randn(3, B, 6, dtype=torch.float64)
    whole = [(x, 2.0), {"x": y, "scale": 0.5, "shift": shift}]
    parts = [
        [((x[i : i + 3], 2.0), {}) for i in (0, 3, 6)],
        [((), {"x": y[i : i + 3], "scale": 0.5, "shift": shift[i : i + 3]}) for i in (0, 3, 6)],
    ]
    state = torch.get_rng_state()
    results = []

    def loss(q: Tensor, k: Tensor) -> Tensor:
        return torch.rand(()) * info(q, k)

    for step, inputs in ((step_with_graph, parts), (cached_contrastive_step, whole)):
        torch.set_rng_state(state)
        for p in (*image.parameters(), *text.parameters(), *info.parameters()):
            p.grad = torch.ones_like(p)
        value = step([image, text], inputs, loss, 3)
        results.append([value, *gradients(image, text, info), torch.get_rng_state().double()])
    for actual, expected in zip(*reversed(results), strict=True):
        assert_close(actual, expected)
    assert not results[1][0].requires_grad


def test_cached_step_of_one_micro_batch_and_of_none():
    x, y = torch.randn(2, B, 6)
    encoder, loss = nn.Linear(6, D), InfoNCELoss()
    loss(encoder(x), encoder(y)).backward()
    expected = gradients(encoder)
    encoder.zero_grad()
    cached_contrastive_step([encoder, encoder], [x, y], loss, micro_batch=100)
    for actual, truth in zip(gradients(encoder), expected, strict=True):
        assert_close(actual, truth)
    assert cached_contrastive_step([encoder, encoder], [x[:0], y[:0]], loss, micro_batch=4) == 0


def test_cached_step_with_a_frozen_encoder_and_an_unused_one():
    x, y = torch.randn(2, B, 6)
    frozen, encoder, unused = (nn.Linear(6, D) for _ in range(3))
    frozen.requires_grad_(False)
    loss = InfoNCELoss()
    loss(frozen(x), encoder(y)).backward()
    expected = gradients(encoder)
    encoder.zero_grad()
    cached_contrastive_step([frozen, encoder, unused], [x, y, y], lambda q, k, _: loss(q, k), 2)
    for actual, truth in zip(gradients(encoder), expected, strict=True):
        assert_close(actual, truth)
    assert not any(g.any() for g in gradients(unused))


def test_cached_step_under_autocast():
    """Weights that were cast without gradient in the first pass are not those of the second."""
    encoder = nn.Linear(6, D)
    with torch.autocast("cpu", torch.bfloat16):
        cached_contrastive_step([encoder, encoder], torch.randn(2, B, 6), InfoNCELoss(), 3)
    assert all(g.any() for g in gradients(encoder))


def test_cached_step_holds_one_micro_batch():
    """No activation of more rows than a micro-batch's is ever saved for the backward pass of an encoder."""
    saved = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.shape)
        return t

    encoder = Encoder(64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        cached_contrastive_step([encoder, encoder], torch.randn(2, 40, 64), lambda q, k: (q * k).sum(), 4)
    assert (4, 64) in saved
    assert (40, 64) not in saved


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (([nn.Identity()], [torch.ones(2, 2)], torch.sum, 0), ValueError, "micro_batch is 0, expected an integer of"),
        (([], [], torch.sum, 1), ValueError, "inputs has length 0, expected 0 like encoders, above 0"),
        (([nn.Identity()], [], torch.sum, 1), ValueError, "inputs has length 0, expected 1 like encoders"),
        (([nn.Identity()], [(torch.ones(2), torch.ones(3))], torch.sum, 1), ValueError, r"inputs\[0\] has tensors of"),
        (([nn.Identity()], [None], torch.sum, 1), ValueError, r"inputs\[0\] has tensors of \[\] rows"),
        (([torch.sum], [torch.ones(2, 2)], torch.sum, 1), ValueError, r"an encoder returned shape \(\), expected"),
        (([lambda x: None], [torch.ones(2, 2)], torch.sum, 1), ValueError, "an encoder returned NoneType, expected"),
        (([nn.Identity()], [torch.ones(2, 2)], lambda x: x, 1), ValueError, r"loss returned shape \(2, 2\), expected"),
    ],
)
def test_bad_cached_steps(arguments, kind, text):
    with pytest.raises(kind, match=f"cached_contrastive_step: {text}"):
        cached_contrastive_step(*arguments)


# ---- what does not fit ----


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: InfoNCELoss(0.0), "InfoNCELoss: temperature is 0.0, expected a number above 0"),
        (lambda: InfoNCELoss(float("nan")), "InfoNCELoss: temperature is nan"),
        (lambda: InfoNCELoss(max_scale=-1), "InfoNCELoss: max_scale is -1"),
        (lambda: InfoNCELoss(tau_plus=1), r"InfoNCELoss: tau_plus is 1, expected a share in \[0, 1\)"),
        (lambda: InfoNCELoss(negatives_mask="all"), "InfoNCELoss: negatives_mask is 'all', expected one of none"),
        (lambda: NTXentLoss(-1.0), "NTXentLoss: temperature is -1.0"),
        (lambda: NTXentLoss(reduction="max"), "NTXentLoss: reduction is 'max', expected one of mean, sum, none"),
        (lambda: SupConLoss(0.0), "SupConLoss: temperature is 0.0"),
        (lambda: SupConLoss(base_temperature=0.0), "SupConLoss: base_temperature is 0.0"),
        (lambda: CKDLoss(0.0), "CKDLoss: temperature is 0.0"),
        (lambda: CKDLoss(negatives="all"), "CKDLoss: negatives is 'all', expected one of teacher_student"),
        (lambda: ClipLoss(world_size=2), "ClipLoss: gather_with_grad is False with world_size=2, expected True"),
        (lambda: ClipLoss(use_horovod=True), "ClipLoss: use_horovod is True, expected False"),
        (lambda: SigLipLoss(dist_impl="tree"), "SigLipLoss: dist_impl is 'tree', expected one of bidir"),
        (lambda: EmbeddingQueue(0, 2), "EmbeddingQueue: size is 0, expected an integer of at least 1"),
        (lambda: EmbeddingQueue(2, 1.5), "EmbeddingQueue: dim is 1.5"),
    ],
)
def test_bad_options(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("loss", [ClipLoss, SigLipLoss])
def test_bad_scales_and_groups(loss):
    x, name = torch.ones(2, D), loss.__name__
    for scale in (0.0, number(-1.0), float("inf"), number(float("nan"))):
        with pytest.raises(ValueError, match=f"{name}: logit_scale is .*, expected a number above 0"):
            loss()(x, x, scale, None)
    with pytest.raises(ValueError, match=rf"{name}: logit_scale has shape \(2,\), expected a number or one element"):
        loss()(x, x, torch.ones(2), None)
    options = {"gather_with_grad": True} if loss is ClipLoss else {}
    with pytest.raises(RuntimeError, match=f"{name}: torch.distributed is not initialised"):
        loss(world_size=2, **options)(x, x, 1.0, None)


# ---- two processes ----


def both_losses(rank: int, size: int) -> list[tuple[nn.Module, nn.Module | None, Callable, bool]]:
    """Ours, open_clip's where there is one, the formula, and whether the value is that of this process's rows."""
    module = load_open_clip()
    found = []
    for local in (True, False):
        options = {"local_loss": local, "gather_with_grad": True, "rank": rank, "world_size": size}
        found.append((ClipLoss(**options), module and module.ClipLoss(**options), clip, local))
    options = {"rank": rank, "world_size": size}
    theirs = module and module.SigLipLoss(**options, dist_impl="gather")
    found.append((SigLipLoss(**options), theirs, sigmoid_loss, True))
    return found


def drop_ins(rank: int, size: int) -> None:
    torch.manual_seed(0)
    image, text, scale, bias = *unit_rows(2, 6, D), number(15.0), number(-4.0)
    own = slice(3 * rank, 3 * rank + 3)
    for ours, theirs, formula, local in both_losses(rank, size):
        whole = leaves(image, text, scale, bias)
        expected = formula(*whole)
        expected.backward()
        for loss in (ours, theirs):
            if loss is None:
                continue
            mine = leaves(image[own], text[own], scale, bias)
            value = loss(*mine)
            value.backward()
            for x, truth in zip(mine[2:], whole[2:], strict=True):
                dist.all_reduce(x.grad)
                assert_close(x.grad / size, torch.zeros_like(x) if truth.grad is None else truth.grad)
            for x, truth in zip(mine[:2], whole[:2], strict=True):
                assert_close(x.grad / size, truth.grad[own])
            mean = value.detach().clone()
            dist.all_reduce(mean)
            assert_close(mean / size, expected)
            assert local != bool((value - expected).abs() < 1e-10)


def cached_under_ddp(rank: int, size: int) -> None:
    """Gradients are reduced once, and are those of one process with the whole batch."""
    torch.manual_seed(0)
    encoder = nn.Linear(6, D).double()
    x, y = torch.randn(2, 10, 6, dtype=torch.float64)
    innerloop.infonce(encoder(x), encoder(y), log_scale=1.0, normalize=True).backward()
    model = DistributedDataParallel(copy.deepcopy(encoder))
    model.zero_grad()
    reductions = []

    def hook(state, bucket):
        # Waits: a Python callback on gloo's own thread may still run when the process ends, and aborts it.
        reductions.append(bucket.index())
        dist.all_reduce(bucket.buffer())
        done = torch.futures.Future()
        done.set_result(bucket.buffer() / size)
        return done

    model.register_comm_hook(None, hook)
    own = slice(0, 4) if rank == 0 else slice(4, 10)

    def loss(q: Tensor, k: Tensor) -> Tensor:
        return innerloop.ops._infonce_distributed.infonce_distributed(q, k, log_scale=1.0, normalize=True)

    cached_contrastive_step([model, model], [x[own], y[own]], loss, 2)
    for actual, truth in zip(gradients(model), gradients(encoder), strict=True):
        assert_close(actual, truth)
    assert len(reductions) == 1


def work(rank: int, size: int, file: str, done: str) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "torch.distributed.nn", FutureWarning)  # open_clip gathers with it
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    try:
        drop_ins(rank, size)
        cached_under_ddp(rank, size)
        with pytest.raises(ValueError, match=r"ClipLoss: rank and world_size are \(0, 3\), expected the"):
            ClipLoss(gather_with_grad=True, world_size=3)(torch.ones(1, D), torch.ones(1, D), 1.0)
        Path(f"{done}{rank}").touch()
        dist.barrier()
    finally:
        dist.destroy_process_group()


def test_two_processes(tmp_path):
    multiprocessing.spawn(work, (2, str(tmp_path / "init"), str(tmp_path / "done")), nprocs=2)
    assert [(tmp_path / f"done{rank}").is_file() for rank in range(2)] == [True] * 2
