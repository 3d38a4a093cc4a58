# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals of differences between paired runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

__all__ = ["paired"]

#: 97.5 % quantile of Student's t with 1 to 10 degrees of freedom.
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


def _t_quantile(freedom: int) -> float:
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    # Cornish-Fisher expansion (Abramowitz & Stegun 26.7.5): within 2e-4 from here on.
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def paired(values: Sequence[float | None], base: Sequence[float | None]) -> dict[str, float | None]:
    """Mean of values - base over pairs, and the ends of its 95 % confidence interval by Student's t.

    Args:
        values, base: one number a pair, None where training diverged.

    Returns:
        mean, low and high; low and high are None for a single pair, all are None where any value is.
    """
    if None in values or None in base:
        return {"mean": None, "low": None, "high": None}
    differences = [a - b for a, b in zip(values, base, strict=True)]
    mean, n = statistics.mean(differences), len(differences)
    if n == 1:
        return {"mean": mean, "low": None, "high": None}
    half = _t_quantile(n - 1) * statistics.stdev(differences) / n**0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}
