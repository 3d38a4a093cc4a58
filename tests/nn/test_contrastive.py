# SPDX-License-Identifier: Apache-2.0
"""Contrastive losses against their formulas and the packages they stand in for; the queue; two processes."""

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
from processes import run_processes
from tolerances import assert_close
from torch import Tensor, nn
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


@pytest.mark.parametrize("bias", [None, number(-5.0)])
def test_logits_of_clip(bias):
    """Of open_clip's method and order, and what the loss is made of."""
    inputs = leaves(*unit_rows(2, B, D), number(20.0))
    per_image, per_text = ClipLoss().get_logits(*inputs, bias)
    position = torch.arange(B)
    loss = (F.cross_entropy(per_image, position) + F.cross_entropy(per_text, position)) / 2
    assert_close(loss, ClipLoss()(*inputs, bias))
    module = load_open_clip()
    if module is not None:
        for actual, expected in zip((per_image, per_text), module.ClipLoss().get_logits(*inputs, bias), strict=True):
            assert_close(actual, expected)
    with pytest.raises(ValueError, match=r"ClipLoss: text_features has shape \(6, 5\), expected \(7, 5\)"):
        ClipLoss().get_logits(inputs[0], inputs[1][1:], 1.0)


@pytest.mark.parametrize("loss", [ClipLoss, SigLipLoss])
def test_features_of_several_dtypes_under_autocast(loss):
    """One encoder ran in bfloat16, the other gave float32: each gradient in its own dtype. Else that is an error."""
    image, text = unit_rows(2, B, D)
    image, text, scale = leaves(image.bfloat16(), text.float(), number(10.0, FLOAT32))
    wide = leaves(image.float(), text, scale)
    expected = loss()(*wide, -2.0)
    expected.backward()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss()(image, text, scale, -2.0)
    value.backward()
    assert_close(value, expected)
    for x, truth in zip((image, text, scale), wide, strict=True):
        assert x.grad.dtype == x.dtype
        assert_close(x.grad, truth.grad.to(x.dtype))
    if loss is ClipLoss:
        with torch.autocast("cpu", torch.bfloat16):
            logits, _ = loss().get_logits(image, text, scale)
        assert_close(logits.float(), 10 * image.float() @ text.T, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"has dtype torch\.float32, expected torch\.bfloat16"):
        loss()(image, text, scale, -2.0)


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
    """Is used up to max_scale, and left as it is."""
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
    assert loss.log_scale == 5
    assert "temperature=0.05, normalize=True" in repr(loss)


@pytest.mark.filterwarnings("ignore")  # of torch.compile
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("start", [4.0, 2.0])
def test_gradient_of_a_learned_temperature(start, sign):
    """By backward, torch.func and torch.compile: above the maximum it leads down, or is 0."""
    q = torch.randn(B, D)
    k = sign * q  # the loss wants a larger scale where positives are the greatest scores
    loss = InfoNCELoss(learned=True, max_scale=20)
    parameters = {"log_scale": torch.tensor(start)}
    loss.load_state_dict(parameters)
    loss(q, k).backward()
    fixed = number(min(start, math.log(20)), FLOAT32).requires_grad_()
    innerloop.infonce(q, k, log_scale=fixed, normalize=True).backward()
    assert fixed.grad * sign < 0
    expected = torch.zeros(()) if start > math.log(20) and sign == 1 else fixed.grad
    of_call = torch.func.grad(lambda p: torch.func.functional_call(loss, p, (q, k)))(parameters)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (of_graph,) = torch.autograd.grad(compiled(q, k), loss.log_scale)
    for actual in (loss.log_scale.grad, of_call["log_scale"], of_graph):
        assert_close(actual, expected)
    assert parameters["log_scale"] == loss.log_scale == start


def test_a_learned_temperature_comes_back():
    """First it is pushed against its maximum, then away from it."""
    q = torch.randn(B, D)
    loss = InfoNCELoss(learned=True, max_scale=20)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    highest = lowest = 0.0
    for sign in (1, -1):
        for _ in range(60):
            optimizer.zero_grad()
            loss(q, sign * q).backward()
            optimizer.step()
            lowest = loss.log_scale.item()
            highest = max(highest, lowest)
    assert math.log(20) < highest < math.log(20) + 0.5
    assert lowest < math.log(15)


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


def test_losses_take_a_labelled_queue():
    """As further keys with labels of their own."""
    queue, labels = EmbeddingQueue(8, D, labelled=True), torch.arange(B) % 3
    queue.push(torch.randn(5, D), torch.arange(5) % 4)
    memory = {"queue": queue.embeddings, "labels_queue": queue.labels}
    q, k = torch.randn(2, B, D)
    loss = InfoNCELoss(symmetric=False, negatives_mask="same_label")
    both = torch.cat([k, queue.embeddings]), torch.cat([labels, queue.labels])
    expected = loss(q, both[0], labels_q=labels, labels_k=both[1])
    assert_close(loss(q, k, labels_q=labels, labels_k=labels, **memory), expected)
    views = torch.randn(B, 2, D)
    everything = torch.cat([views.flatten(0, 1), queue.embeddings])
    each = SupConLoss(reduction="none")(everything, torch.cat([labels.repeat_interleave(2), queue.labels]))
    assert_close(SupConLoss(reduction="none")(views, labels, **memory), each[: 2 * B])
    with pytest.raises(ValueError, match="SupConLoss: labels is None, expected labels with a queue"):
        SupConLoss()(views, **memory)


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


def gradients(*modules: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for module in modules for p in module.parameters()]


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
        if isinstance(ours, ClipLoss):
            check_logits(ours, theirs, own if local else slice(None), image, text, scale)


def check_logits(ours: ClipLoss, theirs: nn.Module | None, rows: slice, *whole: Tensor) -> None:
    """The rows of this process against all columns; gradients of own rows, summed over the processes."""
    image, text, scale = whole
    own = slice(3 * ours.rank, 3 * ours.rank + 3)
    expected = (scale * image @ text.T)[rows], (scale * text @ image.T)[rows]
    weight = torch.randn(6, 6, dtype=torch.float64)[rows]
    grads = []
    for loss in (ours, theirs):
        if loss is None:
            continue
        mine = leaves(image[own], text[own])
        logits = loss.get_logits(*mine, scale)  # of open_clip without a bias, which it adds twice to a transposed view
        for actual, truth in zip(logits, expected, strict=True):
            assert_close(actual, truth)
        (weight * (logits[0] + logits[1].square())).sum().backward()
        grads.append([x.grad for x in mine])
    for actual, truth in zip(*(grads if len(grads) == 2 else ([], [])), strict=True):
        assert_close(actual, truth)


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
    run_processes(work, 2, str(tmp_path / "init"), str(tmp_path / "done"))
    assert [(tmp_path / f"done{rank}").is_file() for rank in range(2)] == [True] * 2
