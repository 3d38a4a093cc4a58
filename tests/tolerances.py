# SPDX-License-Identifier: Apache-2.0
"""The tolerances of the whole suite, by op and dtype, the comparison that uses them, and the one without any.

An entry is loosened only with its reason beside it and a line in CHANGELOG.md.
"""

import torch
from torch import Tensor

# {op: {dtype: (rtol, atol)}}; an op without an entry uses "default".
TABLE = {
    "default": {
        torch.float64: (1e-10, 1e-10),
        torch.float32: (1e-5, 1e-6),
        torch.float16: (1e-3, 1e-3),
        torch.bfloat16: (1.6e-2, 1e-2),
    },
    # Instruction sets contract a·b + c differently; gradients of repeated sums see it.
    "between_isas": {torch.float32: (1e-5, 1e-5)},
    # Acceptance case 4 of the NBFNet spec: 1e-5; atol too, since Q/D − mean² cancels near 0.
    "pna_composed": {torch.float32: (1e-5, 1e-5)},
    # A product of 13·d terms and a LayerNorm behind it: errors grow as after any linear layer.
    "nbfnet_layer": {torch.float32: (1e-5, 1e-5), torch.float64: (1e-10, 1e-10)},
    # Parameters after two epochs of Adam on gradients summed in another order: it divides by small second moments.
    "two_processes": {torch.float32: (1e-3, 1e-5)},
    # Acceptance of ULTRA: float32 scores within 1e-5 of a plain float64 model.
    "ultra": {torch.float64: (1e-5, 1e-5)},
    # Acceptance of the semirings, float32 weights against float64 Dijkstra: each step of a path rounds once; a product
    # of rounded factors against exp(-sum of logs) rounds more, and underflows to 0.
    "distance": {torch.float64: (3e-7, 0)},
    "reliable": {torch.float64: (1e-5, 1e-30)},
    # PageRank stops when no value moves by more than 1e-12; the solve is exact: the spec asks for 1e-6.
    "ppr": {torch.float64: (1e-6, 1e-9)},
    # Two kernels that sum in different orders, each rounding its gradient to the half type.
    "triton_gradients": {torch.float32: (1e-5, 1e-5), torch.float16: (2e-2, 2e-2)},
    # Golden cases of the attention spec, given to ten digits; half types against float32 of the same rounded inputs.
    "attention": {
        torch.float64: (1e-9, 1e-9),
        torch.float32: (2e-5, 2e-5),
        torch.float16: (2e-2, 2e-2),
        torch.bfloat16: (2e-2, 2e-2),
    },
    # Six products and a softmax, each rounded to the half type, against float32.
    "attention_module": {torch.float16: (0, 0.03), torch.bfloat16: (0, 0.2)},
    # Acceptance of InfoNCE at small temperatures: float32 within 1e-5 of float64.
    "infonce_temperature": {torch.float64: (1e-5, 0)},
    # Running sums over hundreds of nodes in float32, against float64.
    "subgraph_attention": {torch.float32: (1e-5, 1e-5)},
    # Golden logits of the CIFAR models have nine decimals.
    "cifar_golden": {torch.float64: (0, 2e-9)},
    # Logits of about 1: convolutions of another batch size may sum in another order.
    "cifar_batch": {torch.float32: (0, 1e-4)},
    # Whole modules of transformers in float32, which order their sums otherwise.
    "transformers": {torch.float32: (1e-5, 1e-5)},
    # Acceptance case 6 of the NBFNet spec: autocast within 2e-2 of float32.
    "autocast": {torch.bfloat16: (2e-2, 2e-2)},
}


def tolerance(dtype: torch.dtype, op: str = "default") -> tuple[float, float]:
    """(rtol, atol) of an op in a dtype."""
    return TABLE.get(op, {}).get(dtype) or TABLE["default"][dtype]


def assert_close(actual: Tensor, expected: Tensor, *, dtype: torch.dtype | None = None, op: str = "default") -> None:
    """Elementwise |actual − expected| <= atol + rtol·|expected|; NaN and inf must match."""
    rtol, atol = tolerance(dtype or actual.dtype, op)
    _compare(actual, expected, atol + rtol * expected.double().abs(), f"rtol {rtol}, atol {atol}")


def assert_close_to_truth(actual: Tensor, eager: Tensor, truth: Tensor, *, op: str = "default") -> None:
    """Against float64 truth: float64 by table, else no worse than eager in the same dtype + table.

    Half types: max|actual − truth| <= max|eager − truth| + atol. float32: elementwise, with rtol.
    """
    if actual.dtype == torch.float64:
        return assert_close(actual, truth, op=op)
    rtol, atol = tolerance(actual.dtype, op)
    eager_error = _finite_difference(eager, truth).max().item() if truth.numel() else 0.0
    bound = torch.full_like(truth, eager_error + atol)
    if actual.dtype == torch.float32:
        bound += rtol * truth.abs()
    _compare(actual, truth, bound, f"eager's own error {eager_error:.3g}, atol {atol}")
    return None


def _finite_difference(actual: Tensor, expected: Tensor) -> Tensor:
    """|actual − expected| in float64, zero where both are NaN or the same infinity."""
    actual, expected = actual.double(), expected.double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    return (actual - expected).abs().masked_fill(same, 0.0)


def _compare(actual: Tensor, expected: Tensor, bound: Tensor, allowed: str) -> None:
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    difference = _finite_difference(actual.detach(), expected.detach())
    bad = ~(difference <= bound.detach().nan_to_num(0.0, 0.0, 0.0))
    if not bad.any():
        return
    relative = difference / expected.detach().double().abs()
    worst = difference.masked_fill(~bad, -1).nan_to_num(torch.inf).argmax()
    index = tuple(int(i) for i in torch.unravel_index(worst, difference.shape))
    raise AssertionError(
        f"{int(bad.sum())} of {bad.numel()} elements differ ({allowed}): "
        f"max abs {difference[bad].max():.3g}, max rel {relative[bad].max():.3g}, worst at "
        f"{index}: {actual[index].item():.9g}, expected {expected[index].item():.9g}"
    )


def same(a, b) -> bool:
    """Nested equality, of tensors to the bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
