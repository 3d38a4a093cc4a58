# SPDX-License-Identifier: Apache-2.0
"""Two and three gloo processes with batches of different sizes give the loss and the gradients of one process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path

import innerloop
import pytest
import torch
from innerloop.ops import _infonce_distributed
from innerloop.ops._infonce_distributed import gather_keys, infonce_distributed
from processes import run_processes
from tolerances import assert_close
from torch import Tensor, nn
from torch import distributed as dist

D = 5
# Queries of each process; of three, one has none. Each has EXTRA[rank] keys more.
ROWS = {1: [4], 2: [3, 60], 3: [4, 0, 2]}
EXTRA = [2, 1, 0]


def problem(size: int, dtype: torch.dtype, extra: bool) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """q and k of each process, the scale, and the columns of the positives among all keys."""
    torch.manual_seed(0)
    rows = ROWS[size]
    columns = [n + e * extra for n, e in zip(rows, EXTRA, strict=False)]
    q = torch.randn(sum(rows), D, dtype=torch.float64).to(dtype).split(rows)
    k = torch.randn(sum(columns), D, dtype=torch.float64).to(dtype).split(columns)
    starts = [sum(columns[:rank]) for rank in range(size)]
    targets = torch.cat([start + torch.arange(n) for start, n in zip(starts, rows, strict=True)])
    return list(q), list(k), torch.tensor(1.3, dtype=torch.float64), targets


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().clone().requires_grad_() for t in tensors]


def of_one_process(
    q: list[Tensor], k: list[Tensor], log_scale: Tensor, targets: Tensor, **options
) -> tuple[Tensor, list[Tensor]]:
    q, k, log_scale, bias = leaves(torch.cat(q), torch.cat(k), log_scale, torch.tensor(0.5).double())
    loss = innerloop.infonce(q, k, log_scale=log_scale, bias=bias, targets=targets, **options)
    return loss.detach(), list(torch.autograd.grad(loss.sum(), (q, k, log_scale)))


def check_equal(rank: int, size: int, comm: str, extra: bool, **options) -> None:
    all_q, all_k, log_scale, targets = problem(size, torch.float64, extra)
    expected, (grad_q, grad_k, grad_log_scale) = of_one_process(all_q, all_k, log_scale, targets, **options)
    grad_q = grad_q.split([len(x) for x in all_q])[rank]
    grad_k = grad_k.split([len(x) for x in all_k])[rank]
    if options["reduction"] == "none":
        expected = expected.split(ROWS[size])[rank]
    for grad_scale, factor in (("sum", 1), ("ddp", size)):
        q, k, log_scale, bias = leaves(all_q[rank], all_k[rank], log_scale, torch.tensor(0.5).double())
        loss = infonce_distributed(q, k, log_scale=log_scale, bias=bias, comm=comm, grad_scale=grad_scale, **options)
        assert_close(loss, expected)
        loss.sum().backward()
        assert_close(q.grad, factor * grad_q)
        assert_close(k.grad, factor * grad_k)
        dist.all_reduce(log_scale.grad)
        assert_close(log_scale.grad, factor * grad_log_scale)
        assert abs(bias.grad) < 1e-12
    with torch.no_grad():
        assert_close(infonce_distributed(q, k, log_scale=log_scale, comm=comm, **options), expected)


def equals_one_process(rank: int, size: int) -> None:
    for comm, symmetric, normalize in product(("gather", "ring"), (True, False), (True, False)):
        reduction = "mean" if symmetric == normalize else "none"
        check_equal(rank, size, comm, normalize, symmetric=symmetric, normalize=normalize, reduction=reduction)
    check_equal(rank, size, "ring", False, symmetric=True, normalize=False, reduction="sum")


def equals_one_process_without_kernel(rank: int, size: int) -> None:
    _infonce_distributed._without_kernel = lambda op, x: True
    for comm, symmetric in product(("gather", "ring"), (True, False)):
        check_equal(rank, size, comm, True, symmetric=symmetric, normalize=symmetric, reduction="mean")
    one_tower_learns(rank, size)
    nothing_at_all(rank, size)


def half_types(rank: int, size: int) -> None:
    """Gradients are added up in float32 and rounded once."""
    all_q, all_k, log_scale, targets = problem(size, torch.bfloat16, False)
    wide = [[x.double() for x in t] for t in (all_q, all_k)]
    expected, (_, grad_k, _) = of_one_process(*wide, log_scale, targets)
    for comm in ("gather", "ring"):
        q, k = leaves(all_q[rank], all_k[rank])
        loss = infonce_distributed(q, k, log_scale=log_scale, comm=comm, grad_scale="sum")
        loss.backward()
        assert loss.dtype == torch.float32
        assert_close(loss.double(), expected, dtype=torch.float32)
        assert k.grad.dtype == torch.bfloat16
        own = grad_k.split(ROWS[size])[rank]
        assert ((k.grad.double() - own).abs() <= own.abs() / 256 + 1e-6).all()


def one_tower_learns(rank: int, size: int) -> None:
    """LiT, and keys that only one process learns."""
    all_q, all_k, log_scale, targets = problem(size, torch.float64, False)
    _, (grad_q, grad_k, _) = of_one_process(all_q, all_k, log_scale, targets)
    grad_q, grad_k = (grad.split(ROWS[size]) for grad in (grad_q, grad_k))
    options = {"log_scale": log_scale, "grad_scale": "sum"}
    for comm in ("gather", "ring"):
        (q,) = leaves(all_q[rank])
        infonce_distributed(q, all_k[rank], comm=comm, **options).backward()
        assert_close(q.grad, grad_q[rank])
        (k,) = leaves(all_k[rank])
        infonce_distributed(all_q[rank], k, comm=comm, **options).backward()
        assert_close(k.grad, grad_k[rank])
        q = leaves(all_q[rank])[0]
        k = leaves(all_k[rank])[0] if rank == 0 else all_k[rank]
        infonce_distributed(q, k, comm=comm, **options).backward()
        assert_close(q.grad, grad_q[rank])
        if rank == 0:
            assert_close(k.grad, grad_k[rank])


def nothing_at_all(rank: int, size: int) -> None:
    for comm in ("gather", "ring"):
        q, k = leaves(torch.empty(0, D), torch.empty(0, D))
        loss = infonce_distributed(q, k, comm=comm)
        loss.backward()
        assert loss == 0
        assert q.grad.shape == k.grad.shape == (0, D)
        # One pair in the group: its loss is 0, without NaN.
        q, k = leaves(*torch.randn(2, 1 if rank == 0 else 0, D))
        loss = infonce_distributed(q, k, comm=comm)
        loss.backward()
        assert loss == 0
        assert not q.grad.any()
        assert not k.grad.any()


def in_a_group(rank: int, size: int) -> None:
    """Process 0 is in neither the group nor the result; ranks are those in the group."""
    group = dist.new_group([1, 2])
    if rank == 0:
        with pytest.raises(ValueError, match="group is one without this process"):
            infonce_distributed(torch.ones(1, D), torch.ones(1, D), group=group)
        return
    torch.manual_seed(0)
    all_q, all_k = torch.randn(2, 5, D, dtype=torch.float64)
    expected, (grad_q, grad_k, _) = of_one_process([all_q], [all_k], torch.tensor(0.7).double(), torch.arange(5))
    own = slice(0, 2) if rank == 1 else slice(2, 5)
    for comm in ("gather", "ring"):
        q, k = leaves(all_q[own], all_k[own])
        loss = infonce_distributed(q, k, log_scale=torch.tensor(0.7), comm=comm, group=group, grad_scale="sum")
        loss.backward()
        assert_close(loss, expected)
        assert_close(q.grad, grad_q[own])
        assert_close(k.grad, grad_k[own])


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.queries, self.keys = nn.Linear(7, D), nn.Linear(6, D)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))
        self.double()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return self.queries(x), self.keys(y), self.log_scale, self.bias


def under_ddp(rank: int, size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(sum(ROWS[size]), 7, dtype=torch.float64).split(ROWS[size])
    y = torch.randn(sum(ROWS[size]), 6, dtype=torch.float64).split(ROWS[size])
    alone = Towers()
    q, k, log_scale, _ = alone(torch.cat(x), torch.cat(y))
    innerloop.infonce(q, k, log_scale=log_scale, normalize=True).backward()
    for comm in ("gather", "ring"):
        model = nn.parallel.DistributedDataParallel(Towers())
        q, k, log_scale, bias = model(x[rank], y[rank])
        infonce_distributed(q, k, log_scale=log_scale, bias=bias, normalize=True, comm=comm).backward()
        for (name, p), expected in zip(model.module.named_parameters(), alone.parameters(), strict=True):
            if name != "bias":
                assert_close(p.grad, expected.grad)


def rows_with_gradients(rank: int, size: int) -> None:
    rows = ROWS[size]
    (x,) = leaves(100.0 * rank + torch.arange(rows[rank] * 2.0).view(-1, 2))
    gathered = gather_keys("test", x, x)
    order = [(rank + i) % size for i in range(size)]
    assert torch.equal(gathered, torch.cat([100.0 * r + torch.arange(rows[r] * 2.0).view(-1, 2) for r in order]))
    gathered.backward(torch.full_like(gathered, rank + 1.0))
    assert torch.equal(x.grad, torch.full_like(x, size * (size + 1) / 2))


def errors(rank: int, size: int) -> None:
    """Of one process or between them: all raise, and the group goes on."""
    q = torch.randn(3, D)
    last = rank == size - 1
    wide = torch.randn(3, D + 1) if last else q
    with pytest.raises(ValueError, match=rf"width is 6 on process {size - 1} of the group, expected 5 as on process 0"):
        infonce_distributed(wide, wide)
    with pytest.raises(ValueError, match=r"dtype is torch.float64 on process .*, expected torch.float32"):
        infonce_distributed(q.double() if last else q, q.double() if last else q)
    with pytest.raises(ValueError, match=r"comm is 'ring' on process .*, expected 'gather'"):
        infonce_distributed(q, q, comm="ring" if last else "gather")
    with pytest.raises(ValueError, match=r"requires_grad is True on process .*, expected False"):
        infonce_distributed(q, q.clone().requires_grad_() if last else q)
    with pytest.raises(ValueError, match=r"SigLipLoss: width is 6 on process"):
        gather_keys("SigLipLoss", wide, wide)
    with pytest.raises((ValueError, RuntimeError), match=r"SigLipLoss: k has shape \(2, 5\), expected \(3, 5\)"):
        gather_keys("SigLipLoss", q, q[:2] if last else q)
    with pytest.raises(ValueError, match="infonce_distributed: comm is 'tree', expected one of gather, ring"):
        infonce_distributed(q, q, comm="tree")
    with pytest.raises(ValueError, match="grad_scale is 'mean', expected one of ddp, sum"):
        infonce_distributed(q, q, grad_scale="mean")
    with pytest.raises(ValueError, match="reduction is 'max', expected one of mean, sum, none"):
        infonce_distributed(q, q, reduction="max")
    kind, text = (
        (ValueError, "^infonce_distributed: k has 2 rows, expected at least 3 like q")
        if last
        else (RuntimeError, rf"process {size - 1} of the group failed: infonce_distributed: k has 2 rows")
    )
    with pytest.raises(kind, match=text):
        infonce_distributed(q, q[:2] if last else q)
    with pytest.raises(TypeError if last else RuntimeError, match=r"q has dtype torch\.int64"):
        infonce_distributed(q.long() if last else q, q)
    with pytest.raises((ValueError, RuntimeError), match="log_scale is nan"):
        infonce_distributed(q, q, log_scale=float("nan") if last else 0.0)
    with pytest.raises((TypeError, RuntimeError, AttributeError)):
        infonce_distributed(None if last else q, q)
    for comm in ("gather", "ring"):
        q, k = leaves(*torch.randn(2, 3, D))
        grads = torch.autograd.grad(infonce_distributed(q, k, comm=comm), (q, k), create_graph=True)
        for grad, x in product(grads, (q, k)):
            with pytest.raises(NotImplementedError, match="infonce_distributed: second derivatives"):
                torch.autograd.grad(grad.sum(), x, retain_graph=True)


def repeats(rank: int, size: int) -> None:
    """The same bits in every run."""
    all_q, all_k, log_scale, _ = problem(size, torch.float32, False)
    for comm in ("gather", "ring"):
        runs = []
        for _ in range(2):
            q, k = leaves(all_q[rank], all_k[rank])
            loss = infonce_distributed(q, k, log_scale=log_scale, comm=comm)
            runs.append([loss, *torch.autograd.grad(loss, (q, k))])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


CASES: dict[int, list[Callable[[int, int], None]]] = {
    2: [equals_one_process, half_types, one_tower_learns, under_ddp, rows_with_gradients, errors],
    3: [equals_one_process, one_tower_learns, nothing_at_all, in_a_group, rows_with_gradients, errors, repeats],
}


def work(rank: int, size: int, file: str, done: str) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    try:
        for case in [*CASES[size], equals_one_process_without_kernel]:
            case(rank, size)
        Path(f"{done}{rank}").touch()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("size", [2, 3])
def test_processes(size, tmp_path):
    run_processes(work, size, str(tmp_path / "init"), str(tmp_path / "done"))
    assert [(tmp_path / f"done{rank}").is_file() for rank in range(size)] == [True] * size


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'init'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("comm", ["gather", "ring"])
def test_one_process(comm):
    check_equal(0, 1, comm, True, symmetric=True, normalize=True, reduction="mean")


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
def test_compiled_callers_break_the_graph():
    q, k = leaves(*torch.randn(2, 4, D, dtype=torch.float64))

    def twice(q: Tensor, k: Tensor) -> Tensor:
        return 2 * infonce_distributed(2 * q, gather_keys("twice", q, k))

    expected = twice(q, k)
    actual = torch.compile(twice, backend="eager")(q, k)
    assert_close(actual, expected)
    assert_close(torch.autograd.grad(actual, q)[0], torch.autograd.grad(expected, q)[0])


def test_without_a_group():
    q = torch.ones(2, D)
    with pytest.raises(RuntimeError, match=r"^infonce_distributed: torch.distributed is not initialised"):
        infonce_distributed(q, q)
