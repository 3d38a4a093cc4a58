# SPDX-License-Identifier: Apache-2.0
"""Reading files of torch.save without running code in them."""

from __future__ import annotations

import pickle
from os import PathLike
from typing import Any

import torch

__all__ = ["read_checkpoint"]


def read_checkpoint(path: str | PathLike[str]) -> Any:
    """What the file holds, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except IsADirectoryError:
        raise ValueError(f"{path}: a folder, expected a checkpoint") from None
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such checkpoint") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: not a readable checkpoint") from error
