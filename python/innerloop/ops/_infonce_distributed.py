# SPDX-License-Identifier: Apache-2.0
"""infonce over the batches of all processes of a torch.distributed group.

A process forms the scores of its own queries and all keys, in one pass for both directions: the sum of a row is then
complete, that of a column is merged with those of the other processes. The keys are there all at a time ("gather"), or
come by block after block ("ring").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from ._infonce_checks import check_choice, check_matrices, check_scalar
from ._infonce_common import EPS, LSE, accumulator, inverse_norms, one_dtype
from ._infonce_ops import backward_op, forward_op
from ._registry import last_derivative, not_traced, wants_grad
from .infonce import Reduction, _cross_entropy, _scalar, _wants_scalar, _without_kernel

__all__ = ["gather_keys", "infonce_distributed"]


@not_traced
def infonce_distributed(
    q: Tensor,
    k: Tensor,
    *,
    log_scale: Tensor | float | None = None,
    bias: Tensor | float | None = None,
    normalize: bool = False,
    symmetric: bool = True,
    comm: Literal["gather", "ring"] = "gather",
    group: dist.ProcessGroup | None = None,
    grad_scale: Literal["ddp", "sum"] = "ddp",
    reduction: Reduction = "mean",
) -> Tensor:
    """:func:`infonce` of the batches of all processes: every query against the keys of all, its positive on its own.

    Every process of the group calls this with its own rows, and backward too. Per process 2 B N D FLOP forward and 6
    B N D backward, N being the keys of all; the scores are never stored. torch.compile calls it between its graphs.

    Args:
        q: (B, D), float32, float64, bfloat16 or float16; B may differ between processes and be 0.
        k: (N, D), N at least B: row i is the positive of query i, rows from B on are further negatives.
        log_scale, bias: numbers or 0-d tensors, which get gradients; the same on all processes.
        normalize, symmetric: see :func:`infonce`.
        comm: "gather": all keys on each process, and the gradients of the keys reduced and scattered; memory O(D · all
            keys). "ring": keys, their sums and gradients pass from process to process, the next keys while those here
            are used; memory O(D · two blocks).
        group: default: all processes.
        grad_scale: which reduction over the processes makes the gradients of the parameters those of the returned loss.
            "sum": their sum. The gradients of q and k are plainly those of the loss; that of log_scale is the share of
            this process's queries. "ddp": their mean, as DistributedDataParallel takes it: all of these, times the
            number of processes.
        reduction: "mean" over all queries of the group, "sum", or "none": those of this process.

    Returns:
        "mean" and "sum": 0-d, the same on all processes; "none": (B,). float32 (float64 for float64).

    Gradients:
        With "none", of the sum of what all processes make of their losses; with "mean" and "sum" whatever multiplies
        the loss has to be the same on all of them. A second derivative raises.

    Raises:
        RuntimeError: torch.distributed is not initialised, or another process failed the checks below.
        TypeError: an argument that is no tensor, or an integer dtype.
        ValueError: arguments that do not fit, here or (widths, dtypes, options) between the processes; every process
            raises then, and none waits for the others.

    Source: equation 4 of van den Oord et al. 2018; gradients of gathered features: Chen et al., DisCo-CLIP (CVPR 2023);
    a ring with partial sums: Cheng et al., Inf-CL (CVPR 2025).
    """
    op = "infonce_distributed"
    q, k = one_dtype(q, k)

    def describe() -> dict[str, Any]:
        check_matrices(op, {"q": q, "k": k})
        if len(k) < len(q):
            raise ValueError(f"{op}: k has {len(k)} rows, expected at least {len(q)} like q")
        check_scalar(op, "log_scale", log_scale, q)
        check_scalar(op, "bias", bias, q)
        check_choice(op, "comm", comm, ("gather", "ring"))
        check_choice(op, "grad_scale", grad_scale, ("ddp", "sum"))
        check_choice(op, "reduction", reduction, ("mean", "sum", "none"))
        return {
            "rows": len(q),
            "columns": len(k),
            "want_k": wants_grad(k),
            "same": {
                "width": q.shape[1],
                "dtype": q.dtype,
                "normalize": normalize,
                "symmetric": symmetric,
                "comm": comm,
                "grad_scale": grad_scale,
                "reduction": reduction,
                "requires_grad": wants_grad(q, k) or _wants_scalar(log_scale) or _wants_scalar(bias),
            },
        }

    everyone = _exchange(op, describe, group)
    layout = _Layout(group, dist.get_rank(group), tuple(other["columns"] for other in everyone))
    acc = accumulator(q.dtype)
    log_scale, bias = (_scalar(x, acc, q) for x in (log_scale, bias))
    want_k = any(other["want_k"] for other in everyone)
    positive, row, column = _GlobalSums.apply(q, k, log_scale, layout, normalize, symmetric, comm == "ring", want_k)
    positive = positive * log_scale.double().exp().to(acc) + bias
    loss, _ = _cross_entropy(row + bias, positive)
    if symmetric:
        loss = (loss + _cross_entropy(column[: len(q)] + bias, positive)[0]) / 2
    if grad_scale == "ddp":
        loss = loss.detach() + len(everyone) * (loss - loss.detach())
    if reduction == "none":
        return loss
    count = sum(other["rows"] for other in everyone)
    share = loss.sum() / (max(count, 1) if reduction == "mean" else 1)
    total = share.detach().clone()
    dist.all_reduce(total, group=group)
    return total + (share - share.detach())


@not_traced
def gather_keys(
    op: str, q: Tensor, k: Tensor, group: dist.ProcessGroup | None = None, *, own_first: bool = True
) -> Tensor:
    """Keys of all processes, (N, D): this process's first, so that positives are on the diagonal, then the next one's.

    The gradient of k is the sum over the processes of the gradients of its rows.

    Args:
        op: named by errors. q, k: (B, D), B may differ between processes.
        own_first: False: those of process 0 first, on every process.

    Raises:
        As :func:`infonce_distributed`.
    """

    def describe() -> dict[str, Any]:
        check_matrices(op, {"q": q, "k": k}, same_shape=True)
        return {"rows": len(k), "same": {"width": k.shape[1], "dtype": k.dtype, "requires_grad": wants_grad(k)}}

    everyone = _exchange(op, describe, group)
    layout = _Layout(group, dist.get_rank(group), tuple(other["rows"] for other in everyone))
    rows = _GatherRows.apply(k, layout)
    return rows.roll(-layout.own.start, 0) if own_first else rows


class _Layout(NamedTuple):
    group: dist.ProcessGroup | None
    rank: int
    columns: tuple[int, ...]
    """How many keys each process has."""

    @property
    def own(self) -> slice:
        """Where those of this process are among all."""
        end = sum(self.columns[: self.rank + 1])
        return slice(end - self.columns[self.rank], end)


def _exchange(op: str, describe: Callable[[], dict], group: dist.ProcessGroup | None) -> list[dict[str, Any]]:
    """What `describe` returns on each process; its "same" has to be that.

    An error of one process, too, is raised on all, which would otherwise wait for it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(f"{op}: torch.distributed is not initialised, expected init_process_group before")
    if dist.get_rank(group) < 0:
        raise ValueError(f"{op}: group is one without this process, expected one that it belongs to")
    failure, mine = None, {}
    try:
        mine = describe()
    except Exception as error:
        failure = error
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, (None if failure is None else str(failure), mine), group)
    if failure is not None:
        raise failure
    for rank, (error, _) in enumerate(everyone):
        if error is not None:
            raise RuntimeError(f"{op}: process {rank} of the group failed: {error}")
    described = [other for _, other in everyone]
    for name, expected in described[0]["same"].items():
        for rank, other in enumerate(described):
            if other["same"][name] != expected:
                raise ValueError(
                    f"{op}: {name} is {other['same'][name]!r} on process {rank} of the group, expected {expected!r} as "
                    "on process 0"
                )
    return described


class _GlobalSums(torch.autograd.Function):
    """Of the own queries, (B,): similarities of their positives and lse of all others; of the own keys, (N,): lse."""

    @staticmethod
    def forward(ctx, q, k, log_scale, layout, normalize, symmetric, ring, want_k):
        scores = _Scores(q, log_scale, normalize, symmetric)
        if ring:
            positive, row, column = _ring_sums(scores, k, layout)
            ctx.save_for_backward(q, k, log_scale, positive, row, column)
        else:
            all_k = _gather(k, layout)
            positive, row, column = scores.sums(all_k, _targets(q, layout.own.start))
            if symmetric:
                column = _logsumexp_over_processes(column, layout.group)
            ctx.save_for_backward(q, all_k, log_scale, positive, row, column)
            column = column[layout.own] if symmetric else column
        ctx.options = layout, normalize, symmetric, ring, want_k
        return positive, row, column

    @staticmethod
    def backward(ctx, *grads):
        # With what the gradients belong to, so that a second derivative arrives at the node and raises.
        gradients = _Gradients.apply if torch.is_grad_enabled() else _gradients
        return *gradients(ctx.needs_input_grad[:3], *ctx.options, *grads, *ctx.saved_tensors), *(None,) * 5


def _gradients(
    needed, layout, normalize, symmetric, ring, want_k, grad_positive, grad_row, grad_column, q, keys, log_scale,
    positive, row, column,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Of q, k and log_scale, as far as needed."""
    scores = _Scores(q, log_scale, normalize, symmetric)
    wanted = needed[0] or needed[2], want_k
    of_rows = grad_positive, grad_row, positive, row
    if ring:
        grad_q, grad_k, dot = _ring_gradients(scores, keys, of_rows, column, grad_column, layout, wanted)
    else:
        if symmetric:
            grad_column = _gather(grad_column, layout)
        targets = _targets(q, layout.own.start)
        grad_q, grad_k, dot = scores.gradients(keys, targets, of_rows, column, grad_column, wanted)
        if want_k:
            grad_k = _reduce_scatter(grad_k, layout)
    grad_scale = None
    if needed[2]:  # without that of the positive, whose factor is the caller's
        grad_scale = (dot.double() - grad_positive.double() * positive.double()).sum().to(log_scale.dtype)
    return grad_q.to(q.dtype) if needed[0] else None, grad_k.to(q.dtype) if needed[1] else None, grad_scale


_Gradients = last_derivative("infonce_distributed", _gradients)


class _Scores:
    """Scores of the queries of this process and blocks of keys; half types widened, so that sums are rounded once."""

    def __init__(self, q: Tensor, log_scale: Tensor, normalize: bool, symmetric: bool) -> None:
        self.q, self.log_scale, self.normalize, self.symmetric = _wide(q), log_scale, normalize, symmetric
        self.inverse_q = inverse_norms(q) if normalize else None
        self.plain = _without_kernel("infonce", q)

    def sums(self, k: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) similarities of the targets, (B,) and (N,) lse of all others; without targets of all."""
        if self.plain:
            _, positive, score = self._plain(self.q, _wide(k), targets)
            return positive, score.logsumexp(1), score.logsumexp(0) if self.symmetric else score.new_empty(0)
        return forward_op(*self._operands(k, targets), False, False)[:3]

    def gradients(
        self,
        k: Tensor,
        targets: Tensor | None,
        of_rows: tuple[Tensor, Tensor, Tensor, Tensor],
        column: Tensor,
        grad_column: Tensor,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of q and k where wanted, and (B,) Σ d loss / d similarity · similarity; lse are those of all processes."""
        grad_positive, grad_row, positive, row = of_rows
        if self.plain:
            return self._plain_gradients(k, targets, of_rows, column, grad_column, wanted)
        scores = self.q.new_empty(0, 0)
        return backward_op(
            grad_positive, grad_row, grad_column, positive, row, column, scores, *self._operands(k, targets), *wanted
        )[:3]

    def _operands(self, k: Tensor, targets: Tensor | None) -> tuple:
        inverse = self.inverse_q, inverse_norms(k) if self.normalize else None
        labels = limits = (None, None)
        return (
            self.q, _wide(k), *inverse, self.log_scale, None, targets, *labels, *limits, LSE, False, False,
            self.symmetric,
        )  # fmt: skip

    def _plain(self, q: Tensor, k: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Without a kernel: similarities (B, N), those of the targets (B,), and scores with -inf for those."""
        if self.normalize:
            q, k = F.normalize(q, dim=1, eps=EPS), F.normalize(k, dim=1, eps=EPS)
        similarity = q @ k.T
        score = self.log_scale.exp() * similarity
        if targets is None:
            return similarity, similarity.new_zeros(len(q)), score
        positive = similarity.gather(1, targets[:, None]).squeeze(1)
        return similarity, positive, score.scatter(1, targets[:, None], -torch.inf)

    def _plain_gradients(self, k, targets, of_rows, column, grad_column, wanted) -> tuple[Tensor, Tensor, Tensor]:
        grad_positive, grad_row, positive, row = of_rows
        with torch.enable_grad():
            q, k = self.q.detach().requires_grad_(), _wide(k).detach().requires_grad_()
            similarity, positive, score = self._plain(q, k, targets)
            with torch.no_grad():
                weight = grad_row[:, None] * (score - row[:, None]).exp()
                if self.symmetric:
                    weight = weight + grad_column * (score - column).exp()
                # A score of -inf is left out, also where no other is there and exp(-inf + inf) is NaN.
                weight = weight.masked_fill(score == -torch.inf, 0) * self.log_scale.exp()
            dot = (weight * similarity).sum(1) + grad_positive * positive
            grads = torch.autograd.grad(dot.sum(), (q, k))
        nothing = self.q.new_empty(0, 0)
        return *(grad if want else nothing for grad, want in zip(grads, wanted, strict=True)), dot.detach()


def _targets(q: Tensor, first: int) -> Tensor:
    return torch.arange(first, first + len(q), device=q.device)


def _wide(x: Tensor) -> Tensor:
    return x.to(accumulator(x.dtype))


# ---- all keys at a time ----


def _gather(rows: Tensor, layout: _Layout) -> Tensor:
    """The rows of all processes; padded to the most, for gloo gathers equal shapes only."""
    most = max(layout.columns)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    pieces = rows.new_empty(len(layout.columns), *padded.shape)
    dist.all_gather(list(pieces), padded, layout.group)
    return torch.cat([piece[:size] for piece, size in zip(pieces, layout.columns, strict=True)])


def _reduce_scatter(rows: Tensor, layout: _Layout) -> Tensor:
    """This process's of the rows of all, summed over the processes."""
    own = rows[layout.own].clone()
    dist.reduce_scatter(own, [part.contiguous() for part in rows.split(layout.columns)], group=layout.group)
    return own


def _logsumexp_over_processes(lse: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    top = lse.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX, group)
    top.masked_fill_(top == -torch.inf, 0)
    total = (lse - top).exp_()
    dist.all_reduce(total, group=group)
    return total.log_() + top


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layout):
        ctx.layout = layout
        return _gather(x, layout)

    @staticmethod
    def backward(ctx, grad):
        return _ReduceScatterRows.apply(grad, ctx.layout), None


class _ReduceScatterRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layout):
        ctx.layout = layout
        return _reduce_scatter(x, layout)

    @staticmethod
    def backward(ctx, grad):
        return _GatherRows.apply(grad, ctx.layout), None


# ---- block after block ----


def _ring_sums(scores: _Scores, k: Tensor, layout: _Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks of keys go once round, each with the sums of its columns, which return complete to their owner."""
    for hop, size_before in _hops(layout):
        next_k = _pass_on([k], size_before, layout) if hop + 1 < len(layout.columns) else None
        if hop == 0:
            positive, row, column = scores.sums(k, _targets(scores.q, 0))
        else:
            _, row_here, column_here = scores.sums(k, None)
            row, column = torch.logaddexp(row, row_here), torch.logaddexp(column, column_here)
        if scores.symmetric:
            (column,) = _pass_on([column], size_before, layout)()
        if next_k is not None:
            (k,) = next_k()
    return positive, row, column


def _ring_gradients(
    scores: _Scores,
    k: Tensor,
    of_rows: tuple[Tensor, Tensor, Tensor, Tensor],
    column: Tensor,
    grad_column: Tensor,
    layout: _Layout,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks go round again, their gradients with them."""
    sums: list[Tensor] = []
    block = [k, column, grad_column] if scores.symmetric else [k]
    for hop, size_before in _hops(layout):
        next_block = _pass_on(block, size_before, layout) if hop + 1 < len(layout.columns) else None
        k, column, grad_column = block if scores.symmetric else (*block, column, grad_column)
        here = scores.gradients(k, None if hop else _targets(scores.q, 0), of_rows, column, grad_column, wanted)
        sums = [a.add_(b) for a, b in zip(sums, here, strict=True)] if hop else list(here)
        if wanted[1]:
            (sums[1],) = _pass_on([sums[1]], size_before, layout)()
        if next_block is not None:
            block = next_block()
    return tuple(sums)


def _hops(layout: _Layout) -> Sequence[tuple[int, int]]:
    """How far the block here has come, and the rows of the one that is now on the process before."""
    size = len(layout.columns)
    return [(hop, layout.columns[(layout.rank - hop - 1) % size]) for hop in range(size)]


def _pass_on(tensors: list[Tensor], rows: int, layout: _Layout) -> Callable[[], list[Tensor]]:
    """Sends them to the next process; the function returned waits for those, of `rows` rows, of the one before."""
    size = len(layout.columns)
    if size == 1:
        return lambda: tensors
    sent = [t.contiguous() for t in tensors]
    received = [t.new_empty(rows, *t.shape[1:]) for t in tensors]
    to, source = (layout.rank + 1) % size, (layout.rank - 1) % size
    transfers = [(dist.isend, t, to) for t in sent] + [(dist.irecv, t, source) for t in received]
    ops = [dist.P2POp(op, t, group=layout.group, group_peer=peer) for op, t, peer in transfers if t.numel()]
    works = dist.batch_isend_irecv(ops) if ops else []

    def arrived() -> list[Tensor]:
        for work in works:
            work.wait()
        del sent[:]  # had to live until here
        return received

    return arrived
