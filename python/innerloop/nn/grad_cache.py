# SPDX-License-Identifier: Apache-2.0
"""GradCache (Gao et al. 2021): the gradient of a contrastive loss over a batch too large for the encoders at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

__all__ = ["cached_contrastive_step"]


def cached_contrastive_step(
    encoders: Sequence[Callable[..., Tensor]], inputs: Sequence[Any], loss: Callable[..., Tensor], micro_batch: int
) -> Tensor:
    """Gradients of a contrastive loss over a batch whose activations do not fit into memory (GradCache).

    Micro-batches are encoded without gradient; the loss and its gradients against the embeddings are those of the whole
    batch; then the micro-batches are encoded again, in the same random state (of the CPU and the inputs' devices), and
    go backward. All negatives are kept, unlike by accumulating gradients. What is added to `.grad`, also of parameters
    of the loss, is what `loss.backward()` adds where micro-batches are encoded with gradient, to rounding. It costs one
    more forward pass; batch normalisation sees micro-batches, twice.

    Args:
        encoders: modules or functions that return embeddings (B, D), one for each of `inputs`; one may be there twice.
            A DistributedDataParallel one reduces its gradients once, behind its last micro-batch; the loss is one over
            processes then (:func:`innerloop.infonce_distributed`).
        inputs: each a tensor (B, ...), or a tuple, list or mapping that the encoder takes as *args or **kwargs; tensors
            are split along dimension 0, anything else is passed on.
        loss: takes the embeddings of all inputs, returns a 0-d tensor.
        micro_batch: rows of a micro-batch, at least 1.

    Returns:
        The value of the loss, without gradient.

    Raises:
        ValueError, TypeError: arguments, or results of the encoders or the loss, that do not fit.

    Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (RepL4NLP 2021).

    Example:
        >>> import torch
        >>> from innerloop.nn.contrastive import InfoNCELoss, cached_contrastive_step
        >>> images, texts = torch.nn.Linear(8, 4), torch.nn.Linear(6, 4)
        >>> batch = torch.randn(64, 8), torch.randn(64, 6)
        >>> value = cached_contrastive_step([images, texts], batch, InfoNCELoss(), micro_batch=16)
    """
    if not (isinstance(micro_batch, int) and micro_batch >= 1):
        raise ValueError(f"cached_contrastive_step: micro_batch is {micro_batch!r}, expected an integer of at least 1")
    if not encoders or len(encoders) != len(inputs):
        raise ValueError(
            f"cached_contrastive_step: inputs has length {len(inputs)}, expected {len(encoders)} like encoders, above 0"
        )
    batches = [_micro_batches(f"inputs[{i}]", x, micro_batch) for i, x in enumerate(inputs)]
    embeddings = []
    with torch.no_grad():
        for encoder, pieces in zip(encoders, batches, strict=True):
            embeddings.append(torch.cat([piece.encoded(encoder) for piece in pieces]).requires_grad_())
    value = loss(*embeddings)
    if not isinstance(value, Tensor) or value.dim():
        raise ValueError(f"cached_contrastive_step: loss returned {_described(value)}, expected a 0-d tensor")
    value.backward()
    last_input = {id(encoder): i for i, encoder in enumerate(encoders)}
    for i, (encoder, pieces, x) in enumerate(zip(encoders, batches, embeddings, strict=True)):
        grad = torch.zeros_like(x) if x.grad is None else x.grad
        for j, (piece, grad_piece) in enumerate(zip(pieces, grad.split(micro_batch), strict=True)):
            more = j + 1 < len(pieces) or i < last_input[id(encoder)]
            with encoder.no_sync() if more and hasattr(encoder, "no_sync") else contextlib.nullcontext():
                again = piece.encoded_again(encoder)
                if not again.requires_grad:  # a frozen encoder
                    break
                again.backward(grad_piece)
    return value.detach()


class _MicroBatch:
    """Arguments of an encoder, and the random state in which it was first called with them."""

    def __init__(self, rows: int, args: tuple, kwargs: dict[str, Any]) -> None:
        self.rows, self.args, self.kwargs = rows, args, kwargs

    def encoded(self, encoder: Callable[..., Tensor]) -> Tensor:
        self.cpu_state = torch.get_rng_state()
        self.devices, self.device_states = get_device_states(*self.args, *self.kwargs.values())
        result = encoder(*self.args, **self.kwargs)
        if not isinstance(result, Tensor) or result.dim() != 2 or len(result) != self.rows:
            raise ValueError(
                f"cached_contrastive_step: an encoder returned {_described(result)}, expected shape ({self.rows}, D)"
            )
        return result

    def encoded_again(self, encoder: Callable[..., Tensor]) -> Tensor:
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.cpu_state)
            set_device_states(self.devices, self.device_states)
            return encoder(*self.args, **self.kwargs)


def _described(result: Any) -> str:
    return f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__


def _micro_batches(name: str, x: Any, size: int) -> list[_MicroBatch]:
    if isinstance(x, Mapping):
        args, kwargs = (), dict(x)
    else:
        args, kwargs = tuple(x) if isinstance(x, (tuple, list)) else (x,), {}
    lengths = {len(t) for t in (*args, *kwargs.values()) if _is_split(t)}
    if len(lengths) != 1:
        raise ValueError(
            f"cached_contrastive_step: {name} has tensors of {sorted(lengths)} rows, expected one or more of one length"
        )
    rows = lengths.pop()

    def cut(value: Any, start: int) -> Any:
        return value[start : start + size] if _is_split(value) else value

    return [
        _MicroBatch(
            min(size, rows - start), tuple(cut(v, start) for v in args), {k: cut(v, start) for k, v in kwargs.items()}
        )
        for start in range(0, max(rows, 1), size)
    ]


def _is_split(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
