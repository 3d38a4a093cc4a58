# SPDX-License-Identifier: Apache-2.0
"""infonce and supcon where similarities tie, with a labelled queue, with targets of torch.compile, under autocast."""

from __future__ import annotations

import math

import innerloop
import pytest
import torch
from ops.infonce_cases import REFERENCE, Problem, by_hand, check, leaves, results
from tolerances import assert_close
from torch import Tensor

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
BUDGETS = pytest.mark.parametrize("budget", [{}, {"memory_budget": 0}], ids=["default", "recompute"])
DEFINED = {"op": innerloop.infonce, "definition": REFERENCE["infonce"]}


# ---- margins ----


@DTYPES
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("D", [1, 7, 100, 513, 2048])
@pytest.mark.parametrize("name", DEFINED)
def test_copies_of_a_positive_are_not_above_it(name, D, normalize, dtype):
    """In the batch, the queue and the hard negatives, whatever order each of them is summed in."""
    B, N, f = 50, 70, DEFINED[name]
    row, others = (torch.randn(1, D) / D**0.5).to(dtype), (torch.randn(B, D) / D**0.5).to(dtype)
    options = {"negatives_mask": "margin", "margin": 0.0, "normalize": normalize, "log_scale": 0.7, "reduction": "none"}
    queue, hard = row.expand(9, -1), row.expand(B, 4, -1)
    loss = f(others, row.expand(N, -1), symmetric=False, queue=queue, hard_negatives=hard, **options)
    assert_close(loss.float(), torch.full((B,), math.log(N + 9 + 4)))
    loss, row_lse, column_lse = f(row.expand(B, -1), others, return_lse=True, **options)
    column = loss + (column_lse - row_lse) / 2
    assert_close(column.float(), torch.full((B,), math.log(B)))


@BUDGETS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("margin", [0, 1, -1])
def test_equal_similarities(margin, dtype, budget):
    """Small integers, many of whose products are what the positive's is, or that plus the margin."""
    q, k, queue = (torch.randint(-1, 2, (n, 6)).to(dtype) for n in (40, 50, 30))
    options = {"negatives_mask": "margin", "margin": margin, "log_scale": -0.7, "queue": queue}
    expected = by_hand(q.tolist(), k.tolist(), **options | {"queue": queue.tolist()})
    for name, f in DEFINED.items():
        assert_close(f(q, k, **options).double(), torch.tensor(expected, dtype=torch.float64), dtype=dtype, op=name)
    check(Problem("infonce", {"q": q, "k": k}, options, 1.0), **budget)


@pytest.mark.parametrize("name", DEFINED)
@pytest.mark.parametrize("above", [False, True])
def test_a_margin_is_met_to_a_thousandth(above, name):
    cosines = torch.tensor([0.5, 0.6 + (1e-3 if above else -1e-3)])
    k = torch.stack([cosines, (1 - cosines**2).sqrt()], 1)
    q = torch.tensor([[1.0, 0.0]])
    loss = DEFINED[name](q, k, symmetric=False, negatives_mask="margin", margin=0.1)
    assert (loss == 0) == above


# ---- labels of a queue ----


@BUDGETS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_labelled_queue_is_further_keys_with_labels(dtype, budget):
    q, k, queue = (torch.randn(n, 9, dtype=dtype) for n in (20, 20, 33))
    labels, labels_queue = torch.arange(20) % 4, torch.arange(33).int() % 7
    one_way = {"symmetric": False, "normalize": True, "negatives_mask": "same_label", "labels_q": labels}
    both = Problem("infonce", {"q": q}, one_way | {"k": k, "queue": queue, "labels_queue": labels_queue}, 1.0)
    joined = {"k": torch.cat([k, queue]), "labels_k": torch.cat([labels, labels_queue])}
    expected = results(Problem.reference, Problem("infonce", {"q": q}, one_way | joined, 1.0))
    for f in (Problem.reference, lambda p: p.op(**budget)):
        for name, actual in results(f, both).items():
            assert_close(actual, expected[name])


@BUDGETS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_supcon_with_a_queue_is_supcon_of_both(dtype, budget):
    """Of its first rows; the labels 5 and 6 have no row in the batch, 3 none in the queue."""
    z, queue = torch.randn(20, 9, dtype=dtype), torch.randn(33, 9, dtype=dtype)
    labels, labels_queue = torch.arange(20) % 5, torch.tensor([0, 1, 2, 4, 5, 6]).int().repeat(6)[:33]
    memory = {"queue": queue, "labels_queue": labels_queue}

    def of_both(problem: Problem) -> Tensor:
        every = torch.cat([problem.tensors["z"], queue]), torch.cat([labels, labels_queue])
        return REFERENCE["supcon"](*every, reduction="none")[:20]

    problem = Problem("supcon", {"z": z}, {"labels": labels, "reduction": "none"} | memory, 1.0)
    expected = results(of_both, problem)
    for f in (Problem.reference, lambda p: p.op(**budget)):
        for name, actual in results(f, problem).items():
            assert_close(actual, expected[name])
    alone = innerloop.supcon(z, labels, **budget)
    assert_close(innerloop.supcon(z, labels, queue=queue[:0], labels_queue=labels_queue[:0], **budget), alone)


def test_no_gradient_for_a_queue():
    z, queue = leaves(*torch.randn(2, 6, 4))
    labels = torch.arange(6) % 2
    innerloop.supcon(z, labels, queue=queue, labels_queue=labels).backward()
    options = {"negatives_mask": "same_label", "labels_q": labels, "labels_queue": labels}
    innerloop.infonce(z, z.detach(), queue=queue, **options).backward()
    assert queue.grad is None


# ---- targets, which torch.compile cannot look at ----


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"decoupled": True}, {"negatives_mask": "margin"}], ids=str)
def test_bad_targets_of_a_compiled_call(options):
    """Are errors of the graph, also where an index of -1 would find the last column."""
    torch._dynamo.reset()
    q, k = torch.randn(4, 5), torch.randn(6, 5)
    compiled = torch.compile(
        lambda t: innerloop.infonce(q, k, targets=t, **options), fullgraph=True, backend="aot_eager"
    )
    good = torch.tensor([3, 0, 5, 2])
    assert_close(compiled(good), innerloop.infonce(q, k, targets=good, **options))
    for bad, text in (
        ([0, 1, 2, 6], r"targets holds .* expected columns in \[0, len\(k\)\)"),
        ([0, 1, 2, -1], "targets holds"),
        ([0, 1, 1, 2], "targets repeat a column, expected all different with symmetric=True"),
    ):
        with pytest.raises(RuntimeError, match=f"infonce: {text}"):
            compiled(torch.tensor(bad))


@pytest.mark.filterwarnings("ignore")
def test_compiled_targets_that_may_repeat_but_not_lie_on_the_diagonal():
    torch._dynamo.reset()
    q = torch.randn(4, 5)
    options = {"symmetric": False, "exclude_diagonal": True}
    compiled = torch.compile(
        lambda t: innerloop.infonce(q, q, targets=t, **options), fullgraph=True, backend="aot_eager"
    )
    good = torch.tensor([1, 0, 0, 0])
    assert_close(compiled(good), innerloop.infonce(q, q, targets=good, **options))
    with pytest.raises(RuntimeError, match="infonce: exclude_diagonal is True with targets on the diagonal"):
        compiled(torch.tensor([1, 0, 2, 0]))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", ["infonce", pytest.param("supcon", marks=pytest.mark.slow)])
def test_compile_for_any_number_of_rows(op):
    torch._dynamo.reset()

    def f(z: Tensor, queue: Tensor, labels: Tensor) -> Tensor:
        memory = {"queue": queue, "labels_queue": labels[: len(queue)]}
        if op == "supcon":
            return innerloop.supcon(z, labels, **memory)
        options = {"labels_q": labels, "negatives_mask": "same_label", "targets": labels.argsort()}
        return innerloop.infonce(z, z, **options, **memory)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for B, K in ((12, 5), (30, 17)):
        z, queue = torch.randn(B, 7, requires_grad=True), torch.randn(K, 7)
        labels = torch.arange(B) % 3
        loss, expected = compiled(z, queue, labels), f(z, queue, labels)
        assert_close(loss, expected)
        assert_close(*(torch.autograd.grad(x, z)[0] for x in (loss, expected)))


# ---- autocast ----

_HALF = torch.bfloat16
MIXED = {
    "infonce": lambda half, wide: innerloop.infonce(half, wide, queue=half.detach(), hard_negatives=wide[:, None]),
    "queue": lambda half, wide: innerloop.infonce(half, half.detach(), queue=wide, symmetric=False) + 0 * wide.sum(),
    "ntxent": innerloop.ntxent,
    "supcon": lambda half, wide: (
        innerloop.supcon(half, torch.arange(8) % 3, queue=wide, labels_queue=torch.arange(8)) + 0 * wide.sum()
    ),
    "siglip": lambda half, wide: innerloop.siglip(half, wide, 1.0, -2.0),
    "ckd": lambda half, wide: innerloop.ckd(wide, half) + 0 * half.sum(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MIXED)
def test_half_beside_float32_under_autocast(name):
    """All is float32 then, but each gradient has its own dtype; without autocast it is an error."""
    f, (x, y) = MIXED[name], torch.randn(2, 8, 6)
    half, wide = leaves(x.to(_HALF), y)
    same, _ = leaves(half.detach().float(), y)
    expected = f(same, wide)
    of_half, of_wide = torch.autograd.grad(expected, [same, wide])
    torch._dynamo.reset()
    for call in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", _HALF):
            loss = call(half, wide)
        grads = torch.autograd.grad(loss, [half, wide])
        assert_close(loss, expected)
        assert_close(grads[0], of_half.to(_HALF))
        assert_close(grads[1], of_wide)
    with pytest.raises(ValueError, match=f"^{'infonce' if name == 'queue' else name}: .* has dtype torch"):
        f(half, wide)


def test_float64_beside_half_under_autocast():
    q, k = torch.randn(2, 8, 6)
    with torch.autocast("cpu", _HALF), pytest.raises(ValueError, match=r"k has dtype torch\.float64"):
        innerloop.infonce(q.to(_HALF), k.double())
