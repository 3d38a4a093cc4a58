# SPDX-License-Identifier: Apache-2.0
"""How an op is registered: `define` + `impl` + `register_fake` of torch.library behind one small class.

`torch.library.custom_op` costs three times as much per call, and `register_autograd` does not work under
torch.func. So the registered ops are opaque and not differentiable by themselves; each public function wraps them
in one `autograd.Function`, and only when :func:`wants_grad` says that a gradient can be asked for.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad

__all__ = ["REGISTERED", "apply", "define", "last_derivative", "not_traced", "wants_grad", "warn_no_kernel"]

_LIBRARY = torch.library.Library("innerloop", "DEF")

# Names of all ops, in order of definition; a test holds the dispatcher's list to it.
REGISTERED: list[str] = []


class Op:
    """A registered op: call it, and decorate its implementations with `.cpu`, `.cuda`, `.fake` and `.vmap`."""

    def __init__(self, schema: str) -> None:
        self.name = schema.split("(", 1)[0]
        _LIBRARY.define(schema)
        # Nothing happens on the autograd keys: differentiation is the business of the Function outside.
        _LIBRARY.impl(self.name, torch.library.fallthrough_kernel, "Autograd")
        REGISTERED.append(self.name)
        # What hot paths call: one Python frame less than calling this object.
        self.overload = getattr(torch.ops.innerloop, self.name).default

    def __call__(self, *args: object) -> object:
        return self.overload(*args)

    def cpu(self, fn: Callable) -> Callable:
        _LIBRARY.impl(self.name, fn, "CPU")
        return fn

    def cuda(self, fn: Callable) -> Callable:
        _LIBRARY.impl(self.name, fn, "CUDA")
        return fn

    def fake(self, fn: Callable) -> Callable:
        torch.library.register_fake(f"innerloop::{self.name}", fn, lib=_LIBRARY)
        return fn

    def vmap(self, fn: Callable) -> Callable:
        torch.library.register_vmap(f"innerloop::{self.name}", fn, lib=_LIBRARY)
        return fn


def define(schema: str) -> Op:
    """Defines `innerloop::<schema>`; the returned object takes the implementations."""
    return Op(schema)


def last_derivative(name: str, backward: Op, batching: Callable | None = None) -> type[torch.autograd.Function]:
    """The backward op as a node of its own, so that a second derivative is an error and never zeros."""

    class LastDerivative(torch.autograd.Function):
        @staticmethod
        def forward(*args):
            return backward(*args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, *grads):
            raise NotImplementedError(f"{name}: second derivatives are not implemented")

        if batching is not None:
            vmap = staticmethod(batching)

    return LastDerivative


def apply(function: type[torch.autograd.Function], *args: object) -> object:
    """`function.apply(*args)`, all arguments given.

    For a Function with `setup_context`, `apply` looks up the signature of `forward` on every call to fill in defaults:
    30 of the 40 µs that it takes. What it does then outside torch.func and torch.compile is this.
    """
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        # Dynamo takes the arguments of torch.func.grad for constants, but not what is made of them; through vmap it
        # sees no gradient at all. Either way it would leave out the backward pass and return zeros.
        args = [a.view_as(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        if not any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return torch.compiler.disable(function.apply)(*args)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*unwrap_dead_wrappers(args))


def not_traced(function: Callable) -> Callable:
    """Runs as it is under torch.compile; `torch.compiler.disable` alone would import Dynamo with this module."""

    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call


@functools.cache
def warn_no_kernel(op: str, device: str) -> None:
    """Says once per op and device type that the plain definition runs."""
    warnings.warn(
        f"innerloop.{op}: no compiled kernel for {device} tensors, running the plain torch definition (slow, and it "
        "forms the tensors that the kernel avoids); see `innerloop doctor`",
        stacklevel=4,
    )


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether this call can be differentiated, in reverse or forward mode.

    Without the forward-mode term `torch.func.jvp` would take the undifferentiated path and return zero tangents.
    """
    if forward_ad._current_level >= 0:
        return True
    # Inside torch.func a tensor may hide that it is differentiated: from Dynamo, and under a vmap that grad is around.
    # Taken at its word, gradients would be zeros.
    if torch._C._are_functorch_transforms_active():
        return True
    if not torch.is_grad_enabled():
        return False
    for t in tensors:  # noqa: SIM110  this runs on every call, and a generator costs as much as the loop
        if t is not None and t.requires_grad:
            return True
    return False
