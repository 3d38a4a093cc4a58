# SPDX-License-Identifier: Apache-2.0
"""CUDA sources that are compiled at first use, by CuPy's NVRTC, where the package was built without a toolkit."""

import re
from pathlib import Path


def source(name: str) -> str:
    """Text of a device source such as "relational_spmm.cuh", the device sources it includes in place."""
    text = Path(__file__).with_name(name).read_text()
    return re.sub(r'^#include "cuda/(\w+\.cuh)"$', lambda found: source(found[1]), text, flags=re.MULTILINE)
