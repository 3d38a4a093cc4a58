# SPDX-License-Identifier: Apache-2.0
"""Shared material of the infonce tests: golden numbers, a definition by loops, random problems."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import innerloop
import torch
from innerloop.reference.infonce import ckd, infonce, ntxent, siglip, supcon
from torch import Tensor
from torch.nn import functional as F

REDUCTIONS = ("mean", "sum", "none")

# The definitions by name, as the ops are called.
REFERENCE = {"infonce": infonce, "ntxent": ntxent, "supcon": supcon, "siglip": siglip, "ckd": ckd}

# ---- golden numbers, float64, of inputs made from formulas ----

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 0])
WEIGHTS = torch.tensor([1, 2, 0, 0.5, 1, 3, 1, 0.25], dtype=torch.float64)
LOG_SCALE = math.log(1 / 0.07)


def formula_pairs() -> tuple[Tensor, Tensor]:
    """q and k, (8, 5), not of length 1."""
    i = torch.arange(40, dtype=torch.float64).view(8, 5)
    return torch.sin(1 + i), torch.cos(0.5 * i) + 0.5 * torch.sin(1 + i)


def formula_queue() -> Tensor:
    return F.normalize(torch.sin(0.3 * torch.arange(60, dtype=torch.float64) + 2).view(12, 5))


def formula_logits() -> tuple[Tensor, Tensor]:
    """Student's and teacher's, (8, 6)."""
    j = torch.arange(48, dtype=torch.float64).view(8, 6)
    return 2 * torch.cos(0.3 * j) + torch.sin(1 + 0.7 * j), 3 * torch.sin(1 + 0.7 * j)


# Options of infonce with normalize=True: loss, |dq|, |dk|, dlog_scale, dq[0, 0].
GOLDEN_INFONCE = {
    "clip": ({}, (5.754037835375, 2.8620543871, 3.2281509484, 5.1375096209, -0.0170890233)),
    "one way": ({"symmetric": False}, (6.196817544527, 3.2727023612, 3.0332590699, 5.5279652506, -0.0029224641)),
    "weights": ({"weights": WEIGHTS}, (5.967244423083, 3.5569192919, 3.7776350128, 5.3251566378, 0.0558406798)),
    "same label": (
        {"negatives_mask": "same_label", "labels_q": LABELS},
        (5.724326305508, 2.8633698233, 3.2528130813, 5.1672339908, -0.0170163622),
    ),
}
GOLDEN_SUPCON = (14.923210855537, 1.8131816352, 2.1193560296, 14.5977015578, 0.1836754932)
GOLDEN_NTXENT = (8.713758479953, 2.7657883481, 2.8369352164, 8.3882491822, -0.1536330517)
# loss, |dq|, |dk|, dlog_scale, dbias, dq[0, 0]
GOLDEN_SIGLIP = (6.649523632858, 1.8383579405, 1.9116807453, -1.5408422116, -0.7602841376, -0.0654921569)
# loss, |dq|, dq[0, 0]
GOLDEN_MOCO = (5.618660893394, 3.8523719964, -0.0066327961)
# Options of ckd: loss, |ds|, ds[0, 0].
GOLDEN_CKD = {
    "T 1": ({}, (1.846852725306, 0.1389603990, -0.0008817024)),
    "T 2": ({"temperature": 2.0}, (1.927221442712, 0.0654079017, -0.0002660947)),
    "T 0.1": ({"temperature": 0.1}, (3.831211023230, 2.2734909488, 0.0020986918)),
    "students": ({"negatives": "student_student"}, (1.926715885998, 0.1128481457, -0.0044240782)),
}


# ---- the definition once more, one number at a time ----


def by_hand(
    q, k, *, log_scale=0.0, bias=0.0, symmetric=True, targets=None, labels_q=None, labels_k=None, weights=None,
    negatives_mask="none", margin=0.1, exclude_diagonal=False, queue=None, labels_queue=None, hard_negatives=None,
    tau_plus=0.0, decoupled=False,
) -> float:  # fmt: skip
    """The mean loss of lists of numbers, by loops and e^x: for few rows and small scores."""
    rows, columns, alpha = range(len(q)), range(len(k)), math.exp(log_scale)
    p = targets or list(rows)
    weights = weights or [1.0] * len(q)

    def dot(x, y):
        return sum(a * b for a, b in zip(x, y, strict=True))

    def dropped(i, j):
        same = negatives_mask == "same_label" and labels_q[i] == (labels_k or labels_q)[j]
        return same or (exclude_diagonal and i == j)

    def loss(positive, negatives):
        if negatives_mask == "margin":
            negatives = [s for s in negatives if s <= positive + margin]
        e_positive, total = math.exp(alpha * positive + bias), sum(math.exp(alpha * s + bias) for s in negatives)
        if tau_plus and negatives:
            mean = (total / len(negatives) - tau_plus * e_positive) / (1 - tau_plus)
            total = len(negatives) * max(mean, math.exp(-alpha))
        denominator = total + (0 if decoupled else e_positive)
        return math.log(denominator / e_positive) if denominator else 0.0

    result = 0.0
    for i in rows:
        positive = dot(q[i], k[p[i]])
        negatives = [dot(q[i], k[j]) for j in columns if j != p[i] and not dropped(i, j)]
        labels = labels_queue or [None] * len(queue or [])
        of_queue = [x for x, label in zip(queue or [], labels, strict=True) if label is None or label != labels_q[i]]
        negatives += [dot(q[i], x) for x in [*of_queue, *(hard_negatives[i] if hard_negatives else [])]]
        row = loss(positive, negatives)
        column = loss(positive, [dot(q[j], k[p[i]]) for j in rows if j != i and not dropped(j, p[i])])
        result += weights[i] * ((row + column) / 2 if symmetric else row)
    return result / sum(weights)


# ---- small problems, one for each option ----

_HARD = {"hard_negatives": torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))}
_QUEUE = {"queue": torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))}
_SAME_LABEL = {"negatives_mask": "same_label", "labels_q": torch.tensor([0, 1, 0, 2, 2, 0])}
_OFF_DIAGONAL = {"targets": torch.tensor([2, 0, 1, 4, 5, 3]), "exclude_diagonal": True}
OPTIONS = {
    "symmetric": {},
    "one way": {"symmetric": False},
    "targets": {"targets": torch.tensor([5, 0, 3, 1, 2, 4])},
    "repeated targets": {"targets": torch.tensor([5, 0, 5, 0, 2, 2]), "symmetric": False},
    "weights": {"weights": torch.tensor([1.0, 0, 2, 0.5, 1, 3], dtype=torch.float64)},
    "same label": _SAME_LABEL,
    "labels of both": _SAME_LABEL | {"labels_k": torch.tensor([2, 2, 1, 0, 1, 0])},
    "labels of the queue": _SAME_LABEL | _QUEUE | {"labels_queue": torch.tensor([2, 0, 1, 3])},
    "margin": {"negatives_mask": "margin", "margin": 0.1},
    "margin, queue, hard": {"negatives_mask": "margin", "margin": -0.1} | _QUEUE | _HARD,
    "off diagonal": _OFF_DIAGONAL,
    "queue": _QUEUE,
    "hard negatives": _HARD,
    "debiased": {"tau_plus": 0.05, "log_scale": 0.3},
    "debiased at the floor": {"tau_plus": 0.5, "log_scale": -0.2},
    "decoupled": {"decoupled": True},
    "all": _SAME_LABEL | _OFF_DIAGONAL | _QUEUE | _HARD | {"tau_plus": 0.05, "decoupled": True, "log_scale": -0.3},
}


def small_pairs():
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(6, 3, generator=generator, dtype=torch.float64) for _ in range(2))


def gap_pairs(B, D, cosine, generator):
    """Two bundles of rows around two directions whose cosine is given."""
    centres = torch.zeros(2, D, dtype=torch.float64)
    centres[0, 0], centres[1, 0], centres[1, 1] = 1, cosine, (1 - cosine**2) ** 0.5
    rows = centres[:, None] + 0.02 * torch.randn(2, B, D, dtype=torch.float64, generator=generator) / D**0.5
    return F.normalize(rows, dim=-1)


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def scalar(value, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype, requires_grad=True)


def calls(budget):
    """Each op as a function of two tensors (B, 8)."""

    def labels(x):
        return torch.arange(len(x)) % 5

    return {
        "infonce": lambda x, y: innerloop.infonce(x, y, log_scale=y[0, 0], normalize=True, **budget),
        "masked": lambda x, y: innerloop.infonce(
            x, y, bias=x[0, 0], negatives_mask="same_label", labels_q=labels(x), queue=x[:7], **budget
        ),
        "margin": lambda x, y: innerloop.infonce(
            x, y, negatives_mask="margin", hard_negatives=y[:, None], tau_plus=0.05, **budget
        ),
        "ntxent": lambda x, y: innerloop.ntxent(x, y, **budget),
        "supcon": lambda x, y: innerloop.supcon(torch.cat([x, y]), labels(x).repeat(2), **budget),
        "siglip": lambda x, y: innerloop.siglip(x, y, y[0, 0], x[0, 0], **budget),
        "ckd": lambda x, y: innerloop.ckd(x, y, labels=labels(x), **budget),
    }


# ---- random problems ----


@dataclass
class Problem:
    """One call: the op's name, the arguments that have gradients, and the other ones."""

    name: str
    tensors: dict[str, Tensor]
    options: dict
    gradient_size: float  # what the rows' gradients can reach: the measure where the true ones happen to be 0

    def op(self, **more) -> Tensor | tuple:
        return getattr(innerloop, self.name)(**self.tensors, **self.options, **more)

    def reference(self) -> Tensor | tuple:
        return REFERENCE[self.name](**self.tensors, **self.options)

    def double(self) -> Problem:
        def convert(value):
            return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

        tensors, options = ({n: convert(v) for n, v in d.items()} for d in (self.tensors, self.options))
        return replace(self, tensors=tensors, options=options)


def results(f: Callable[[Problem], Tensor | tuple], problem: Problem) -> dict[str, Tensor]:
    """Everything that f(problem) returns, and the gradients of the loss times a fixed random vector."""
    leaves = {n: t.detach().clone().requires_grad_() for n, t in problem.tensors.items()}
    out = f(replace(problem, tensors=leaves))
    out = out if isinstance(out, tuple) else (out,)
    g = torch.randn(out[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grads = torch.autograd.grad(out[0], list(leaves.values()), g.to(out[0]))
    found = dict(zip(("loss", "row_lse", "column_lse"), out, strict=False))
    found |= {f"d{n}": d for n, d in zip(leaves, grads, strict=True)}
    return {n: t.detach() for n, t in found.items() if t is not None}


def _gradient_size(temperature: float, rows: int, reduction: str) -> float:
    return 1 / temperature / (max(rows, 1) if reduction == "mean" else 1)


def random_problem(op: str, seed: int, dtype: torch.dtype = torch.float64, **given) -> Problem:
    """Of any op; `given` are sizes and options that are not left to chance."""
    if op == "infonce":
        return _random_infonce(seed, dtype, **given)
    return _random_other(op, seed, dtype, **given)


def _random_infonce(seed: int, dtype: torch.dtype, **given) -> Problem:
    """Rows of length about 1; log_scale and bias stay at least float32, as learned parameters do."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def pick(name, *values):
        value = rng.choice(values)
        return given.get(name, value)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def rows(*shape):
        return (randn(*shape) / max(shape[-1], 1) ** 0.5).to(dtype)

    def integers(high, n):
        return torch.randint(high, (n,), generator=generator)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    symmetric = pick("symmetric", True, True, False)
    B, D = pick("B", 1, 2, 3, 7, 33, 64, 65), pick("D", 1, 2, 3, 16, 33, 100)
    placed = pick("targets", None, None, "shuffled", "off diagonal", None if symmetric else "repeated")
    options = {"symmetric": symmetric, "return_lse": True, "normalize": pick("normalize", False, True)}
    N = pick("N", B, B, B + 1, 2 * B + 3)
    if placed == "repeated":
        N = pick("N", N, 1, B // 2 + 1)
        options["targets"] = integers(N, B)
    elif placed == "shuffled":
        options["targets"] = torch.randperm(N, generator=generator)[:B]
    elif placed == "off diagonal":
        N = max(N, 2)
        options["targets"] = (torch.arange(B) + rng.randrange(1, N)) % N
        options["exclude_diagonal"] = pick("exclude_diagonal", True, True, False)
    options["negatives_mask"] = mask = pick("negatives_mask", "none", "same_label", "margin")
    if mask == "same_label":
        classes = pick("classes", 1, 3, 20)
        options["labels_q"] = integers(classes, B)
        if N != B or pick("labels_k", False, True):
            options["labels_k"] = integers(classes, N)
    if mask == "margin":
        options["margin"] = pick("margin", 0.1, 0.0, -0.2)
    if pick("weights", False, False, True):
        options["weights"] = integers(3, B).to(wide) + (integers(B, 1) == torch.arange(B))
    if pick("queue", False, False, True):
        options["queue"] = rows(pick("K", 1, 40), D)
    if pick("tau_plus", False, False, False, True):
        options["tau_plus"] = 0.1
    options |= {"decoupled": pick("decoupled", False, False, True), "reduction": pick("reduction", *REDUCTIONS)}

    tensors = {"q": rows(B, D), "k": rows(N, D)}
    temperature = pick("temperature", 0.01, 0.05, 0.07, 0.3, 1.0)
    if pick("learned", True, True, False):
        tensors["log_scale"] = torch.tensor(-math.log(temperature), dtype=wide)
        tensors["bias"] = randn(1)[0].to(wide)
    else:
        options |= {"log_scale": -math.log(temperature), "bias": pick("bias", None, 0.7)}
    if pick("hard_negatives", False, False, True):
        tensors["hard_negatives"] = rows(B, pick("Kh", 1, 3), D)
    if mask == "same_label" and "queue" in options and pick("labels_queue", False, True):
        options["labels_queue"] = integers(classes, len(options["queue"]))
    return Problem("infonce", tensors, options, _gradient_size(temperature, B, options["reduction"]))


def _random_other(op: str, seed: int, dtype: torch.dtype, **given) -> Problem:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    B, D = given.get("B", rng.choice([1, 2, 3, 7, 33, 64, 65])), given.get("D", rng.choice([1, 2, 3, 16, 33, 100]))
    temperature = given.get("temperature", rng.choice([0.01, 0.07, 0.3, 1.0]))

    def rows(n):
        return (torch.randn(n, D, generator=generator, dtype=torch.float64) / D**0.5).to(dtype)

    labels = torch.randint(rng.choice([1, 3, 20]), (B,), generator=generator)
    options = {"reduction": rng.choice(REDUCTIONS)}
    if op != "ckd":
        options["normalize"] = rng.choice([True, False])
    if op != "siglip":
        options["temperature"] = temperature
    if op == "supcon" and rng.choice([False, True]):
        K = rng.choice([1, 40])
        options |= {"queue": rows(K), "labels_queue": torch.randint(5, (K,), generator=generator)}
    if op == "ntxent":
        tensors = {"z1": rows(B), "z2": rows(B)}
    elif op == "supcon":
        tensors = {"z": rows(B)}
        options |= {"labels": labels, "base_temperature": rng.choice([None, 0.07])}
    elif op == "siglip":
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        tensors = {"q": rows(B), "k": rows(B)}
        tensors |= {"log_scale": torch.tensor(-math.log(temperature), dtype=wide), "bias": torch.tensor(-3, dtype=wide)}
    else:
        tensors = {"student": rows(B)}
        options |= {
            "teacher": rows(B),
            "negatives": rng.choice(["teacher_student", "student_student"]),
            "labels": rng.choice([None, labels]),
            "symmetric": rng.choice([False, True]),
        }
    return Problem(op, tensors, options, _gradient_size(temperature, B, options["reduction"]))


# ---- comparison ----

# What an op may add to the error of the definition in the same dtype, in units of the result's size. float32: scores of
# 1 / T = 100 are rounded to 4e-6. Half types: one rounding of the gradient.
TERM = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def assert_as_good(actual: dict, eager: dict, truth: dict, gradient_size: float) -> None:
    """max|actual - truth| <= 4 · max|eager - truth| + term · size for each result; -inf must match.

    Eager's error is one draw of its roundings. Over 400 random problems in float32 the two errors are alike (median
    ratio 1.0 for the loss and each gradient), and the ratio of two such draws is above 4 once in 20.
    """
    assert actual.keys() == truth.keys()
    for name, t in truth.items():
        a, e = (x[name].double().masked_fill(t == -torch.inf, 0) for x in (actual, eager))
        assert torch.equal(actual[name] == -torch.inf, t == -torch.inf), name
        t = t.masked_fill(t == -torch.inf, 0)
        assert a.shape == t.shape, name
        if t.numel() == 0:
            continue
        size = max(t.abs().max().item(), gradient_size if t.dim() > 1 else 1)
        error, eager_error = ((x - t).abs().max().item() for x in (a, e))
        bound = 4 * eager_error + TERM[actual[name].dtype] * size
        assert error <= bound, f"{name}: error {error:.3g}, of the definition {eager_error:.3g}, size {size:.3g}"


def check(problem: Problem, **more) -> None:
    eager = truth = results(Problem.reference, problem.double())
    if next(iter(problem.tensors.values())).dtype != torch.float64:
        eager = results(Problem.reference, problem)
    assert_as_good(results(lambda p: p.op(**more), problem), eager, truth, problem.gradient_size)


def assert_acceptance(B, D, dtype):
    """Spec, further case 5."""
    tensors = {n: torch.randn(B, D).to(dtype) for n in "qk"} | {"log_scale": torch.tensor(LOG_SCALE)}
    problem = Problem("infonce", tensors, {"normalize": True}, 1.0)
    truth = results(Problem.reference, problem.double())
    for budget in ({}, {"memory_budget": 0}):
        found = results(lambda p, b=budget: p.op(**b), problem)
        assert abs(found["loss"] - truth["loss"]) <= 3e-6 * truth["loss"].clamp(min=1)
        for name in ("dq", "dk"):
            error, expected = found[name].double() - truth[name], truth[name]
            if D == 1:  # a unit vector of one dimension cannot turn: all is rounding
                assert error.abs().max() <= 1e-5 / 0.07
            elif dtype == torch.float32:
                assert error.abs().max() <= 2e-6 * expected.abs().max()
            else:
                assert error.norm() <= 1e-2 * expected.norm()


# ---- bad input: what differs from a good call, the error, and a part of its text ----

Q, K = torch.ones(4, 5), torch.ones(6, 5)
INDEX = torch.arange(4)
SAME_LABEL = {"labels_q": INDEX, "k": Q, "negatives_mask": "same_label"}
BAD = [
    ({"k": K[:3]}, ValueError, "k .*3.*targets"),
    ({"k": K[:0]}, ValueError, "k .*0"),
    ({"targets": torch.tensor([0, 1, 2, 6])}, ValueError, "targets .*6"),
    ({"targets": torch.tensor([0, 1, 2, -1])}, ValueError, "targets .*-1"),
    ({"targets": INDEX.int()}, ValueError, "targets .*torch.int32.*torch.int64"),
    ({"targets": INDEX[:3]}, ValueError, r"targets .*\(3,\).*\(4,\)"),
    ({"targets": torch.tensor([0, 1, 1, 2])}, ValueError, "targets .*symmetric"),
    ({"targets": [0, 1, 2, 3]}, TypeError, "targets is list, expected a tensor"),
    ({"labels_q": INDEX[:3], "negatives_mask": "same_label", "k": Q}, ValueError, r"labels_q .*\(3,\).*\(4,\)"),
    ({"labels_q": INDEX, "labels_k": INDEX, "negatives_mask": "same_label"}, ValueError, r"labels_k .*\(4,\).*\(6,\)"),
    ({"labels_q": INDEX, "negatives_mask": "same_label"}, ValueError, "labels_k"),
    ({"negatives_mask": "same_label"}, ValueError, "labels_q"),
    ({"queue": torch.ones(9, 4)}, ValueError, r"queue .*\(9, 4\)"),
    ({"queue": torch.ones(5)}, ValueError, r"queue .*\(5,\)"),
    ({"labels_queue": INDEX, "queue": Q}, ValueError, "labels are given with negatives_mask 'none'"),
    ({"labels_queue": INDEX} | SAME_LABEL, ValueError, "labels_queue is given without queue"),
    ({"labels_queue": INDEX, "queue": K} | SAME_LABEL, ValueError, r"labels_queue .*\(4,\).*\(6,\)"),
    ({"labels_queue": INDEX.float(), "queue": Q} | SAME_LABEL, TypeError, "labels_queue has dtype torch.float32"),
    ({"hard_negatives": torch.ones(4, 2, 6)}, ValueError, r"hard_negatives .*\(4, 2, 6\)"),
    ({"hard_negatives": torch.ones(3, 2, 5)}, ValueError, r"hard_negatives .*\(3, 2, 5\)"),
    ({"hard_negatives": torch.ones(4, 5)}, ValueError, r"hard_negatives .*\(4, 5\)"),
    ({"log_scale": math.nan}, ValueError, "log_scale is nan"),
    ({"log_scale": math.inf}, ValueError, "log_scale is inf"),
    ({"log_scale": torch.ones(2)}, ValueError, r"log_scale .*\(2,\)"),
    ({"bias": math.nan}, ValueError, "bias is nan"),
    ({"q": Q.long()}, TypeError, "q has dtype torch.int64"),
    ({"q": [1.0]}, TypeError, "q is list, expected a tensor"),
    ({"q": Q[0]}, ValueError, r"q has shape \(5,\)"),
    ({"q": Q[:, :0], "k": K[:, :0]}, ValueError, r"q has shape \(4, 0\), expected \(rows, D\), D >= 1"),
    ({"k": K.double()}, ValueError, "k has dtype torch.float64, expected torch.float32"),
    ({"k": torch.ones(6, 4)}, ValueError, r"k has shape \(6, 4\)"),
    ({"k": K.to("meta")}, ValueError, "k is on meta, expected cpu"),
    ({"queue": K.double()}, ValueError, "queue has dtype torch.float64, expected torch.float32"),
    ({"weights": torch.ones(3)}, ValueError, r"weights .*\(3,\).*\(4,\)"),
    ({"weights": torch.tensor([1.0, -3, 1, 0])}, ValueError, "weights .*-1"),
    ({"negatives_mask": "label"}, ValueError, "negatives_mask is 'label', expected one of none, same_label, margin"),
    ({"reduction": "avg"}, ValueError, "reduction is 'avg', expected one of mean, sum, none"),
    ({"exclude_diagonal": True}, ValueError, "exclude_diagonal"),
    ({"exclude_diagonal": True, "targets": torch.tensor([1, 0, 2, 3])}, ValueError, "exclude_diagonal"),
    ({"tau_plus": 1.0}, ValueError, "tau_plus is 1.0"),
    ({"tau_plus": -0.1}, ValueError, "tau_plus is -0.1"),
    ({"margin": math.nan, "negatives_mask": "margin"}, ValueError, "margin is nan"),
    ({"memory_budget": -1}, ValueError, "memory_budget is -1"),
    ({"memory_budget": None}, TypeError, "memory_budget is NoneType, expected a number"),
    ({"k": None}, TypeError, "k is NoneType, expected a tensor"),
    ({"log_scale": 100.0}, ValueError, "log_scale is 100, expected at most 88.7"),
    ({"log_scale": "a"}, TypeError, "log_scale is str, expected a number"),
    ({"margin": "a"}, TypeError, "margin is str"),
    ({"labels_q": INDEX}, ValueError, "labels are given with negatives_mask 'none'"),
]
BAD_OTHERS = [
    ("ntxent", (Q, K), {}, ValueError, r"z2 has shape \(6, 5\)"),
    ("ntxent", (Q, Q), {"temperature": 0.0}, ValueError, "temperature is 0.0"),
    ("ntxent", (Q, Q), {"temperature": torch.ones(())}, TypeError, "temperature is Tensor, expected a number"),
    ("supcon", (Q, INDEX), {"temperature": torch.ones(())}, TypeError, "temperature is Tensor"),
    ("ckd", (Q, Q), {"temperature": torch.ones(())}, TypeError, "temperature is Tensor"),
    ("ntxent", (Q.long(), Q), {}, TypeError, "z1 has dtype torch.int64"),
    ("ntxent", (Q, Q), {"reduction": "avg"}, ValueError, "reduction is 'avg'"),
    ("supcon", (Q, INDEX[:3]), {}, ValueError, r"labels .*\(3,\).*\(4,\)"),
    ("supcon", (Q, INDEX), {"queue": K}, ValueError, "labels_queue is None, expected the labels of the 6 rows"),
    ("supcon", (Q, INDEX), {"queue": K, "labels_queue": INDEX}, ValueError, r"labels_queue .*\(4,\).*\(6,\)"),
    ("supcon", (Q, INDEX), {"labels_queue": INDEX}, ValueError, "labels_queue is given without queue"),
    ("supcon", (Q, INDEX), {"queue": K[:, :3], "labels_queue": INDEX}, ValueError, r"queue has shape \(6, 3\)"),
    ("supcon", (Q, INDEX), {"temperature": -1.0}, ValueError, "temperature is -1.0"),
    ("supcon", (Q, INDEX), {"base_temperature": 0.0}, ValueError, "base_temperature is 0.0"),
    ("supcon", (Q.int(), INDEX), {}, TypeError, "z has dtype torch.int32"),
    ("siglip", (Q, Q, math.nan, 0.0), {}, ValueError, "log_scale is nan"),
    ("siglip", (Q, Q, 0.0, math.inf), {}, ValueError, "bias is inf"),
    ("siglip", (Q, Q.double(), 0.0, 0.0), {}, ValueError, "k has dtype torch.float64"),
    ("ckd", (Q, K), {}, ValueError, r"teacher has shape \(6, 5\)"),
    ("ckd", (Q, Q.double()), {}, ValueError, "teacher has dtype torch.float64"),
    ("ckd", (Q, Q), {"temperature": math.nan}, ValueError, "temperature is nan"),
    ("ckd", (Q, Q), {"labels": INDEX[:3]}, ValueError, r"labels .*\(3,\).*\(4,\)"),
    (
        "ckd",
        (Q, Q),
        {"negatives": "teacher"},
        ValueError,
        "negatives is 'teacher', expected one of teacher_student, stud",
    ),
]
