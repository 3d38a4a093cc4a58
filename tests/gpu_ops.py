# SPDX-License-Identifier: Apache-2.0
"""relational_spmm by a given implementation of its GPU kernels, wherever that runs."""

import torch
from innerloop.ops import _relational_spmm_gpu as gpu
from innerloop.ops.relational_spmm import MULS, SUMS


class _Op(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kernels, csr, relation, input, boundary, edge_weight, sum, mul):
        out = gpu.forward(kernels, csr, relation, input, boundary, edge_weight, sum, mul)
        ctx.save_for_backward(out, csr, relation, input, boundary, edge_weight)
        ctx.rest = kernels, sum, mul
        return out

    @staticmethod
    def backward(ctx, grad):
        kernels, *codes = ctx.rest
        boundary, weight = ctx.saved_tensors[4:]
        grads = gpu.backward(kernels, grad, *ctx.saved_tensors, *codes, weight is not None)
        grad_input, grad_relation, grad_boundary, grad_weight = grads
        return (None, None, grad_relation, grad_input, None if boundary is None else grad_boundary,
                None if weight is None else grad_weight, None, None)  # fmt: skip


def op(kernels, case, sum, mul):
    tensors = case.relation, case.input, case.boundary, case.edge_weight
    return _Op.apply(kernels, case.graph.csr, *tensors, SUMS[sum], MULS[mul])
