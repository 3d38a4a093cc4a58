# SPDX-License-Identifier: Apache-2.0
"""What happens when a batch does not fit into memory: ranking goes on in parts, training says what to lower."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")  # on Linux, on Windows


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: in Python or a compiled op, on a GPU, or in torch's CPU allocator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_ALLOCATOR)


@contextmanager
def explained(text: Callable[[], str]) -> Iterator[None]:
    """Turns a failed allocation into a MemoryError with this text."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(text()) from error


class InParts:
    """Calls a function on the rows of a batch, on fewer of them at a time where memory does not hold all.

    A failed allocation halves the number of rows, down to one; rows that are done stay done, and later batches start
    with the number that fitted. The first batch this happens to ends with a warning.

    Attributes:
        limit: rows that fitted; None while whole batches do.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self._warned = False

    def __call__(self, function: Callable[..., Tensor], *columns: Tensor) -> Tensor:
        """``function(*columns)`` for columns (B, ...), B ≥ 1; its value has a row for each of theirs.

        Raises:
            MemoryError, RuntimeError: of the function, for one row alone.
        """
        rows = len(columns[0])
        parts: list[Tensor] = []
        start = 0
        while start < rows:
            size = min(rows - start, self.limit or rows)
            try:
                parts.append(function(*(column[start : start + size] for column in columns)))
            except (MemoryError, RuntimeError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            else:
                start += size
                continue
            # Out of the handler: its traceback keeps the tensors of the failed call alive.
            self.limit = -(-size // 2)
        if self.limit is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"memory does not hold eval_batch_size {rows} queries: ranking {self.limit} at a time; "
                f"eval_batch_size {self.limit} saves the failed attempts",
                stacklevel=2,
            )
        return torch.cat(parts)


def node_state_text(num_nodes: int, batch: int, dim: int, num_layers: int, element_size: int) -> str:
    """Size of the node states V·B·d·bytes of a batch, in one layer and in all."""
    layer = num_nodes * batch * dim * element_size / 2**20
    return (
        f"a node state takes {num_nodes:,} entities x {batch} queries x {dim} channels x {element_size} bytes "
        f"= {layer:,.1f} MiB, {num_layers} layers {num_layers * layer:,.1f} MiB"
    )
