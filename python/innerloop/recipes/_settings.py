# SPDX-License-Identifier: Apache-2.0
"""Checks that the settings of all recipes share. Messages name the setting, its value and what was expected."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

__all__ = ["check_choices", "check_integers", "check_numbers"]


def check_choices(settings: object, choices: Mapping[str, Collection[object]]) -> None:
    """Raises a ValueError unless each setting is one of those listed."""
    for name, known in choices.items():
        value = getattr(settings, name)
        if value not in known:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(str, known))}")


def check_integers(settings: object, least: int, names: Iterable[str]) -> None:
    """Raises unless each setting is an int of at least ``least``.

    Raises:
        TypeError: one is no int. ValueError: one is too small.
    """
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}, expected an int")
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")


def check_numbers(settings: object, names: Iterable[str], *, positive: bool = False) -> None:
    """Raises unless each setting is a finite number, not negative, or above 0 where ``positive``.

    Raises:
        TypeError: one is no number. ValueError: one is out of range.
    """
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} is {value!r}, expected a number")
        if not 0 <= value < math.inf or (positive and value == 0):
            raise ValueError(
                f"{name} is {value}, expected a finite number{' above 0' if positive else ', not negative'}"
            )
