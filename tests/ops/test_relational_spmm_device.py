# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of relational_spmm on a GPU: against the CPU kernel, streams, CUDA graphs, repeatability."""

import importlib

import pytest
import torch
from cases import gradients, make_case
from gpu_ops import op
from innerloop import system
from innerloop.ops import _relational_spmm_gpu as gpu
from innerloop.ops.relational_spmm import MULS, SUMS
from tolerances import assert_close

module = importlib.import_module("innerloop.ops.relational_spmm")  # the name is the function's in the package
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.fixture(params=["cuda", "triton"])
def kernels(request, monkeypatch) -> gpu.Kernels:
    if request.param == "triton" or not system.cuda_module():
        pytest.importorskip("triton" if request.param == "triton" else "cupy")
    monkeypatch.setattr(module, "_GPU_KERNELS", request.param)
    return module._gpu_implementation()


def on_gpu(case):
    moved = case.map(lambda t: t.detach().cuda())
    moved.edge_index, moved.edge_type = case.edge_index.cuda(), case.edge_type.cuda()
    return moved


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("sum", "mul"), [("sum", "mul"), ("max", "rotate"), ("logsumexp", "add"), ("pna", "mul")])
def test_equals_the_cpu(kernels, sum, mul, dtype):
    """One row of 2,000 edges, in pieces, and more columns than a block has threads."""
    case = make_case(40, 3000, 7, 5, 96, dtype=dtype, integers=dtype in (torch.bfloat16, torch.float16))
    case.edge_index[1, :2000] = 3
    there = on_gpu(case)
    assert_close(op(kernels, there, sum, mul).cpu(), case.op(sum, mul))
    expected = gradients(lambda c: c.op(sum, mul), case)
    for name, grad in gradients(lambda c: op(kernels, c, sum, mul), there).items():
        assert_close(grad.cpu(), expected[name], op="triton_gradients")


def test_same_bits_in_every_run(kernels):
    case = on_gpu(make_case(300, 20000, 7, 8, 32, dtype=torch.float32))
    first = gradients(lambda c: op(kernels, c, "pna", "mul"), case)
    for _ in range(3):
        again = gradients(lambda c: op(kernels, c, "pna", "mul"), case)
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_other_stream_and_cuda_graph(kernels):
    case = on_gpu(make_case(30, 400, 3, 2, 32, dtype=torch.float32))
    csr = case.graph.csr

    def run():
        args = csr, case.relation, case.input, None, None, SUMS["pna"], MULS["mul"]
        out = gpu.forward(kernels, *args)
        grad_input, grad_relation, _, _ = gpu.backward(kernels, torch.ones_like(out), out, *args, False)
        return torch.cat([x.flatten() for x in (out, grad_input, grad_relation)])

    expected = run()  # makes the orders of the edges; later calls do not wait for the device
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert torch.equal(run(), expected)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    case.input.mul_(2)
    graph.replay()
    assert torch.equal(out, run())


def test_graph_is_built_and_dropped_on_the_device():
    case = make_case(30, 400, 3, 1, 1)
    mask = torch.rand(400) < 0.3
    graph = on_gpu(case).graph
    assert torch.equal(graph.csr.cpu(), case.graph.csr)
    assert torch.equal(graph.drop(mask.cuda()).csr.cpu(), case.graph.drop(mask).csr)
