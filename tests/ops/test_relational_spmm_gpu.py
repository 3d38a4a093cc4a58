# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of relational_spmm without a GPU: CUDA compiled as C++ (tests/cuda), Triton in its interpreter."""

import ctypes
import functools
import gc
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cases import PAIRS, even, gradients, make_case
from gpu_ops import compile_with_nvrtc, op
from innerloop import system
from innerloop.ops import _relational_spmm_cuda as cuda
from innerloop.ops import _relational_spmm_gpu as gpu
from processes import run_python
from tolerances import assert_close, assert_close_to_truth

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU test_relational_spmm_device.py runs the kernels"),
    pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the source tree"),
]


@pytest.fixture(scope="session")
def cuda_kernels(tmp_path_factory) -> cuda.CudaKernels:
    """csrc/cuda/relational_spmm.cuh run on the CPU, one thread of the grid after another."""
    compiler = shutil.which("g++") or pytest.skip("no g++")
    library = tmp_path_factory.mktemp("cuda") / "relational_spmm.so"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared"]
    flags += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    flags += ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
    include = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'cuda'}"]
    source = ROOT / "tests" / "cuda" / "relational_spmm.cpp"
    subprocess.run([compiler, *flags, *include, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))

    def launch(kernel, dtype, kind, fast, grid, block, args, device, stream) -> None:
        assert block[0] * block[1] == 128
        assert not loaded.launch(kernel, dtype, kind, fast, *grid, *block, args, ctypes.c_size_t(len(args)))

    return cuda.CudaKernels(launch)


@pytest.fixture(params=[pytest.param("cuda"), pytest.param("triton", marks=pytest.mark.triton_cpu)])
def kernels(request) -> gpu.Kernels:
    if request.param == "cuda":
        return request.getfixturevalue("cuda_kernels")
    pytest.importorskip("triton")
    from innerloop.ops._relational_spmm_triton import TritonKernels

    return TritonKernels()


@pytest.fixture
def short_tasks(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "SPLIT", 3)


# V, E, R, B, d. The interpreter is slow: every pair on a small graph, where options take turns, and few on the others.
SMALL = (4, 10, 2, 2, 4)
SHAPES = {"blocks": (4, 9, 2, 3, 50), "long-row": (2, 150, 2, 1, 4), "no-edges": (3, 0, 1, 2, 4)}
FEW = [("sum", "mul"), ("max", "rotate"), ("logsumexp", "add"), ("pna", "mul")]
OPTIONS = ({"per_query": True}, {"weight": False}, {"boundary": False, "isolated": True})
CASES = [
    *(pytest.param(SMALL, OPTIONS[i % 2], *pair, id=f"{pair[0]}-{pair[1]}-{i % 2}") for i, pair in enumerate(PAIRS)),
    *(pytest.param(shape, options, *pair, id=f"{name}-{pair[0]}-{pair[1]}-{i}")
      for name, shape in SHAPES.items() for pair in FEW
      for i, options in enumerate(OPTIONS[:1] if name == "long-row" else OPTIONS)),
]  # fmt: skip


def check(kernels, case, sum, mul):
    assert_close(op(kernels, case, sum, mul), case.reference(sum, mul))
    expected = gradients(lambda c: c.reference(sum, mul), case)
    for name, grad in gradients(lambda c: op(kernels, c, sum, mul), case).items():
        assert_close(grad, expected[name])


@pytest.mark.parametrize(("shape", "options", "sum", "mul"), CASES)
def test_forward_and_backward(kernels, shape, options, sum, mul):
    check(kernels, make_case(*shape, **options), sum, mul)


# CUDA alone: what runs fast there. Several blocks of tasks and of columns, tails, one column, rows in pieces.
@pytest.mark.usefixtures("short_tasks")
@pytest.mark.parametrize(("sum", "mul"), PAIRS)
@pytest.mark.parametrize("shape", [(9, 60, 3, 2, 6), (1, 20, 1, 1, 2), (150, 400, 4, 1, 4), (5, 40, 2, 5, 70)], ids=str)
def test_rows_in_pieces(cuda_kernels, shape, sum, mul):
    check(cuda_kernels, make_case(*shape), sum, mul)


@pytest.mark.parametrize("sum", ["sum", "max", "logsumexp", "pna"])
@pytest.mark.parametrize(("d", "offset"), [(8, 0), (8, 1), (5, 0)], ids=["aligned", "view", "odd"])
def test_loads_of_neighbours(cuda_kernels, sum, d, offset, monkeypatch):
    """Neighbouring columns are loaded together where they may be, and the values are the same where not."""
    case = make_case(6, 30, 3, 2, d, dtype=torch.float32, weight=False)
    flags = []
    run = cuda.CudaKernels._run
    monkeypatch.setattr(cuda.CudaKernels, "_run", lambda *a: (flags.append(a[-1]), run(*a))[1])

    def moved(t):  # contiguous, but not where an allocation starts
        return torch.cat([t.new_zeros(offset), t.detach().flatten()])[offset:].view(t.shape)

    out = op(cuda_kernels, case.map(moved), sum, "mul")
    assert flags[0] == (d == 8 and offset == 0)
    assert_close(out, case.reference(sum, "mul"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sum", ["sum", "max", "logsumexp", "pna"])
def test_dtypes(kernels, sum, dtype):
    if dtype == torch.bfloat16 and not isinstance(kernels, cuda.CudaKernels):
        pytest.skip("Triton's interpreter truncates bfloat16")
    case = make_case(5, 30, 3, 2, even(8, "rotate"), dtype=dtype, integers=sum in ("max", "pna"))
    exact = case.map(torch.Tensor.double)
    out = op(kernels, case, sum, "mul")
    assert out.dtype == dtype
    assert_close_to_truth(out, case.eager(sum, "mul"), exact.reference(sum, "mul"))
    expected = gradients(lambda c: c.op(sum, "mul"), case)  # the CPU kernel
    for name, grad in gradients(lambda c: op(kernels, c, sum, "mul"), case).items():
        assert_close(grad, expected[name], op="triton_gradients")


@pytest.mark.parametrize("sum", ["sum", "mean", "max", "min", "logsumexp", "or", "pna"])
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_special_values_reach_their_row(kernels, sum, special):
    if special == special and not isinstance(kernels, cuda.CudaKernels):
        pytest.skip("numpy warns of infinities in Triton's interpreter")
    case = make_case(6, 20, 2, 1, 4)
    case.input[2, 0, 1] = special
    torch.testing.assert_close(op(kernels, case, sum, "mul"), case.reference(sum, "mul"), equal_nan=True)


def test_ties_give_their_gradient_once(kernels):
    case = make_case(4, 12, 2, 1, 4, integers=True, weight=False)
    for sum in ("max", "min"):
        expected = gradients(lambda c, s=sum: c.op(s, "mul"), case)
        for name, grad in gradients(lambda c, s=sum: op(kernels, c, s, "mul"), case).items():
            assert torch.equal(grad, expected[name])


def test_orders_are_made_once(cuda_kernels, monkeypatch):
    """The second call must not wait for the device: it may be captured in a CUDA graph."""
    case = make_case(6, 20, 2, 1, 4)
    csr = case.graph.csr
    run = functools.partial(gpu.forward, cuda_kernels, csr, case.relation, case.input, None, None, 0, 0)
    first = run()
    monkeypatch.setattr(gpu, "Orders", None)
    assert torch.equal(run(), first)


def test_orders_go_with_their_graph(cuda_kernels):
    before = len(gpu._ORDERS)
    for _ in range(3):
        case = make_case(6, 20, 2, 1, 4)
        op(cuda_kernels, case.map(lambda t: t.detach().requires_grad_()), "pna", "mul").sum().backward()
    del case
    gc.collect()
    assert len(gpu._ORDERS) <= before


def test_the_choice_of_kernels_can_be_compiled():
    """Nothing is imported under torch.compile."""
    run_python(
        "import sys, torch, innerloop.ops\n"
        "ops = sys.modules['innerloop.ops.relational_spmm']\n"
        "f = torch.compile(lambda x: x + ops._has_kernel(None, x, x, x, x, 0), fullgraph=True, backend='eager')\n"
        "assert f(torch.zeros(2)).tolist() == [0, 0]\n"
        "assert ops._GPU_KERNELS == ops.gpu_kernels()",
        INNERLOOP_GPU="cuda" if system.cuda_module() else "plain",
    )


def test_half_types_with_a_large_mean(cuda_kernels):
    """(m - mean) / std must not be made of rounded values."""
    case = make_case(8, 60, 2, 2, 8, dtype=torch.bfloat16, weight=False, boundary=False)
    case.input, case.relation = case.input + 10, torch.ones_like(case.relation)
    expected = gradients(lambda c: c.reference("pna", "mul"), case.map(torch.Tensor.double))
    grads = gradients(lambda c: op(cuda_kernels, c, "pna", "mul"), case)
    error = (grads["input"].double() - expected["input"]).norm() / expected["input"].norm()
    assert error < 1e-2


def test_nvrtc_compiles_every_kernel():
    """What CuPy will do at first use: the text alone, each instantiation by its name."""
    text = (ROOT / "csrc" / "cuda" / "relational_spmm.cuh").read_text()
    names = {cuda._expression(*code) for code in itertools.product(range(6), range(4), range(4), (False, True))}
    compile_with_nvrtc(text, names, "-std=c++17", "--fmad=false")


def test_python_packs_the_members_of_the_struct():
    text = (ROOT / "csrc" / "cuda" / "relational_spmm.cuh").read_text()
    body = re.sub(r"//.*", "", re.search(r"struct SpmmArgs \{(.*?)\n\};", text, re.S)[1])
    members = [
        re.sub(r".*[\s*]", "", name.strip()) for line in body.split(";") for name in line.split(",") if name.strip()
    ]
    assert tuple(members) == cuda.ARGUMENTS


def test_names_for_nvrtc():
    """What CuPy is asked for exists, with as many parameters."""
    text = (ROOT / "csrc" / "cuda" / "relational_spmm.cuh").read_text()
    declared = re.findall(r"template <([^>]*)>\n__global__ void __launch_bounds__\(128\) (\w+)", text)
    assert [name for _, name in declared] == list(cuda._NAMES)
    assert "#include" not in text
    for kernel, (parameters, _) in enumerate(declared):
        name = cuda._expression(kernel, 0, 3, True)
        assert name.count(",") == parameters.count(",")


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
def test_triton_compiles_for_sm_80_and_sm_90():
    pytest.importorskip("triton")
    assert int(run_python(COMPILE, timeout=500, TRITON_INTERPRET="0")) > 90
