# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of band_attention without a GPU: in Triton's interpreter against the CPU kernel, and compiled."""

import importlib
import math

import pytest
import torch
from cases import Called
from innerloop import band_attention, reference
from processes import run_python
from tolerances import assert_close, assert_close_to_truth
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")
ops = importlib.import_module("innerloop.ops.band_attention")  # the package's attribute of that name is the function
launch = importlib.import_module("innerloop.ops._band_attention_triton")
cpu = torch.ops.innerloop.band_attention
cpu_backward = torch.ops.innerloop.band_attention_backward
pytestmark = [
    pytest.mark.triton_cpu,
    pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU test_band_attention_device.py runs the kernels"),
]


@pytest.fixture
def small_tiles(monkeypatch) -> None:
    """Many tiles, and runs of global keys, in few queries."""
    small = {"forward": (16, 16, 1, 1), "grad_q": (16, 16, 1, 1), "grad_kv": (16, 16, 1, 1)}
    monkeypatch.setattr(launch.kernels, "CONFIGS", dict.fromkeys(launch.kernels.CONFIGS, small))
    monkeypatch.setattr(launch, "_RUN", 32)


def arguments(
    B=1, H=2, Hkv=1, Lq=37, Lk=None, D=16, left=7, right=4, causal=False, stride=1, lengths=None, pad=False, G=0,
    residual=False, dropout_p=0.0, bias=False, dtype=torch.float64,
) -> tuple:  # fmt: skip
    """What the registered op takes."""
    Lk = (-(-Lq // stride) if stride > 1 else Lq) if Lk is None else Lk

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64).to(dtype)

    bounds = None if lengths is None else torch.tensor([0, *lengths]).cumsum(0)
    low, high = ops.band(Lq, Lk, left, right, causal, stride, bounds, "cpu")
    valid = torch.rand(B, Lk) > 0.3 if pad else None
    extra = (randn(B, Hkv, G, D), randn(B, Hkv, G, D), torch.rand(B, G) > 0.3) if G else (None,) * 3
    seed = torch.tensor([2**61 + 12345678901]) if dropout_p else None
    added = (randn(H, left + 1 + right), stride, left - (Lk - Lq if stride == 1 else 0)) if bias else ()
    return (randn(B, H, Lq, D), randn(B, Hkv, Lk, D), randn(B, Hkv, Lk, D), low, high, valid, *extra,
            randn(B, H, Lq, D) if residual else None, D**-0.5, dropout_p, seed, *added)  # fmt: skip


def upstream(out, lse):
    g = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    return g, torch.where(lse.isfinite(), torch.randn_like(lse), 0)


CASES = {
    "band": {"D": 64},
    "batches-and-groups": {"B": 2, "H": 4, "Hkv": 2, "D": 8},
    "odd-width": {"Lq": 35, "D": 40},
    "one-channel": {"D": 1},
    "unlimited": {"left": -1, "right": -1},
    "causal": {"left": -1, "right": 0},
    "fewer-keys": {"Lq": 44, "Lk": 20},
    "more-keys": {"Lq": 20, "Lk": 44, "left": 20, "right": 0},
    "pooled": {"stride": 4, "left": 2, "right": 2},
    "pooled-causal": {"stride": 2, "left": -1, "right": -1, "causal": True},
    "packed": {"Lq": 49, "lengths": (5, 0, 25, 1, 18)},
    "padding": {"B": 2, "pad": True, "left": 1, "right": 1},
    "global": {"B": 2, "G": 5, "pad": True},
    "many-global": {"G": 35, "left": 0, "right": 0},
    "residual": {"B": 2, "residual": True, "G": 2, "pad": True, "stride": 2},
    "dropout": {"B": 2, "dropout_p": 0.3, "G": 20},
    "much-dropout": {"Hkv": 2, "dropout_p": 0.6},
    "bias": {"B": 2, "left": 21, "right": 18, "bias": True},
    "bias-groups": {"H": 4, "Hkv": 2, "bias": True},
    "bias-fewer-keys": {"Lq": 44, "Lk": 20, "bias": True},
    "bias-pooled": {"stride": 3, "left": 4, "right": 2, "causal": True, "bias": True, "pad": True},
    "bias-global-dropout": {"B": 2, "G": 5, "pad": True, "dropout_p": 0.3, "bias": True},
    "bias-packed": {"Lq": 49, "lengths": (5, 0, 25, 1, 18), "left": 40, "right": 0, "bias": True},
}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", CASES)
def test_equals_the_cpu(case):
    args = arguments(**CASES[case])
    out, lse = cpu(*args)
    for actual, expected in zip(launch.forward(*args), (out, lse), strict=True):
        assert_close(actual, expected)
    grads = upstream(out, lse)
    actual = launch.backward(*grads, out, lse, *args)
    for a, e in zip(actual, cpu_backward(*grads, out, lse, *args), strict=True):
        assert a.dtype == e.dtype
        assert_close(a, e)


# With the tiles of the table. bfloat16 only compiles here: the interpreter truncates it.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("D", [8, 40])
def test_dtypes(D, dtype):
    args = arguments(B=2, H=2, Lq=80, D=D, pad=True, G=3, residual=True, dtype=dtype)

    def eager(convert):
        tensors = [t if t is None or not t.is_floating_point() else convert(t) for t in args[:10]]
        q, k, v, low, high, valid, gk, gv, gvalid, residual = tensors
        leaves = [t.requires_grad_() for t in (q, k, v, gk, gv)]
        out, lse = reference.band_attention(
            q, k, v, low, high, scale=args[10], key_valid=valid, global_k=gk, global_v=gv, global_valid=gvalid,
            residual=residual,
        )  # fmt: skip
        return [out, lse, *torch.autograd.grad([out, lse], leaves, [g.to(out.dtype), gl.to(lse.dtype)])]

    out, lse = launch.forward(*args)
    g, gl = upstream(out, lse)
    actual = [out, lse, *launch.backward(g, gl, out, lse, *args)[:5]]  # there is no bias
    assert [t.dtype for t in actual] == [dtype, torch.float32, *[dtype] * 5]
    truth, same = eager(lambda t: t.detach().double()), eager(lambda t: t.detach().clone())
    for a, e, t in zip(actual, same, truth, strict=True):
        assert_close_to_truth(a, e, t)


def test_without_gradient_of_lse():
    args = arguments()
    out, lse = launch.forward(*args)
    g, gl = upstream(out, lse)
    grads = [launch.backward(g, x, out, lse, *args) for x in (None, torch.zeros_like(lse), gl)]
    assert all(torch.equal(a, b) for a, b in zip(grads[0], grads[1], strict=True))
    assert not torch.equal(grads[0][0], grads[2][0])


@pytest.mark.usefixtures("small_tiles")
def test_rows_that_see_nothing():
    """Causal pooled keys: the first queries see none. 0, -inf, and no gradient, to the last bit."""
    args = arguments(Lq=40, stride=8, left=0, right=0, causal=True)
    blind = args[3] == args[4]
    assert 0 < int(blind.sum()) < 40
    out, lse = launch.forward(*args)
    assert torch.equal(lse == -math.inf, blind.expand_as(lse))
    assert bool((out[:, :, blind] == 0).all())
    grads = launch.backward(*upstream(out, lse), out, lse, *args)
    assert bool((grads[0][:, :, blind] == 0).all())
    assert all(bool(t.isfinite().all()) for t in grads)


@pytest.mark.usefixtures("small_tiles")
def test_padding_may_hold_anything():
    args = list(arguments(B=1, Lq=60, G=3, dtype=torch.float32))
    args[5], args[8] = torch.arange(60)[None] < 33, torch.tensor([[True, False, True]])
    clean = launch.forward(*args)
    g = upstream(*clean)
    clean_grads = launch.backward(*g, *clean, *args)
    for t in (*args[1:3], *args[6:8]):
        t.masked_fill_(~(args[5] if t.shape[2] == 60 else args[8])[:, None, :, None], torch.nan)
    out = launch.forward(*args)
    grads = launch.backward(*g, *out, *args)
    for a, e in zip((*out, *grads), (*clean, *clean_grads), strict=True):
        assert torch.equal(a, e)
    assert bool((grads[1][:, :, 33:] == 0).all())
    assert bool((grads[4][:, :, 1] == 0).all())


def test_strides():
    """(B, L, H, D) in memory, a slice of wider rows, and one key head expanded: the bits of contiguous tensors."""
    args = list(arguments(B=2, H=4, Hkv=2, Lq=50, D=8, residual=True, dtype=torch.float32))
    args[0] = torch.randn(2, 50, 4, 8).transpose(1, 2)
    args[1] = torch.randn(2, 2, 100, 24)[:, :, 1::2, 8:16]
    args[2] = torch.randn(1, 1, 50, 8).expand(2, 2, 50, 8)
    args[9] = torch.randn(2, 4, 8, 50).transpose(2, 3)
    dense = [t.contiguous() if isinstance(t, torch.Tensor) else t for t in args]
    out, lse = launch.forward(*args)
    assert torch.equal(out, launch.forward(*dense)[0])
    g = torch.randn(50, 1, 1, 8).permute(1, 2, 0, 3).expand(2, 4, 50, 8)
    actual = launch.backward(g, None, out, lse, *args)
    expected = launch.backward(g.contiguous(), None, out, lse, *dense)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_offsets_above_32_bits(tmp_path):
    """The last of 70,000 keys, rows 40,000 elements apart, in a file of holes."""
    L, stride = 70_000, 40_000
    memory = torch.from_file(str(tmp_path / "keys"), shared=True, size=L * stride, dtype=torch.float16)
    k = memory.as_strided((1, 1, L, 8), (0, 0, stride, 1))
    k[:, :, -8:] = torch.randn(1, 1, 8, 8)
    q = torch.randn(1, 1, 4, 8, dtype=torch.float16)
    low, high = ops.band(4, L, 3, 0, False, 1, None, "cpu")
    options = *(None,) * 5, 0.3, 0.0, None
    out, _ = launch.forward(q, k, k, low, high, *options)
    last = k[:, :, -8:].contiguous()
    assert torch.equal(out, launch.forward(q, last, last, low - (L - 8), high - (L - 8), *options)[0])
    assert bool((out != 0).any())


@pytest.mark.parametrize("sizes", [{"Lq": 0}, {"B": 0}, {"Lq": 9, "Lk": 0}, {"Lq": 0, "Lk": 9, "G": 2}], ids=str)
def test_empty(sizes):
    args = arguments(H=4, Hkv=2, **sizes)
    out, lse = cpu(*args)
    forward = launch.forward(*args)
    backward = launch.backward(torch.ones_like(out), None, *forward, *args)
    expected = cpu_backward(torch.ones_like(out), None, out, lse, *args)
    assert all(torch.equal(a, e) for a, e in zip((*forward, *backward), (out, lse, *expected), strict=True))


def test_allow_tf32(monkeypatch):
    args = arguments()
    assert launch._Call(*args).products["PRECISION"] == "ieee"
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert launch._Call(*args).products["PRECISION"] == "tf32"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("wanted", ["triton", "cuda", None])
def test_what_gpu_tensors_run(wanted, monkeypatch):
    """The registered op with INNERLOOP_GPU=triton, else the plain definition; with tensors that have no memory."""
    monkeypatch.setattr(ops, "_GPU_KERNELS", wanted)
    monkeypatch.setattr(ops, "warn_no_kernel", lambda *_: None)
    monkeypatch.setattr(ops, "_reference", lambda q, *_, **__: (q + 0, None))
    with FakeTensorMode(), Called() as mode:
        q, k, v = (torch.empty(1, 2, 9, 8, device="cuda") for _ in range(3))
        assert band_attention(q, k, v, left=2, right=2).device.type == "cuda"
        if wanted == "triton":
            assert band_attention(q, k, v, left=2, right=2, dropout_p=0.1).shape == q.shape
        with pytest.raises(ValueError, match="key_valid is on cpu, expected cuda:0 like q"):
            band_attention(q, k, v, left=2, right=2, key_valid=torch.ones(1, 9, dtype=torch.bool))
    assert mode.names == (["band_attention"] * 2 if wanted == "triton" else [])


def test_registered_for_cuda():
    """The implementations under that key, called with CPU tensors, which the interpreter takes."""
    args, key = arguments(Lq=20), torch._C.DispatchKey.CUDA
    out, lse = cpu.default._op_dk(key, *args)
    assert torch.equal(out, launch.forward(*args)[0])
    g = upstream(out, lse)
    actual = cpu_backward.default._op_dk(key, *g, out, lse, *args)
    assert all(torch.equal(a, e) for a, e in zip(actual, launch.backward(*g, out, lse, *args), strict=True))


def test_the_environment_chooses():
    run_python(
        "import sys, innerloop.ops\nassert sys.modules['innerloop.ops.band_attention']._GPU_KERNELS == 'triton'",
        INNERLOOP_GPU="triton",
    )


LAUNCH = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from innerloop.ops import _band_attention_triton as launch
from innerloop.ops.band_attention import band

class Driver:
    get_current_device = get_current_stream = lambda *_: 0
    get_current_target = lambda _: GPUTarget("cuda", 80, 32)

made, run = [], JITFunction.run
triton.runtime.driver.set_active(Driver())
JITFunction.run = lambda *args, **options: made.append(run(*args, **options | {"warmup": True}))
q = torch.randn(2, 50, 4, 40, dtype=torch.bfloat16).transpose(1, 2)
k = torch.randn(2, 1, 50, 40, dtype=torch.bfloat16)
low, high = band(50, 50, 3, 3, False, 1, None, "cpu")
valid = torch.ones(2, 50, dtype=torch.bool)
args = q, k, k, low, high, valid, k, k, valid, q, 0.2, 0.6, torch.tensor([1]), q[0, :, :7, 0], 1, 3
out, lse = launch.forward(*args)
launch.backward(out, lse, out, lse, *args)
assert all(kernel.asm["cubin"] for kernel in made)
print(len(made))
"""


@pytest.mark.triton_aot
@pytest.mark.timeout(600)
def test_what_is_launched_compiles():
    """With the types and alignments that Triton sees in arguments: bfloat16, dropout, an odd width; for sm_80."""
    assert int(run_python(LAUNCH, timeout=500, TRITON_INTERPRET="0")) == 6  # grad_kv for global keys too


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
import triton.language as tl
from innerloop.triton import band_attention as k

TYPES = {"scale": "fp64", "factor": "fp64", "below": "u32", "seed_ptr": "*i64"}
TYPES |= {name + "_ptr": "*i32" for name in ("low", "high", "begin", "end")}
TYPES |= {name + "_ptr": "*u8" for name in ("valid", "global_valid")}
MOST = {80: 99, 90: 227}  # KiB of shared memory; sm_86 and sm_89, which take code for sm_80, have less than it

def build(kernel, config, capability, dtype, width, **constants):
    double = dtype == "fp64"
    acc = {name + "_ptr": "*fp64" if double else "*fp32" for name in ("lse", "delta", "grad_lse")}
    queries, keys, warps, stages = config
    constants |= {"HAS_VALID": True, "HAS_GLOBAL": True, "HAS_GLOBAL_VALID": True, "HAS_RESIDUAL": True}
    constants |= {"HAS_GRAD_LSE": True, "HAS_BIAS": True, "BAND": True, "ACC": tl.float64 if double else tl.float32}
    constants |= {"DIM": width, "WIDTH": width, "QUERIES": queries, "KEYS": keys}
    names = kernel.arg_names
    types = TYPES | acc | {name: "constexpr" for name in constants}
    signature = {n: types.get(n, "*" + dtype if n.endswith("_ptr") else "i32") for n in names}
    constants = {(names.index(n),): value for n, value in constants.items() if n in names}
    aligned = [n for n in names if n.endswith(("_ptr", "_batch", "_head", "_row"))]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    made = compile(ASTSource(kernel, signature, constants, attributes), target=GPUTarget("cuda", capability, 32),
                   options=options)
    assert made.asm["cubin"]
    assert made.metadata.shared <= MOST[capability] * 1024, (kernel, config, capability, dtype, made.metadata.shared)
    return 1

count = 0
kernels = k.CONFIGS[width, size]
assert set(kernels) == {"forward", "grad_q", "grad_kv"}
for dtype in dtypes:
    for capability in (80, 90):
        count += build(k.delta, (64, 0, 4, 1), capability, dtype, width)
        for precision in ("ieee", "tf32") if size == 4 else ("ieee",):
            options = {"PRECISION": precision, "DROP": False}
            for name, config in kernels.items():
                count += build(getattr(k, name), config, capability, dtype, width, **options)
            queries = kernels["grad_q"][1]  # as _grad_bias launches it
            count += build(k.grad_bias, (queries, 0, 4, 1), capability, dtype, width, **options)
print(count)
"""
CONFIGS = sorted(launch.kernels.CONFIGS)


@pytest.mark.slow
@pytest.mark.triton_aot
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("width", "size"), CONFIGS, ids=str)
def test_every_config_compiles(width, size):
    """And its shared memory is there on sm_80, sm_86, sm_89 and sm_90."""
    dtypes, kernels = {2: (("fp16", "bf16"), 20), 4: (("fp32",), 18), 8: (("fp64",), 10)}[size]
    given = f"width, size, dtypes = {width}, {size}, {dtypes}\n"
    assert int(run_python(given + COMPILE, timeout=500, TRITON_INTERPRET="0")) == kernels


def test_every_width_has_a_config():
    assert [(width, size) for width in (16, 32, 64, 128, 256) for size in (2, 4, 8)] == CONFIGS
