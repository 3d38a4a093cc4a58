# SPDX-License-Identifier: Apache-2.0
"""Checks that the settings of all recipes share. Messages name the setting, its value and what was expected."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping

__all__ = ["UsageError", "check_choices", "check_integers", "check_numbers", "check_threads"]


class UsageError(ValueError):
    """An option without sense, or without sense on this machine; the command line ends as for one it cannot parse."""


def check_choices(settings: object, choices: Mapping[str, Collection[object]]) -> None:
    """Raises a UsageError unless each setting is one of those listed."""
    for name, known in choices.items():
        value = getattr(settings, name)
        if value not in known:
            raise UsageError(f"{name} is {value!r}, expected one of {', '.join(map(str, known))}")


def check_integers(settings: object, least: int, names: Iterable[str]) -> None:
    """Raises unless each setting is an int of at least ``least``, and fits into int64.

    Raises:
        TypeError: one is no int. UsageError: one is too small, or too large.
    """
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}, expected an int")
        if value < least:
            raise UsageError(f"{name} is {value}, expected at least {least}")
        if value >= 2**63:
            raise UsageError(f"{name} is {value}, expected below 2**63")


def check_numbers(settings: object, names: Iterable[str], *, positive: bool = False) -> None:
    """Raises unless each setting is a finite number, not negative, or above 0 where ``positive``.

    Raises:
        TypeError: one is no number. UsageError: one is out of range.
    """
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} is {value!r}, expected a number")
        if not 0 <= value < math.inf or (positive and value == 0):
            raise UsageError(
                f"{name} is {value}, expected a finite number{' above 0' if positive else ', not negative'}"
            )


def check_threads(threads: int | None) -> None:
    """Raises a UsageError unless a machine may have so many CPUs, or ``threads`` is None."""
    most = max(1024, os.cpu_count() or 1)
    if threads is not None and not 1 <= threads <= most:
        raise UsageError(f"threads is {threads}, expected {'at least 1' if threads < 1 else f'at most {most}'}")
