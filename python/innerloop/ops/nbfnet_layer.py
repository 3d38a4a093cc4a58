# SPDX-License-Identifier: Apache-2.0
"""nbfnet_layer: a whole PNA layer of NBFNet as one op, forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _cpu
from ..graph import RelGraph
from ._checks import differentiated
from ._registry import apply, define, last_derivative, wants_grad
from .relational_spmm import _MUL_NAMES, MULS, Mul, loop_over_batch, relational_spmm
from .relational_spmm import _check as check_relational_spmm

__all__ = ["combine_pna", "nbfnet_layer"]


def nbfnet_layer(
    graph: RelGraph,
    relation: Tensor,
    input: Tensor | None,
    source: Tensor,
    query: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    scalers: Tensor,
    *,
    mul: Mul = "mul",
    eps: float = 1e-5,
    relu: bool = True,
    residual: bool = True,
) -> Tensor:
    """One NBFNet layer with PNA aggregation: gather, aggregate, combine, normalise, activate, add.

    f(v) = PNA over in-edges (x, r, v) of relation[r] ⊗ input[x], and query_b where v = source_b
    out(v) = relu(LayerNorm(W [input(v), f(v) ⊗ scalers(v)] + bias)) + input(v)

    Neither the (V, B, 12·d) scaled features nor the (V, B, 4·d) features are formed: a node's features stay in L1,
    and W's three scaler blocks are combined once per degree. Kept for the backward pass: `input` and one more tensor
    of the output's size. Deterministic for every number of threads.

    Args:
        graph: V nodes, E edges, R relations, without edge weights.
        relation: (R, d) or (R, B, d). float32 or float64 on CPU; other devices compose `relational_spmm` and dense
            products, which do form the (V, B, 4·d) features; half types on CPU are widened, and their
            parameters and scalers may be float32.
        input: (V, B, d), or None for the first layer, whose input is the boundary: that tensor is then not formed,
            and for the messages "mul" and "rotate" only nodes that a query reaches are computed one by one.
        source: int64 (B,). query: (B, d), the boundary of each query at its source; zero elsewhere.
        weight: (D, 13·d), columns [input (d) | channel, statistic (mean, max, min, std), scaler]. bias: (D,).
        norm_weight, norm_bias: (D,) of LayerNorm, or both None for none.
        scalers: (V, 3), a function of the degree alone (`innerloop.nn.pna_scalers`); not differentiated.
        mul: message function, see `relational_spmm`.
        eps, relu, residual: of the epilogue; the residual needs D = d.

    Returns:
        (V, B, D).

    Raises:
        TypeError: `graph` is not a RelGraph.
        ValueError: an unknown `mul`, a weighted graph, or shapes or dtypes that do not fit. IndexError: a source
            out of range.

    Source: Zhu et al., Neural Bellman-Ford Networks (NeurIPS 2021), section 3.3 and appendix.
    """
    if not isinstance(graph, RelGraph):
        raise TypeError(f"nbfnet_layer: graph is {type(graph).__name__}, expected RelGraph")
    if mul not in MULS:
        raise ValueError(f"nbfnet_layer: mul is {mul!r}, expected one of {', '.join(_MUL_NAMES)}")
    if graph.edge_weight is not None:
        raise ValueError("nbfnet_layer: graph has edge weights, expected none; use relational_spmm")
    names = ("relation", "input", "source", "query", "weight", "bias", "norm_weight", "norm_bias", "scalers")
    tensors = (relation, input, source, query, weight, bias, norm_weight, norm_bias, scalers)
    for name, t in zip(names, tensors, strict=True):
        if not isinstance(t, Tensor) and not (t is None and name in ("input", "norm_weight", "norm_bias")):
            raise TypeError(f"nbfnet_layer: {name} is {type(t).__name__}, expected a tensor")
    if differentiated(scalers):
        raise ValueError("nbfnet_layer: scalers requires grad, expected constants")
    if query.device.type not in ("cpu", "meta"):
        _check(graph.csr, *tensors, MULS[mul], residual)
        return _compose(
            graph,
            relation,
            input,
            source,
            query,
            weight,
            bias,
            norm_weight,
            norm_bias,
            scalers,
            mul,
            eps,
            relu,
            residual,
        )
    if query.dtype in (torch.bfloat16, torch.float16):
        _check(graph.csr, *tensors, MULS[mul], residual)
        floats = (relation, input, query, weight, bias, norm_weight, norm_bias, scalers)
        relation, input, *widened = (None if t is None else t.float() for t in floats)
        out = nbfnet_layer(graph, relation, input, source, *widened, mul=mul, eps=eps, relu=relu, residual=residual)
        return out.to(query.dtype)
    floats = (relation, input, query, weight, bias, norm_weight, norm_bias)
    args = (graph.csr, relation, input, source, *floats[2:], scalers, eps, MULS[mul], relu, residual)
    if wants_grad(*floats):
        return apply(_NbfnetLayer, *args)[0]
    return _forward(*args, False)[0]


_ARGS = (
    "Tensor csr, Tensor relation, Tensor? input, Tensor source, Tensor query, Tensor weight, Tensor bias, "
    "Tensor? norm_weight, Tensor? norm_bias, Tensor scalers, float eps, int mul, bool relu, bool residual"
)
# The second result holds the values before LayerNorm; empty unless kept for the backward pass.
_forward = define(f"nbfnet_layer({_ARGS}, bool keep) -> (Tensor, Tensor)")
_backward = define(
    f"nbfnet_layer_backward(Tensor grad_out, Tensor pre, {_ARGS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _contiguous(args: tuple) -> tuple:
    return tuple(a.contiguous() if isinstance(a, Tensor) else a for a in args)


@_forward.cpu
def _(*args):
    *args, keep = _contiguous(args)
    out, pre = _empty_states(*args, keep)
    _cpu.nbfnet_layer(out, pre if keep else None, *args, torch.get_num_threads())
    return out, pre


def _empty_states(*args):
    query, weight, scalers, keep = args[4], args[5], args[9], args[-1]
    # .shape and not len(): under torch.compile a dynamic size must stay one.
    out = query.new_empty(scalers.shape[0], query.shape[0], weight.shape[0])
    return out, torch.empty_like(out) if keep else query.new_empty(0)


def _check(csr, relation, input, source, query, weight, bias, norm_weight, norm_bias, scalers, mul, residual):
    """The checks that bind/nbfnet_layer.cpp makes, but for the values of source and scalers and the nodes of csr."""
    if query.dim() != 2 or weight.dim() != 2:
        raise ValueError(
            f"nbfnet_layer: query and weight have shapes {tuple(query.shape)} and {tuple(weight.shape)}, expected "
            "(B, d) and (D, 13·d)"
        )
    if input is None:
        input = query.new_empty(scalers.shape[0], *query.shape)
    check_relational_spmm(csr, relation, input, None, None, mul)
    _, batch, dim = input.shape
    out = weight.shape[0]
    for name, t, shape in (
        ("query", query, (batch, dim)),
        ("weight", weight, (out, 13 * dim)),
        ("bias", bias, (out,)),
        ("norm_weight", norm_weight, (out,)),
        ("norm_bias", norm_bias, (out,)),
        ("scalers", scalers, (input.shape[0], 3)),
        ("source", source, (batch,)),
    ):
        if t is None:
            continue
        if tuple(t.shape) != tuple(shape):
            raise ValueError(f"nbfnet_layer: {name} has shape {tuple(t.shape)}, expected {tuple(shape)}")
        if t.device != input.device:
            raise ValueError(f"nbfnet_layer: {name} is on {t.device}, expected {input.device} like input")
        wide = input.dtype in (torch.bfloat16, torch.float16) and t.dtype == torch.float32 and name != "query"
        if t.dtype != (torch.int64 if name == "source" else input.dtype) and not wide:
            raise ValueError(f"nbfnet_layer: {name} has dtype {t.dtype}, which does not go with {input.dtype} input")
    if residual and out != dim:
        raise ValueError(f"nbfnet_layer: weight has {out} output channels, expected {dim} for the residual")
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError("nbfnet_layer: norm_weight and norm_bias, expected both or neither")


@_forward.fake
def _(*args):
    _check(*args[:10], args[11], args[13])
    return _empty_states(*args)


@_backward.cpu
def _(grad_out, pre, *args):
    args = _contiguous(args)
    grads = _empty_grads(*args)
    grad_relation, grad_input, *others = (
        None if args[k] is None else g for k, g in zip(_DIFFERENTIABLE, grads, strict=True)
    )
    _cpu.nbfnet_layer_backward(
        grad_input, grad_relation, *others, grad_out.contiguous(), pre.contiguous(), *args, torch.get_num_threads()
    )
    return grads


@_backward.fake
def _(grad_out, pre, *args):
    _check(*args[:10], args[11], args[13])
    return _empty_grads(*args)


# Positions of relation, input, query, weight, bias, norm_weight and norm_bias: the order of the gradients.
_DIFFERENTIABLE = (1, 2, 4, 5, 6, 7, 8)


def _empty_grads(*args):
    return tuple(args[4].new_empty(0 if args[k] is None else args[k].shape) for k in _DIFFERENTIABLE)


def combine_pna(input: Tensor, features: Tensor, weight: Tensor, bias: Tensor | None, scalers: Tensor) -> Tensor:
    """W [input, features ⊗ scalers] + bias without the 12-fold tensor: one product per scaler, combined per node.

    input (V, B, d), features (V, B, 4, d) of `relational_spmm(sum="pna")`, weight (D, 13·d), scalers (V, 3).
    """
    d, out_dim = input.shape[-1], weight.shape[0]
    own, rest = weight.split([d, 12 * d], dim=1)
    # (out, channel, statistic, scaler) -> (scaler, out, statistic, channel), the order the op writes.
    rest = rest.view(out_dim, d, 4, 3).permute(3, 0, 2, 1).reshape(3 * out_dim, 4 * d)
    plain, scaled, attenuated = F.linear(features.flatten(-2), rest).chunk(3, dim=-1)
    hidden = torch.addcmul(F.linear(input, own, bias), plain, scalers[:, 0, None, None])
    hidden = torch.addcmul(hidden, scaled, scalers[:, 1, None, None])
    return torch.addcmul(hidden, attenuated, scalers[:, 2, None, None])


def _compose(
    graph, relation, input, source, query, weight, bias, norm_weight, norm_bias, scalers, mul, eps, relu, residual
):
    """The same layer from relational_spmm and dense products, for devices without this kernel."""
    columns = torch.arange(len(source), device=source.device)
    dtype = query.dtype if input is None else input.dtype
    boundary = query.new_zeros(graph.num_nodes, *query.shape, dtype=dtype)
    boundary = boundary.index_put((source, columns), query.to(dtype))
    input = boundary if input is None else input
    features = relational_spmm(graph, relation, input, sum="pna", mul=mul, boundary=boundary)
    hidden = combine_pna(input, features, weight, bias, scalers.to(input.dtype))
    if norm_weight is not None:
        hidden = F.layer_norm(hidden, hidden.shape[-1:], norm_weight.to(hidden.dtype), norm_bias.to(hidden.dtype), eps)
    if relu:
        hidden = F.relu(hidden)
    return hidden + input if residual else hidden


@_forward.vmap
def _(info, in_dims, *args):
    return loop_over_batch(_forward, info, in_dims, args)


@_backward.vmap
def _(info, in_dims, *args):
    return loop_over_batch(_backward, info, in_dims, args)


class _NbfnetLayer(torch.autograd.Function):
    @staticmethod
    def forward(*args):
        return _forward(*args, True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # no zeros of the size of a node state for `pre`
        ctx.save_for_backward(output[1], *inputs[:10])
        ctx.constants = inputs[10:]

    @staticmethod
    def backward(ctx, grad_out, _):
        apply = _NbfnetLayerBackward.apply if torch.is_grad_enabled() else _backward
        if grad_out is None:
            return (None,) * 14
        pre, *tensors = ctx.saved_tensors
        grads = apply(grad_out, pre, *tensors, *ctx.constants)
        result = [None] * 14
        for k, grad in zip(_DIFFERENTIABLE, grads, strict=True):
            if ctx.needs_input_grad[k]:
                result[k] = grad
        return tuple(result)

    @staticmethod
    def vmap(info, in_dims, *args):
        return loop_over_batch(_NbfnetLayer.apply, info, in_dims, args)


def _backward_vmap(info, in_dims, *args):
    return loop_over_batch(_NbfnetLayerBackward.apply, info, in_dims, args)


_NbfnetLayerBackward = last_derivative("nbfnet_layer", _backward, _backward_vmap)
