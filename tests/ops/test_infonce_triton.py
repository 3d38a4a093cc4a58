# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of infonce without a GPU: in Triton's interpreter against the CPU kernel, and compiled."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from cases import Called
from innerloop import infonce
from ops.infonce_cases import calls
from processes import run_python
from tolerances import assert_close
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")
ops = importlib.import_module("innerloop.ops.infonce")  # the package's attribute of that name is the function
registered = importlib.import_module("innerloop.ops._infonce_ops")
launch = importlib.import_module("innerloop.ops._infonce_triton")
cpu = torch.ops.innerloop
pytestmark = [
    pytest.mark.triton_cpu,
    pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU test_infonce_device.py runs the kernels"),
]
# Of a gradient's norm: float32 sums in another order; G and the gradient itself rounded to float16.
RELATIVE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3}


@pytest.fixture
def small_tiles(monkeypatch) -> None:
    """Many tiles, several of them in a panel, and several runs."""
    small = {"forward": (16, 16, 16, 1, 1), "grad": (16, 16, 16, 1, 1)}
    monkeypatch.setattr(launch.kernels, "CONFIGS", dict.fromkeys(launch.kernels.CONFIGS, small))
    monkeypatch.setattr(launch, "_PANELS", 2)
    monkeypatch.setattr(launch, "_PROGRAMS", 6)


def arguments(
    B=36, N=52, D=20, scale=5.0, normalize=False, bias=None, targets=None, labels=False, limits=False, kind=0,
    skip_diagonal=False, upper=False, columns=True, dtype=torch.float64,
) -> tuple:  # fmt: skip
    """What the registered ops take, up to `columns`."""
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    q, k = ((torch.randn(n, D, dtype=torch.float64) / max(D, 1) ** 0.5).to(dtype) for n in (B, N))
    inverse = tuple(x.to(acc).norm(dim=1).clamp(min=1e-12).reciprocal() if normalize else None for x in (q, k))
    targets = {"one to one": torch.randperm(N)[:B], "some": torch.randperm(2 * N)[:B] - N // 2}.get(targets, targets)
    if targets == "repeated":
        targets = torch.randint(min(N, 5), (B,))
    if targets is not None:
        targets = targets.where(targets < N, -1).clamp(min=-1)
    label = (torch.arange(B) % 5, torch.arange(N) % 7 % 5) if labels else (None, None)
    limit = tuple(0.3 * torch.randn(n, dtype=acc) for n in (B, N)) if limits else (None, None)
    bias = None if bias is None else torch.tensor(bias, dtype=acc)
    log_scale = torch.tensor(math.log(scale), dtype=acc)
    return (q, k, *inverse, log_scale, bias, targets, *label, *limit, kind, skip_diagonal, upper, columns)


def upstream(args: tuple, results: tuple) -> tuple:
    """Gradients as autograd passes them on: none where nothing is visible."""
    positive, row, column = results[:3]
    grads = [torch.randn_like(t).masked_fill(t == -torch.inf, 0) for t in (positive, row, column)]
    return *grads[:2], grads[2] if args[-1] else None


CASES = {
    "plain": {},
    "rows only": {"columns": False, "targets": "repeated"},
    "one to one": {"targets": "one to one"},
    "some have a target": {"targets": "some"},
    "repeated targets": {"targets": "repeated", "normalize": True},
    "normalized": {"normalize": True, "targets": "one to one", "scale": 14.0},
    "labels": {"labels": True, "targets": "one to one"},
    "limits": {"limits": True, "targets": "one to one", "normalize": True},
    "limits of rows": {"limits": True, "columns": False},
    "diagonal": {"skip_diagonal": True},
    "upper": {"N": 36, "upper": True, "targets": "one to one"},
    "upper of two sizes": {"B": 40, "upper": True, "labels": True, "normalize": True},
    "more rows": {"B": 52, "N": 35, "labels": True, "limits": True, "skip_diagonal": True, "targets": "some"},
    "softplus": {"kind": 1, "bias": -1.5, "columns": False, "targets": "some"},
    "softplus, normalized": {"kind": 1, "bias": 1.0, "columns": False, "normalize": True, "D": 3},
    "slices of channels": {"B": 20, "N": 19, "D": 150, "targets": "repeated", "normalize": True},
    "one channel": {"D": 1, "B": 20, "N": 20},
    "one row": {"B": 1, "N": 1, "targets": "one to one"},
    "no row": {"B": 0, "N": 9},
    "no column": {"B": 9, "N": 0},
    "no row to sum": {"kind": 1, "bias": 0.0, "B": 9, "N": 0, "columns": False},
}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", CASES)
def test_equals_the_cpu(case):
    args = arguments(**CASES[case])
    expected = cpu.infonce(*args, True, True)
    actual = launch.forward(*args, True, True)
    # Tiles that are hidden whole are not formed.
    written = torch.ones_like(expected[5], dtype=torch.bool).triu(1 if args[13] else -len(args[0]))
    for a, e in zip(actual[:5], expected[:5], strict=True):
        assert a.dtype == e.dtype
        assert_close(a.double(), e.double())
    assert_close(actual[5].where(written, 0), expected[5].where(written, 0))
    grads = upstream(args, expected)
    *saved, scores = *expected[:3], expected[5]
    empty = scores.new_empty(0, 0)
    for kept, *want in ((scores, True, True), (empty, True, True), (empty, False, False)):
        ours = launch.backward(*grads, *saved, kept, *args, *want)
        for a, e in zip(ours, cpu.infonce_backward(*grads, *saved, kept, *args, *want), strict=True):
            assert a.dtype == e.dtype
            assert_close(a, e)


@pytest.mark.usefixtures("small_tiles")
def test_without_what_is_not_asked_for():
    """No counts, no scores, no gradient of k, and none that comes from the columns."""
    args = arguments(normalize=True, labels=True)
    results, expected = launch.forward(*args, False, False), cpu.infonce(*args, False, False)
    assert [t.shape for t in results] == [t.shape for t in expected]
    positive, row, column = upstream(args, expected)
    rest = *expected[:3], expected[5], *args, True, False
    actual = launch.backward(positive, row, None, *rest)
    for a, e in zip(actual, cpu.infonce_backward(positive, row, 0 * column, *rest), strict=True):
        assert_close(a, e)


@pytest.mark.usefixtures("small_tiles")
def test_no_channel():
    """Scores are 0, and so is what their gradients add up to against the scale."""
    args = arguments(B=5, N=3, D=0, targets="repeated")
    results, expected = launch.forward(*args, True, False), cpu.infonce(*args, True, False)
    assert all(torch.equal(a, e) for a, e in zip(results, expected, strict=True))
    grad_q, grad_k, dot, _ = launch.backward(*upstream(args, results), *results[:3], results[5], *args, True, True)
    assert (grad_q.shape, grad_k.shape) == ((5, 0), (3, 0))
    assert not dot.any()


def assert_near(actual, expected, dtype):
    assert (actual.double() - expected.double()).norm() <= RELATIVE[dtype] * expected.double().norm()


# With the tiles of the table. bfloat16 only compiles here: the interpreter truncates it.
@pytest.mark.parametrize(
    ("D", "dtype"),
    [(8, torch.float32), (8, torch.float16), (100, torch.float32), (100, torch.float16), (300, torch.float32),
     (600, torch.float16)],
    ids=str,
)  # fmt: skip
def test_dtypes(D, dtype):
    args = arguments(B=40, N=70, D=D, normalize=True, targets="one to one", scale=14.0, dtype=dtype)
    truth = tuple(t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in args)
    results, expected = launch.forward(*args, False, False), cpu.infonce(*truth, False, False)
    for a, e in zip(results[:3], expected[:3], strict=True):
        assert a.dtype == torch.float32
        assert_close(a, e.float())
    grads = [g.float() for g in upstream(args, expected)]
    actual = launch.backward(*grads, *results[:3], results[5], *args, True, True)
    assert [t.dtype for t in actual] == [dtype, dtype, torch.float32, torch.float32]
    grads = [g.double() for g in grads]
    for a, e in zip(actual, cpu.infonce_backward(*grads, *expected[:3], expected[5], *truth, True, True), strict=True):
        assert_near(a, e, dtype)


def test_gradients_below_the_range_of_float16():
    """Of a mean over very many rows, whose G is below 6e-8, rows of far lengths, and one of zeros."""
    args = list(arguments(B=40, N=50, normalize=True, dtype=torch.float16, scale=1.0))
    args[0] *= torch.logspace(-2, 1, 40)[:, None].half()
    args[0][7] = 0
    args[2] = args[0].float().norm(dim=1).clamp(min=1e-12).reciprocal()
    results = launch.forward(*args, False, False)
    truth = [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in args]
    grads = [1e-9 * g for g in upstream(args, results)]
    call = launch._Call(*args[:4], args[4].exp(), *args[5:])
    back = launch._Backward(call, *grads, *results[1:3], results[5])
    expected = cpu.infonce_backward(
        *(g.double() for g in grads), *(t.double() for t in (*results[:3], results[5])), *truth, True, True
    )
    grad_q = back.gradient(False, torch.float32)[0]
    there = torch.arange(40) != 7
    assert_near(grad_q[there], expected[0][there], torch.float16)
    assert_near(grad_q[7], expected[0][7], torch.float16)
    assert_near(back.gradient(True, torch.float32)[0], expected[1], torch.float16)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": True, "log_scale": 1.5},
        {"symmetric": False, "labels": True, "N": 41},
        {"targets": "one to one", "N": 41, "labels": True, "log_scale": 1.0, "normalize": True, "want_k": False},
        {"targets": "repeated", "symmetric": False, "want_q": False},
        {"want_q": False, "want_k": False},
        {"B": 0, "N": 7},
        {"B": 1, "N": 1},
        {"dtype": torch.float32, "normalize": True},
        {"diagonal": True, "symmetric": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("budget", [0, launch.MEMORY_BUDGET])
def test_mean_equals_the_cpu(options, budget, monkeypatch):
    monkeypatch.setattr(launch, "MEMORY_BUDGET", budget)
    given = {"B": 37, "N": 37, "symmetric": True, "normalize": False, "log_scale": None, "want_q": True, "want_k": True}
    given |= {"targets": None, "labels": False, "diagonal": False, "dtype": torch.float64} | options
    args = arguments(given["B"], given["N"], targets=given["targets"], labels=given["labels"], dtype=given["dtype"])
    q, k, _, _, _, _, targets, *labels = args[:9]
    log_scale = None if given["log_scale"] is None else torch.tensor(given["log_scale"], dtype=given["dtype"])
    rest = 3.0, *(given[name] for name in ("normalize", "diagonal", "symmetric", "want_q", "want_k"))
    expected = cpu.infonce_mean(q, k, log_scale, targets, *labels, *rest)
    for a, e in zip(launch.mean(q, k, log_scale, targets, *labels, *rest), expected, strict=True):
        assert a.dtype == e.dtype
        assert_close(a, e)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("budget", [{}, {"memory_budget": 0}], ids=["kept", "again"])
@pytest.mark.parametrize("name", calls({}))
def test_public_functions(name, budget, monkeypatch):
    """With the kernels in the ops' places: losses and gradients as with the CPU's."""
    x, y = (torch.randn(20, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def results():
        loss = calls(budget)[name](x, y)
        return loss.detach(), *(g for g in torch.autograd.grad(loss, (x, y), allow_unused=True) if g is not None)

    expected = results()
    for op in ("forward", "backward", "mean"):
        place = {"mean": "_mean_forward"}.get(op, f"{op}_op")
        monkeypatch.setattr(registered, place, getattr(launch, op))
    for a, e in zip(results(), expected, strict=True):
        assert_close(a, e)


def test_softplus_of_what_is_far_below():
    """log(1 + e^-30), which the rounding of 1 + e^-30 would leave three digits of."""
    args = arguments(B=20, N=20, kind=1, bias=-30.0, columns=False)
    row = cpu.infonce(*args, False, False)[1]
    assert (launch.forward(*args, False, False)[1] / row - 1).abs().max() < 1e-12


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.filterwarnings("ignore:.*All-NaN:RuntimeWarning")  # numpy's, in the interpreter
def test_not_a_number():
    """In one row of q: its own sum, and those of all columns that see it."""
    args = arguments(B=40, N=40)
    args[0][5, 3] = torch.nan
    for a, e in zip(launch.forward(*args, False, False)[:3], cpu.infonce(*args, False, False)[:3], strict=True):
        assert_close(a, e)


@pytest.mark.usefixtures("small_tiles")
def test_rows_that_see_nothing():
    """All labels equal: -inf, and gradients of the positives alone."""
    args = list(arguments(B=20, N=20, targets="one to one", labels=True))
    args[7] = args[8] = torch.zeros(20, dtype=torch.int64)
    results = launch.forward(*args, True, False)
    assert all(bool((t == -torch.inf).all()) for t in results[1:3])
    assert not results[3].any()
    grads = upstream(args, results)
    grad_q, _, dot, total = launch.backward(*grads, *results[:3], results[5], *args, True, True)
    assert torch.equal(grad_q, grads[0][:, None] * args[1][args[6]])
    assert_close(dot, grads[0] * results[0])
    assert not total.any()


def test_strides():
    """A slice of wider rows, and channels that lie apart: the bits of contiguous tensors."""
    args = list(arguments(B=50, N=70, targets="one to one", dtype=torch.float32))
    args[0] = torch.randn(100, 50)[::2, 10:30]
    args[1] = torch.randn(20, 70).t()
    dense = [t.contiguous() if isinstance(t, torch.Tensor) else t for t in args]
    results = launch.forward(*args, False, True)
    assert all(torch.equal(a, e) for a, e in zip(results, launch.forward(*dense, False, True), strict=True))
    grads = upstream(args, results)
    empty = results[5].new_empty(0, 0)
    actual, expected = (launch.backward(*grads, *results[:3], empty, *x, True, True) for x in (args, dense))
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_offsets_above_32_bits(tmp_path):
    """Four keys, 800 million elements apart, in a file of holes."""
    stride = 800_000_000
    memory = torch.from_file(str(tmp_path / "keys"), shared=True, size=4 * stride, dtype=torch.float16)
    args = list(arguments(B=6, N=4, D=8, targets="repeated", dtype=torch.float16))
    k = memory.as_strided((4, 8), (stride, 1))
    k.copy_(args[1])
    far = [args[0], k, *args[2:]]
    results = launch.forward(*args, False, False)
    assert all(torch.equal(a, e) for a, e in zip(launch.forward(*far, False, False), results, strict=True))
    grads = upstream(args, results)
    actual, expected = (launch.backward(*grads, *results[:3], results[5], *x, True, True) for x in (far, args))
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_allow_tf32():
    def precision():
        args = arguments(B=2, N=2)
        return launch._Call(*args[:4], args[4].exp(), *args[5:]).products["PRECISION"]

    assert precision() == "ieee"
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert precision() == "tf32"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("wanted", ["triton", "cuda", None])
def test_what_gpu_tensors_run(wanted, monkeypatch):
    """The registered op with INNERLOOP_GPU=triton, else the plain definition; with tensors that have no memory."""
    monkeypatch.setattr(ops, "_GPU_KERNELS", wanted)
    monkeypatch.setattr(ops, "warn_no_kernel", lambda *_: None)
    monkeypatch.setattr(ops, "_plain_infonce", lambda q, *_, **__: q.sum())
    with FakeTensorMode(), Called() as mode:
        q, k = (torch.empty(9, 8, device="cuda") for _ in range(2))
        assert infonce(q, k, symmetric=False, reduction="sum").device.type == "cuda"
    assert mode.names == (["infonce"] if wanted == "triton" else [])


def test_registered_for_cuda():
    """The implementations under that key, called with CPU tensors, which the interpreter takes."""
    for name in ("infonce", "infonce_backward", "infonce_mean"):  # calling what is not there is a crash
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"innerloop::{name}", "CUDA")
    args, key = arguments(B=9, N=9, targets="one to one"), torch._C.DispatchKey.CUDA
    results = cpu.infonce.default._op_dk(key, *args, True, True)
    assert all(torch.equal(a, e) for a, e in zip(results, launch.forward(*args, True, True), strict=True))
    saved = *upstream(args, results), *results[:3], results[5], *args, True, True
    actual = cpu.infonce_backward.default._op_dk(key, *saved)
    assert all(torch.equal(a, e) for a, e in zip(actual, launch.backward(*saved), strict=True))
    plain = args[0], args[1], None, None, None, None, 2.0, True, False, True, True, True
    actual = cpu.infonce_mean.default._op_dk(key, *plain)
    assert all(torch.equal(a, e) for a, e in zip(actual, launch.mean(*plain), strict=True))


def test_every_tile_is_walked_once():
    for programs, size, tile in [(1, 1000, 16), (3, 1000, 16), (500, 1000, 64), (7, 1, 16), (256, 17, 16), (1, 0, 16)]:
        runs, run = launch._runs(programs, size, tile)
        assert run % tile == 0
        assert (runs - 1) * run < size <= runs * run or runs == size == 0
        assert runs * programs <= max(launch._PROGRAMS, programs)


LAUNCH = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from innerloop.ops import _infonce_triton as launch

class Driver:
    get_current_device = get_current_stream = lambda *_: 0
    get_current_target = lambda _: GPUTarget("cuda", 80, 32)

made, run = [], JITFunction.run
triton.runtime.driver.set_active(Driver())
JITFunction.run = lambda *args, **options: made.append(run(*args, **options | {"warmup": True}))
q, k = torch.randn(50, 40, dtype=torch.bfloat16), torch.randn(70, 80, dtype=torch.bfloat16)[:, 40:]
norms, at = (torch.ones(50), torch.ones(70)), torch.arange(70)
for upper, kind, bias in ((True, 0, None), (False, 1, torch.tensor(0.5))):
    args = q, k, *norms, torch.tensor(1.0), bias, at[:50], at[:50], at, *norms, kind, True, upper, kind == 0
    results = launch.forward(*args, True, True)
    scores = results[5] if upper else results[5].new_empty(0, 0)
    launch.backward(norms[0], norms[0], norms[1], *results[:3], scores, *args, upper, True)
assert all(kernel.asm["cubin"] for kernel in made)
print(len(made))
"""


@pytest.mark.triton_aot
@pytest.mark.timeout(600)
def test_what_is_launched_compiles():
    """With the types and alignments that Triton sees in arguments: bfloat16, an odd width; for sm_80."""
    # positives, forward and merges of rows and columns; grad and finish twice, or grad for the total alone.
    assert int(run_python(LAUNCH, timeout=500, TRITON_INTERPRET="0")) == 4 + 4 + 3 + 3


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
import triton.language as tl
from innerloop.triton import infonce as k

TYPES = {name + "_ptr": "*i64" for name in (
    "target", "q_label", "k_label", "x_label", "y_label", "pair", "count_sum")}
TYPES |= {name + "_ptr": "*i32" for name in ("count", "row_count", "column_count", "begin")}
FLAGS = ("NORMALIZED", "LABELS", "LIMITS", "SKIP_DIAGONAL", "COLUMN_SUMS", "COUNTS", "PRODUCT")
MOST = {80: 99, 90: 227}  # KiB of shared memory; sm_86 and sm_89, which take code for sm_80, have less than it

def build(kernel, capability, dtype, warps=4, stages=3, **constants):
    acc = "fp64" if dtype == "fp64" else "fp32"
    constants |= dict.fromkeys(FLAGS, True) | {"UPPER": False, "KEEP": False, "KEPT": False, "GROW": dtype == "fp16"}
    constants |= {"ACC": tl.float64 if acc == "fp64" else tl.float32}
    names = kernel.arg_names
    types = TYPES | {name + "_ptr": "*" + dtype for name in ("q", "k", "x", "y", "grad")}
    types |= {name: "constexpr" for name in constants}
    signature = {n: types.get(n, "*" + acc if n.endswith("_ptr") else "i32") for n in names}
    constants = {(names.index(n),): value for n, value in constants.items() if n in names}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in names if n.endswith(("_ptr", "_stride"))}
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    made = compile(ASTSource(kernel, signature, constants, attributes), target=GPUTarget("cuda", capability, 32),
                   options=options)
    assert made.asm["cubin"]
    assert made.metadata.shared <= MOST[capability] * 1024, (kernel, capability, dtype, made.metadata.shared)
    return 1

count = 0
kernels = k.CONFIGS[width, size]
assert set(kernels) == {"forward", "grad"}
whole = {"DIM": width, "WIDTH": width, "ROWS": max(1, 2048 // width)}
for dtype in dtypes:
    for capability in (80, 90):
        count += build(k.merge, capability, dtype, SIZE=128, KIND=0)
        count += build(k.positives, capability, dtype, **whole)
        for of_k in (False, True):
            count += build(k.finish, capability, dtype, OF_K=of_k, **whole)
        for precision in ("ieee", "tf32") if size == 4 else ("ieee",):
            products = {"PRECISION": precision, "KIND": 0, "DIM": 2 * width}
            rows, columns, chunk, warps, stages = kernels["forward"]
            tile = {"ROWS": rows, "COLUMNS": columns, "CHUNK": chunk}
            count += build(k.forward, capability, dtype, warps, stages, **tile, **products)
            rows, columns, chunk, warps, stages = kernels["grad"]
            tile = {"X": rows, "Y": columns, "CHUNK": chunk, "WIDTH": width}
            for of_k in (False, True):
                count += build(k.grad, capability, dtype, warps, stages, OF_K=of_k, **tile, **products)
print(count)
"""
CONFIGS = sorted(launch.kernels.CONFIGS)


@pytest.mark.slow
@pytest.mark.triton_aot
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("width", "size"), CONFIGS, ids=str)
def test_every_config_compiles(width, size):
    """And its shared memory is there on sm_80, sm_86, sm_89 and sm_90."""
    dtypes, kernels = {2: (("fp16", "bf16"), 28), 4: (("fp32",), 20), 8: (("fp64",), 14)}[size]
    given = f"width, size, dtypes = {width}, {size}, {dtypes}\n"
    assert int(run_python(given + COMPILE, timeout=500, TRITON_INTERPRET="0")) == kernels


def test_every_width_has_a_config():
    wanted = [(2**n, size) for n in range(4, 10) for size in (2, 4, 8) if 2**n * size <= 1024]
    assert wanted == CONFIGS
    for (width, _), config in launch.kernels.CONFIGS.items():
        assert all(chunk <= width for _, _, chunk, _, _ in config.values())
