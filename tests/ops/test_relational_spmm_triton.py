# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of relational_spmm: numerics in the interpreter, and compilation for GPUs that are not here."""

import pytest
import torch
from cases import PAIRS, even, gradients, make_case, run_python
from innerloop.ops.relational_spmm import MULS, SUMS
from tolerances import assert_close, assert_close_to_truth

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("interpreter tests; with a GPU benchmarks/gpu.sh runs the kernels", allow_module_level=True)

from innerloop.ops import _relational_spmm_triton as launcher

# V, E, R, B, d. The interpreter is slow: every pair on a small graph, and few pairs on the others.
SMALL = (4, 10, 2, 2, 4)
SHAPES = {"blocks": (4, 9, 2, 3, 50), "long-row": (2, 150, 2, 1, 4), "no-edges": (3, 0, 1, 2, 4)}
FEW = [("sum", "mul"), ("max", "rotate"), ("logsumexp", "add"), ("pna", "mul")]
OPTIONS = ({"per_query": True}, {"weight": False}, {"boundary": False, "isolated": True})
CASES = [
    *(pytest.param(SMALL, options, *pair) for pair in PAIRS for options in OPTIONS[:2]),
    *(pytest.param(shape, options, *pair, id=f"{name}-{pair[0]}-{pair[1]}-{i}")
      for name, shape in SHAPES.items() for pair in FEW for i, options in enumerate(OPTIONS)),
]  # fmt: skip


class _Op(torch.autograd.Function):
    @staticmethod
    def forward(ctx, csr, relation, input, boundary, edge_weight, sum, mul):
        out = launcher.forward(csr, relation, input, boundary, edge_weight, sum, mul)
        ctx.save_for_backward(out, csr, relation, input, boundary, edge_weight)
        ctx.codes = sum, mul
        return out

    @staticmethod
    def backward(ctx, grad):
        weighted = ctx.saved_tensors[-1] is not None
        grads = launcher.backward(grad, *ctx.saved_tensors, *ctx.codes, weighted)
        grad_input, grad_relation, grad_boundary, grad_weight = grads
        boundary = ctx.saved_tensors[4]
        return (None, grad_relation, grad_input, None if boundary is None else grad_boundary,
                grad_weight if weighted else None, None, None)  # fmt: skip


def op(case, sum, mul):
    return _Op.apply(case.graph.csr, case.relation, case.input, case.boundary, case.edge_weight, SUMS[sum], MULS[mul])


@pytest.mark.triton_cpu
@pytest.mark.parametrize(("shape", "options", "sum", "mul"), CASES)
def test_forward_and_backward(shape, options, sum, mul):
    case = make_case(*shape, **options)
    assert_close(op(case, sum, mul), case.reference(sum, mul))
    expected = gradients(lambda c: c.reference(sum, mul), case)
    for name, grad in gradients(lambda c: op(c, sum, mul), case).items():
        assert_close(grad, expected[name])


@pytest.mark.triton_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)  # bfloat16: the interpreter truncates
@pytest.mark.parametrize("sum", ["sum", "max", "logsumexp", "pna"])
def test_dtypes(sum, dtype):
    case = make_case(5, 30, 3, 2, even(8, "rotate"), dtype=dtype, integers=sum in ("max", "pna"))
    exact = case.map(torch.Tensor.double)
    out = op(case, sum, "mul")
    assert out.dtype == dtype
    assert_close_to_truth(out, case.eager(sum, "mul"), exact.reference(sum, "mul"))
    expected = gradients(lambda c: c.op(sum, "mul"), case)  # the CPU kernel
    for name, grad in gradients(lambda c: op(c, sum, "mul"), case).items():
        assert_close(grad, expected[name], op="triton_gradients")


@pytest.mark.triton_cpu
@pytest.mark.parametrize("sum", ["sum", "mean", "max", "min", "logsumexp", "or", "pna"])
def test_nan_reaches_its_row(sum):
    case = make_case(6, 20, 2, 1, 4)
    case.input[2, 0, 1] = torch.nan
    torch.testing.assert_close(op(case, sum, "mul"), case.reference(sum, "mul"), equal_nan=True)


@pytest.mark.triton_cpu
def test_ties_give_their_gradient_once():
    case = make_case(4, 12, 2, 1, 4, integers=True, weight=False)
    for sum in ("max", "min"):
        expected = gradients(lambda c, s=sum: c.op(s, "mul"), case)
        for name, grad in gradients(lambda c, s=sum: op(c, s, "mul"), case).items():
            assert torch.equal(grad, expected[name])


COMPILE = """
import itertools
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
import triton.language as tl
from innerloop.triton import relational_spmm as k

POINTERS = {"out_ptr": None, "result_ptr": "acc", "grad_ptr": "acc", "hi_ptr": "acc", "lo_ptr": "acc",
            "spread_ptr": "acc", "first_hi_ptr": "i32", "first_lo_ptr": "i32", "position_ptr": "i32"}
for name in ("indptr", "src", "rel", "eid", "start", "dst"):
    POINTERS[name + "_ptr"] = "i32"

def build(kernel, dtype, capability, **constants):
    acc = "fp64" if dtype == "fp64" else "fp32"
    signature = {}
    for p in kernel.params:
        if p.name in constants:
            signature[p.name] = "constexpr"
        elif p.name.endswith("_ptr"):
            kind = POINTERS.get(p.name) or dtype
            kind = acc if kind == "acc" or (p.name == "out_ptr" and kernel is not k.forward) else kind
            signature[p.name] = "*" + kind
        else:
            signature[p.name] = "i32"
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(n),): v for n, v in constants.items()})
    edges, block, warps = k.CONFIGS[128]
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options)

edges, block, _ = k.CONFIGS[128]
count = 0
codes = ((0, 0), (2, 2), (6, 0), (4, 1))
for capability, dtype, (s, m) in itertools.product((80, 90), ("fp32", "bf16", "fp16"), codes):
    shared = {"MUL_": m, "SHARED": False, "ACC": tl.float32, "EDGES": edges, "BLOCK": block}
    made = [build(k.forward, dtype, capability, SUM_=s, HAS_BOUNDARY=True, HAS_WEIGHT=False, **shared)]
    if s in (2, 6):
        made.append(build(k.first_attaining, dtype, capability, HAS_WEIGHT=False, **shared))
    for rel in (False, True):
        made.append(build(k.gather_grad, dtype, capability, OF_RELATION=rel, SUM_=s, HAS_WEIGHT=False, **shared))
    made.append(build(k.weight_grad, dtype, capability, SUM_=s, **shared))
    for kernel in made:
        assert kernel.asm["cubin"]
        assert kernel.metadata.shared <= 48 * 1024, kernel.metadata.shared
        count += 1
print(count)
"""


@pytest.mark.triton_aot
@pytest.mark.timeout(600)
def test_compiles_for_sm_80_and_sm_90():
    assert int(run_python(COMPILE, timeout=500, TRITON_INTERPRET="0")) > 90
