# SPDX-License-Identifier: Apache-2.0
"""CUDA sources that are compiled at first use, by CuPy's NVRTC, where the package was built without a toolkit."""

from pathlib import Path


def source(name: str) -> str:
    """Text of a device source such as "relational_spmm.cuh"; it includes nothing."""
    return Path(__file__).with_name(name).read_text()
