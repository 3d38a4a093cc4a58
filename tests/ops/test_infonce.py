# SPDX-License-Identifier: Apache-2.0
"""infonce, ntxent, supcon, siglip and ckd against their definitions, and golden values made from formulas."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import innerloop
import pytest
import torch
from cases import Largest
from ops.infonce_cases import (
    BAD,
    BAD_OTHERS,
    GOLDEN_CKD,
    GOLDEN_INFONCE,
    GOLDEN_MOCO,
    GOLDEN_NTXENT,
    GOLDEN_SIGLIP,
    GOLDEN_SUPCON,
    LABELS,
    LOG_SCALE,
    OPTIONS,
    REDUCTIONS,
    REFERENCE,
    K,
    Problem,
    Q,
    assert_acceptance,
    assert_as_good,
    by_hand,
    calls,
    check,
    formula_logits,
    formula_pairs,
    formula_queue,
    gap_pairs,
    leaves,
    random_problem,
    results,
    scalar,
    small_pairs,
)
from processes import run_python
from tolerances import assert_close
from torch.nn import functional as F

OTHERS = ["ntxent", "supcon", "siglip", "ckd"]
BUDGETS = pytest.mark.parametrize("budget", [{}, {"memory_budget": 0}], ids=["default", "recompute"])

# Golden values have ten digits behind the point.
GOLDEN = {"rtol": 1e-9, "atol": 1e-10}


# ---- golden values ----


def assert_golden(actual, expected):
    actual = torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in actual])
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64), **GOLDEN)


@BUDGETS
@pytest.mark.parametrize("case", GOLDEN_INFONCE)
def test_golden_infonce(case, budget):
    options, expected = GOLDEN_INFONCE[case]
    (q, k), s = leaves(*formula_pairs()), scalar(LOG_SCALE)
    loss = innerloop.infonce(q, k, log_scale=s, normalize=True, **options, **budget)
    loss.backward()
    assert_golden([loss, q.grad.norm(), k.grad.norm(), s.grad, q.grad[0, 0]], expected)


@BUDGETS
def test_golden_moco(budget):
    """Only the queue's negatives: equal labels drop those of the batch."""
    (q,), k = leaves(formula_pairs()[0]), formula_pairs()[1]
    loss = innerloop.infonce(
        q, k, log_scale=LOG_SCALE, normalize=True, symmetric=False, queue=formula_queue(),
        negatives_mask="same_label", labels_q=torch.zeros(8, dtype=torch.int64), **budget,
    )  # fmt: skip
    loss.backward()
    assert_golden([loss, q.grad.norm(), q.grad[0, 0]], GOLDEN_MOCO)


def slope(f, x=1e-4):
    """df/dlog_scale at temperature 0.07, of f(temperature)."""
    up, down = (f(0.07 * math.exp(-h)) for h in (x, -x))
    far_up, far_down = (f(0.07 * math.exp(-h)) for h in (2 * x, -2 * x))
    return (8 * (up - down) - (far_up - far_down)) / (12 * x)


@BUDGETS
def test_golden_ntxent_and_supcon(budget):
    for f, expected in (
        (lambda q, k, t: innerloop.ntxent(q, k, temperature=t, **budget), GOLDEN_NTXENT),
        (lambda q, k, t: innerloop.supcon(torch.cat([q, k]), LABELS.repeat(2), temperature=t, **budget), GOLDEN_SUPCON),
    ):
        q, k = leaves(*formula_pairs())
        loss = f(q, k, 0.07)
        loss.backward()
        assert_golden([loss, q.grad.norm(), k.grad.norm(), q.grad[0, 0]], expected[:3] + expected[4:])
        assert abs(slope(lambda t, f=f, x=(q, k): f(*x, t).item()) - expected[3]) < 1e-7


@BUDGETS
def test_ntxent_is_infonce_without_the_diagonal(budget):
    (q, k), s = leaves(*formula_pairs()), scalar(LOG_SCALE)
    z = torch.cat([q, k])
    loss = innerloop.infonce(
        z, z, log_scale=s, normalize=True, symmetric=False, exclude_diagonal=True, targets=torch.arange(16).roll(8),
        **budget,
    )  # fmt: skip
    loss.backward()
    assert_golden([loss, q.grad.norm(), k.grad.norm(), s.grad, q.grad[0, 0]], GOLDEN_NTXENT)


@BUDGETS
def test_golden_siglip(budget):
    (q, k), s, b = leaves(*formula_pairs()), scalar(math.log(10)), scalar(-10)
    loss = innerloop.siglip(q, k, s, b, normalize=True, **budget)
    loss.backward()
    assert_golden([loss, q.grad.norm(), k.grad.norm(), s.grad, b.grad, q.grad[0, 0]], GOLDEN_SIGLIP)


@BUDGETS
@pytest.mark.parametrize("case", GOLDEN_CKD)
def test_golden_ckd(case, budget):
    options, expected = GOLDEN_CKD[case]
    student, teacher = leaves(*formula_logits())
    loss = innerloop.ckd(student, teacher, **options, **budget)
    loss.backward()
    assert teacher.grad is None
    assert_golden([loss, student.grad.norm(), student.grad[0, 0]], expected)


# ---- against the definition ----


@pytest.mark.parametrize("name", OPTIONS)
def test_by_hand(name):
    """The definition itself, and the op, against loops."""
    q, k = small_pairs()
    options = {"log_scale": 0.0} | OPTIONS[name]
    lists = {n: v.tolist() if isinstance(v, torch.Tensor) else v for n, v in options.items()}
    expected = by_hand(q.tolist(), k.tolist(), **lists)
    for f in (REFERENCE["infonce"], innerloop.infonce):
        assert abs(f(q, k, **options).item() - expected) < 1e-12


@BUDGETS
@pytest.mark.parametrize("seed", range(60))
def test_equals_the_definition(seed, budget):
    check(random_problem("infonce", seed), **budget)


@BUDGETS
@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("op", OTHERS)
def test_others_equal_the_definition(op, seed, budget):
    check(random_problem(op, seed), **budget)


@BUDGETS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("seed", range(100, 116))
def test_dtypes(seed, dtype, budget):
    problem = random_problem("infonce", seed, dtype)
    check(problem, **budget)
    found = results(lambda p: p.op(**budget), problem)
    assert {n: t.dtype for n, t in found.items() if n[0] == "d"} == {
        f"d{n}": t.dtype for n, t in problem.tensors.items()
    }
    assert all(t.dtype == torch.float32 for n, t in found.items() if n[0] != "d")


@BUDGETS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("op", OTHERS)
def test_dtypes_of_others(op, dtype, budget):
    for seed in range(100, 106):
        check(random_problem(op, seed, dtype), **budget)


@pytest.mark.parametrize("budget", [64 << 20, 1 << 20, 0])
@pytest.mark.parametrize("seed", range(200, 208))
def test_many_panels(seed, budget):
    """Sizes beyond any panel; 1 MiB holds a part of the scores."""
    check(random_problem("infonce", seed, B=700, D=19, reduction="mean"), memory_budget=budget)


@pytest.mark.parametrize("budget", [64 << 20, 1 << 20, 0])
@pytest.mark.parametrize("op", OTHERS)
def test_many_panels_of_others(op, budget):
    check(random_problem(op, 1, B=700, D=19), memory_budget=budget)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("D", [1, 3, 64, 100, 513])
def test_shapes(D, dtype):
    for B in (1, 2, 3, 63, 64, 65, 127, 129):
        assert_acceptance(B, D, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("D", [1, 3, 64, 100, 513])
@pytest.mark.parametrize("B", [1000, 4097])
def test_large_shapes(B, D):
    assert_acceptance(B, D, torch.float32)


@BUDGETS
@pytest.mark.parametrize("name", OPTIONS)
def test_gradcheck(name, budget):
    (q, k), s, b = leaves(*small_pairs()), scalar(0.2), scalar(0.3)
    options = dict(OPTIONS[name])
    hard = options.pop("hard_negatives", None)
    hard = () if hard is None else (hard.clone().requires_grad_(),)
    options.pop("log_scale", None)
    for more in ({"normalize": True}, {"reduction": "none"}):

        def f(q, k, log_scale, bias, *hard, more=more):
            given = {"hard_negatives": hard[0]} if hard else {}
            return innerloop.infonce(q, k, log_scale=log_scale, bias=bias, **given, **options, **more, **budget)

        assert torch.autograd.gradcheck(f, (q, k, s, b, *hard))


@BUDGETS
@pytest.mark.parametrize("op", OTHERS)
def test_gradcheck_of_others(op, budget):
    for seed in range(4):
        problem = random_problem(op, seed, B=5, D=3, temperature=0.5)

        def f(*tensors, problem=problem):
            return replace(problem, tensors=dict(zip(problem.tensors, tensors, strict=True))).op(**budget)

        assert torch.autograd.gradcheck(f, leaves(*problem.tensors.values()))


@BUDGETS
@pytest.mark.parametrize("name", ["symmetric", "same label", "queue", "debiased", "decoupled", "off diagonal"])
def test_gradients_through_lse(name, budget):
    """As a z-loss needs them, alone and beside those of the loss."""
    problem = Problem("infonce", dict(zip("qk", small_pairs(), strict=True)), {**OPTIONS[name], "return_lse": True}, 1)

    def z_loss(out):
        loss, row, column = out
        return row.square().sum() + 2 * column.sum(), loss + row.square().sum() - column.square().mean()

    for i in range(2):
        actual = results(lambda p, i=i: z_loss(p.op(**budget))[i], problem)
        expected = results(lambda p, i=i: z_loss(p.reference())[i], problem)
        assert_as_good(actual, expected, expected, 1)


@BUDGETS
def test_same_tensor(budget):
    z = torch.randn(70, 9, dtype=torch.float64, requires_grad=True)
    for options in ({}, {"normalize": True, "symmetric": False}, {"targets": torch.arange(70).roll(3)}):
        (grad,) = torch.autograd.grad(innerloop.infonce(z, z, log_scale=0.5, **options, **budget), z)
        assert_close(grad, torch.autograd.grad(REFERENCE["infonce"](z, z, log_scale=0.5, **options), z)[0])


@pytest.mark.parametrize("wanted", ["q", "k", "log_scale", "bias", "hard_negatives"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_one_gradient_only(wanted, symmetric):
    problem = random_problem("infonce", 0, B=33, D=16, hard_negatives=True, learned=True, symmetric=symmetric)
    expected = results(Problem.reference, problem)[f"d{wanted}"]
    options = problem.options | {n: t for n, t in problem.tensors.items() if n != wanted}
    alone = replace(problem, tensors={wanted: problem.tensors[wanted]}, options=options)
    for budget in ({}, {"memory_budget": 0}):
        assert_close(results(lambda p, b=budget: p.op(**b), alone)[f"d{wanted}"], expected)


@BUDGETS
def test_no_gradient_for_constants(budget):
    q, k, queue, student, teacher = (torch.randn(4, 3, requires_grad=True) for _ in range(5))
    innerloop.infonce(q, k, queue=queue, **budget).backward()
    innerloop.ckd(student, teacher, **budget).backward()
    assert queue.grad is None
    assert teacher.grad is None
    with torch.no_grad():
        assert not innerloop.infonce(q, k, **budget).requires_grad


@BUDGETS
@pytest.mark.parametrize("op", ["infonce", *OTHERS])
def test_backward_twice(op, budget):
    """What is kept between the passes is still there after the first."""
    problem = random_problem(op, 2, B=65, D=16)
    tensors = dict(zip(problem.tensors, leaves(*problem.tensors.values()), strict=True))
    out = replace(problem, tensors=tensors).op(**budget)
    loss = (out[0] if isinstance(out, tuple) else out).sum()
    first, second = (torch.autograd.grad(loss, list(tensors.values()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


@BUDGETS
@pytest.mark.parametrize("layout", ["transposed", "slice", "expanded", "column"])
def test_strides(layout, budget):
    B, D = 40, 12
    make = {
        "transposed": lambda: torch.randn(D, B).T,
        "slice": lambda: torch.randn(2 * B, 3 * D)[1::2, D : 2 * D],
        "expanded": lambda: torch.randn(1, D).expand(B, D),
        "column": lambda: torch.randn(B, 1).expand(B, D),
    }[layout]
    tensors = {"q": make(), "k": make(), "hard_negatives": torch.randn(D, 2, B).permute(2, 1, 0)}
    options = {"queue": make(), "weights": torch.rand(1).expand(B), "labels_q": torch.arange(2 * B)[::2] % 7}
    strided = Problem("infonce", tensors, options | {"negatives_mask": "same_label"}, 1)
    dense = replace(
        strided,
        tensors={n: t.contiguous() for n, t in tensors.items()},
        options={n: t.contiguous() if isinstance(t, torch.Tensor) else t for n, t in strided.options.items()},
    )
    actual, expected = (results(lambda p: p.op(**budget), p) for p in (strided, dense))
    for name, t in expected.items():
        assert_close(actual[name], t)


# ---- numerics ----


@BUDGETS
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("case", ["gap", "wide"])
def test_small_temperature(case, normalize, budget):
    """With 1 / T as the maximum every e^((cos - 1) / T) is 0 in float32."""
    generator = torch.Generator().manual_seed(0)
    if case == "gap":
        q, k = gap_pairs(200, 64, -0.28, generator)
    else:
        q, k = F.normalize(torch.randn(2, 64, 4096, generator=generator, dtype=torch.float64), dim=-1)
        assert (q @ k.T).max() < 0.1
    tensors = {"q": q.float(), "k": k.float(), "log_scale": torch.tensor(math.log(100))}
    problem = Problem("infonce", tensors, {"normalize": normalize, "return_lse": True}, 1)
    expected = results(Problem.reference, problem.double())
    actual = results(lambda p: p.op(**budget), problem)
    for name in ("loss", "row_lse", "column_lse"):
        assert_close(actual[name].double(), expected[name], op="infonce_temperature")
    for name in ("dq", "dk"):
        assert (actual[name] - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max()


@BUDGETS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_identical_rows(dtype, budget):
    e = torch.zeros(8, 5, dtype=dtype)
    e[:, 0] = 1
    (q, k), s = leaves(e, e), scalar(math.log(100), torch.float32)
    loss = innerloop.infonce(q, k, log_scale=s, normalize=True, **budget)
    loss.backward()
    assert abs(loss.item() - math.log(8)) < 1e-5
    # In float32 the lse of 102 is rounded to 4e-6, and log_scale's gradient is 100 times that.
    assert abs(s.grad) < (1e-5 if dtype == torch.float64 else 1e-3)
    assert all(bool(t.grad.isfinite().all()) for t in (q, k))


@BUDGETS
def test_scale_100(budget):
    q = F.normalize(torch.randn(100, 512), dim=-1)
    for sign in (1, -1):
        a, b = leaves(q, sign * q)
        s = scalar(math.log(100), torch.float32)
        loss = innerloop.infonce(a, b, log_scale=s, **budget)
        loss.backward()
        assert abs(loss) < 1e-6 if sign == 1 else 100 <= loss < math.inf
        assert all(bool(t.grad.isfinite().all()) for t in (a, b, s))


@BUDGETS
def test_fully_masked_row(budget):
    q, k = leaves(*torch.randn(2, 6, 4, dtype=torch.float64))
    loss, row, _ = innerloop.infonce(
        q, k, symmetric=False, decoupled=True, negatives_mask="same_label", labels_q=torch.arange(6),
        labels_k=torch.zeros(6, dtype=torch.int64), reduction="none", return_lse=True, **budget,
    )  # fmt: skip
    loss.sum().backward()
    assert loss[0] == 0
    assert row[0] == -math.inf
    assert bool(q.grad[0].eq(0).all())
    assert bool(loss[1:].isfinite().all())
    assert bool(q.grad[1:].ne(0).all())
    assert bool(k.grad.isfinite().all())


@BUDGETS
@pytest.mark.parametrize("more", [{}, {"tau_plus": 0.1}, {"normalize": True}], ids=str)
def test_everything_masked(more, budget):
    (q, k), s = leaves(*torch.randn(2, 5, 4, dtype=torch.float64)), scalar(0.5)
    out = innerloop.infonce(
        q, k, log_scale=s, decoupled=True, negatives_mask="same_label", labels_q=torch.ones(5, dtype=torch.int64),
        return_lse=True, **more, **budget,
    )  # fmt: skip
    torch.autograd.backward(out, [torch.ones_like(t) for t in out])
    assert out[0] == 0
    assert out[1].tolist() == out[2].tolist() == [-math.inf] * 5
    assert all(bool(t.grad.eq(0).all()) for t in (q, k, s))


@BUDGETS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_zero_rows(dtype, budget):
    """A row of zeros is normalised to zeros: eps must not vanish in a half type."""
    x, y = torch.randn(2, 5, 7).to(dtype)
    x[2] = 0
    for f in (lambda a, b: innerloop.ckd(a, b, **budget), lambda a, b: innerloop.ntxent(a, b, **budget)):
        (a,) = leaves(x)
        loss = f(a, y)
        loss.backward()
        assert loss.isfinite()
        # Divided by 1e-12, the zero row's own gradient is too large for float16.
        assert bool(a.grad[torch.arange(5) != 2 if dtype == torch.float16 else slice(None)].isfinite().all())


@BUDGETS
def test_nan_is_not_masked_away(budget):
    q, k = torch.randn(4, 3), torch.randn(5, 3)
    k[4] = torch.nan  # nobody's target
    for options in ({}, {"negatives_mask": "margin"}):
        loss = innerloop.infonce(q, k, symmetric=False, reduction="none", **options, **budget)
        assert bool(loss.isnan().all())


@BUDGETS
@pytest.mark.parametrize("op", ["infonce", "siglip", "ckd", "ntxent", "supcon"])
@pytest.mark.parametrize("B", [0, 1])
def test_empty_and_single(op, B, budget):
    problem = random_problem(op, 0, B=B, N=B, D=3, targets=None)
    for reduction in REDUCTIONS:
        check(replace(problem, options=problem.options | {"reduction": reduction}), **budget)


@BUDGETS
def test_one_row_costs_nothing(budget):
    for dtype in (torch.float64, torch.float32):
        a, b, s = *leaves(*torch.randn(2, 1, 9, dtype=dtype)), scalar(3.0, dtype)
        for loss in (innerloop.infonce(a, b, log_scale=s, normalize=True, **budget), innerloop.ckd(a, b, **budget)):
            loss.backward()
            assert loss == 0
        assert all(bool(t.grad.eq(0).all()) for t in (a, b, s))


# ---- torch's own contracts ----

NAMES = list(calls({}))


@BUDGETS
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_raise(name, budget):
    x, y = leaves(*torch.randn(2, 24, 8))
    (grad,) = torch.autograd.grad(calls(budget)[name](x, y), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


@BUDGETS
@pytest.mark.parametrize("name", NAMES)
def test_func_grad(name, budget):
    x, y = leaves(*torch.randn(2, 24, 8, dtype=torch.float64))
    f = calls(budget)[name]
    actual = torch.func.grad_and_value(lambda x, y: f(x, y), argnums=(0, 1))(x.detach(), y.detach())
    expected = torch.autograd.grad(f(x, y), [x, y], allow_unused=True)
    for a, e in zip(actual[0], expected, strict=True):
        assert_close(a, torch.zeros_like(a) if e is None else e)
    assert_close(actual[1], f(x, y))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_compile(name):
    torch._dynamo.reset()
    f, (x, y) = calls({})[name], torch.randn(2, 24, 8, dtype=torch.float64)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    grads = []
    for call in (compiled, f):
        tensors = leaves(x, y)
        loss = call(*tensors)
        grads.append([loss.detach(), *torch.autograd.grad(loss, tensors, allow_unused=True)])
    for a, e in zip(*grads, strict=True):
        assert (a is None and e is None) or assert_close(a, e) is None


@BUDGETS
@pytest.mark.parametrize("name", NAMES)
def test_same_bits_for_every_number_of_threads(name, budget):
    (x, y), before, found = torch.randn(2, 1000, 8), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 1, 2):
            torch.set_num_threads(threads)
            tensors = leaves(x, y)
            loss = calls(budget)[name](*tensors)
            found.append([loss, *torch.autograd.grad(loss, tensors, allow_unused=True)])
    finally:
        torch.set_num_threads(before)
    assert all(a is b or torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("upper", [False, True])
def test_opcheck(kind, upper):
    z, inverse, labels = torch.randn(9, 5, dtype=torch.float64), torch.rand(9, dtype=torch.float64), torch.arange(9) % 4
    scale, bias = torch.tensor(0.3, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    columns = kind == 0
    args = (
        z, z.flip(0), inverse, inverse, scale, bias, torch.arange(9), labels, labels, inverse, inverse, kind, False,
        upper, columns,
    )  # fmt: skip
    for keep in (False, True):
        torch.library.opcheck(torch.ops.innerloop.infonce.default, (*args, columns, keep))
        positive, row, column, _, _, scores = torch.ops.innerloop.infonce(*args, columns, keep)
        grads = inverse, inverse, inverse if columns else None
        torch.library.opcheck(
            torch.ops.innerloop.infonce_backward.default,
            (*grads, positive, row, column, scores, *args, True, True),
        )


def test_opcheck_mean():
    z, labels = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 4
    scale = torch.tensor(0.3, dtype=torch.float64)
    for flags in itertools.product((False, True), repeat=5):
        args = z, z.flip(0), scale, torch.arange(9), labels, labels, 0.5, *flags
        torch.library.opcheck(torch.ops.innerloop.infonce_mean.default, args)


# ---- memory ----


@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_of_scores(name):
    B = 2048
    tensors = leaves(*torch.randn(2, B, 8))
    with Largest() as mode:
        torch.autograd.backward(calls({"memory_budget": 0})[name](*tensors))
    assert mode.largest < B * B / 4


MEMORY = """
import resource, torch
import innerloop
torch.set_num_threads(2)
B, D = 16384, 256
q, k = (torch.randn(B, D, requires_grad=True) for _ in range(2))
s = torch.tensor(2.0, requires_grad=True)
innerloop.infonce(q[:600], k[:600], log_scale=s, normalize=True).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
loss = innerloop.infonce(q, k, log_scale=s, normalize=True)
grads = torch.autograd.grad(loss, [q, k, s])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before * 1024 - 2 * q.numel() * 4)
"""


@pytest.mark.slow
def test_memory_of_a_large_batch():
    """Spec, further case 7: beyond inputs and gradients at most 64 MiB, where the scores alone are 1 GiB."""
    assert float(run_python(MEMORY, timeout=300)) <= 64 << 20


# ---- bad input ----


def test_an_empty_queue_and_no_rows():
    q, k = torch.randn(2, 6, 4)
    for mask in ("none", "margin"):
        options = {"negatives_mask": mask, "symmetric": False}
        assert_close(innerloop.infonce(q, k, queue=k[:0], **options), innerloop.infonce(q, k, **options))
        assert innerloop.infonce(q[:0], k, queue=q, **options) == 0
    labels = {"labels_q": torch.arange(0), "labels_k": torch.arange(6), "negatives_mask": "same_label"}
    assert innerloop.infonce(q[:0], k, **labels) == 0


def test_hard_negatives_are_not_rounded_by_autocast():
    q, k = torch.randn(2, 6, 16)
    options = {"hard_negatives": torch.randn(6, 3, 16), "normalize": True, "log_scale": 4.0}
    with torch.autocast("cpu", torch.bfloat16):
        loss = innerloop.infonce(q, k, **options)
    assert torch.equal(loss, innerloop.infonce(q, k, **options))


def test_wide_rows_in_several_panels():
    """So wide that what ranges of columns add to a panel of rows would be large: smaller panels, the same sums."""
    check(random_problem("infonce", 7, B=130, N=700, D=3000, reduction="mean"), memory_budget=0)


@pytest.mark.parametrize(("change", "error", "text"), BAD, ids=[text for *_, text in BAD])
def test_bad_arguments(change, error, text):
    with pytest.raises(error, match=f"^infonce: .*{text}"):
        innerloop.infonce(**({"q": Q, "k": K} | change))


@pytest.mark.parametrize(
    ("op", "args", "options", "error", "text"), BAD_OTHERS, ids=[f"{c[0]} {c[4]}" for c in BAD_OTHERS]
)
def test_bad_arguments_of_others(op, args, options, error, text):
    with pytest.raises(error, match=f"^{op}: .*{text}"):
        getattr(innerloop, op)(*args, **options)
