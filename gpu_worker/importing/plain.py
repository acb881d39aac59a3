"""A module as it can be exported: a copy, on the processor, in evaluation, without what torch wraps it in."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from broker.errors import PackageError
from gpu_worker.devices.executables import TORCH_DTYPES
from gpu_worker.examples import said

QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse", "torch.nn.quantized")
PLAIN_TENSORS = (torch.Tensor, nn.Parameter, nn.Buffer)


def plain_copy(place: str, module: nn.Module) -> nn.Module:
    """A copy: the module itself is not changed by what is done to it.

    Raises: PackageError, code bad_module, scripted, quantised or no_weights.
    """
    if not isinstance(module, nn.Module):
        kind = module.__name__ if isinstance(module, type) else type(module).__name__
        made = " (a class: make an instance of it)" if isinstance(module, type) else ""
        raise PackageError(place, [f"module must be a torch.nn.Module; got {kind}{made}"], "bad_module")
    _refuse(place, module)
    original = _original(module)
    try:
        copied = copy.deepcopy(original)
    except Exception as error:  # whatever the author's objects do when they are copied
        why = f"the module cannot be copied: {said(error)}. Keep what cannot be copied out of the module"
        raise PackageError(place, [why], "bad_module") from None
    for parent in list(copied.modules()):
        parent._compiled_call_impl = None  # of Module.compile()
        for name, child in list(parent.named_children()):
            if _original(child) is not child:
                setattr(parent, name, _original(child))
    with contextlib.suppress(NotImplementedError):  # an exported program, whose mode is fixed
        copied.eval()
    return copied.cpu().requires_grad_(False)


def tensors_in(module: nn.Module) -> dict[str, torch.Tensor]:
    """{name: parameter or buffer}, those that are no part of a state dict, and all names of shared ones, included."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _original(module: nn.Module) -> nn.Module:
    """What torch.compile was called with, if this came out of it."""
    return module._orig_mod if isinstance(module, torch._dynamo.OptimizedModule) else module


def _refuse(place: str, module: nn.Module) -> None:
    """Raises for modules that hold something else than tensors and Python."""
    for name, part in module.named_modules():
        where = f" (at {name})" if name else ""
        if isinstance(part, torch.jit.ScriptModule):
            why = f"the module is TorchScript{where}, which cannot be exported: give the module that it was made from"
            raise PackageError(place, [why], "scripted")
        if type(part).__module__.startswith(QUANTISED):
            raise PackageError(place, [_quantised(f"{type(part).__name__}{where}")], "quantised")
    for fault in _tensor_faults(place, module):
        raise fault


def _tensor_faults(place: str, module: nn.Module) -> Iterator[PackageError]:
    for name, tensor in tensors_in(module).items():
        if is_lazy(tensor):
            why = f"{name} has no shape yet: run the module once before it is written"
            yield PackageError(place, [why], "no_weights")
        elif tensor.is_meta:
            why = f"{name} is on the meta device and has no values: load the weights before the module is written"
            yield PackageError(place, [why], "no_weights")
        elif tensor.is_quantized or type(tensor) not in PLAIN_TENSORS:
            yield PackageError(place, [_quantised(f"{name} ({type(tensor).__name__})")], "quantised")
        elif tensor.dtype not in TORCH_DTYPES.values() or tensor.layout is not torch.strided:
            kind = f"{str(tensor.dtype).removeprefix('torch.')}, {tensor.layout}"
            mend = (
                "keep it as real numbers (torch.view_as_real), as_complex in forward"
                if tensor.is_complex()
                else ("keep it as a dense tensor of floats, integers or booleans")
            )
            yield PackageError(place, [f"{name} is {kind}, which cannot be stored: {mend}"], "bad_module")


def _quantised(what: str) -> str:
    return (
        f"{what} holds quantised weights in a form of its own, which cannot be paged: give the module before it was "
        "quantised, or serve the quantised one as a container or from an ONNX file"
    )
