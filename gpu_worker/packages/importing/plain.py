"""Makes a copy of a module that can be exported: on the CPU, in evaluation mode, without torch's wrappers."""

import inspect
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gpu_worker.devices.executables import TORCH_DTYPES
from gpu_worker.packages.examples import message_of
from gpu_worker.packages.importing.copying import whole_copy
from mesh.codes import PackageCode
from mesh.errors import PackageError

SPREAD = (nn.DataParallel, nn.parallel.DistributedDataParallel)
QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse", "torch.nn.quantized")
QUANTISERS = ("bitsandbytes", "hqq", "optimum", "quanto", "torchao")  # packages whose parameters are not plain tensors
PLAIN_TENSORS = (torch.Tensor, nn.Parameter, nn.Buffer)


def plain_copy(place: str, module: nn.Module) -> nn.Module:
    """Returns a copy that can be changed without changing the module: functions that reach it are copied too.

    The copy may share with the module what cannot be copied, and what lies outside the module.

    Raises: PackageError, code bad_module, scripted, quantised or no_weights.
    """
    if not isinstance(module, nn.Module):
        kind = module.__name__ if isinstance(module, type) else type(module).__name__
        made = " (a class: make an instance of it)" if isinstance(module, type) else ""
        raise PackageError(place, [f"module must be a torch.nn.Module; got {kind}{made}"], PackageCode.BAD_MODULE)
    try:
        _refuse(place, module)
    except RecursionError:
        why = "the module holds itself, as a weakref.proxy in a part of it does: keep a weakref.ref there"
        raise PackageError(place, [why], PackageCode.BAD_MODULE) from None
    try:
        copied = whole_copy(unwrapped(module))
    except Exception as error:  # the author's objects may raise anything when they are copied
        why = f"the module cannot be copied: {message_of(error)}. Keep what cannot be copied out of the module"
        raise PackageError(place, [why], PackageCode.BAD_MODULE) from None
    for parent in list(nn.Module.modules(copied)):
        parent._compiled_call_impl = None  # set by Module.compile()
        for name, child in list(parent._modules.items()):
            if child is not None:
                parent._modules[name] = unwrapped(child)
    evaluate(copied)
    return nn.Module.requires_grad_(nn.Module.cpu(copied), False)


def evaluate(module: nn.Module) -> None:
    """The module is in evaluation mode: by its own eval() if that switches as torch's does, else by its flags."""
    parts = list(nn.Module.modules(module))
    if all(_switches(part) for part in parts):
        try:
            module.eval()
            return
        except NotImplementedError:  # an exported program, whose mode is fixed
            pass
    for part in parts:
        part.training = False


def has_own_switch(module: nn.Module) -> bool:
    """Returns whether evaluation mode may be more than a flag for some part of the module."""
    kinds = {type(part) for part in nn.Module.modules(module)}
    return any(kind.train is not nn.Module.train or kind.eval is not nn.Module.eval for kind in kinds)


def _switches(part: nn.Module) -> bool:
    """Returns whether train and eval switch the mode as torch's do.

    Other methods of that name, such as train(data), must not be called.
    """
    try:
        mode, *_ = (*inspect.signature(part.train).parameters.values(), None)
        rest = inspect.signature(part.eval).parameters.values()
    except (TypeError, ValueError):  # the attribute is not a function
        return False
    return (
        mode is not None
        and (mode.name == "mode" or mode.kind is mode.VAR_POSITIONAL)
        and all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in rest)
    )


def tensors_in(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns {name: parameter or buffer}, including those outside the state dict and all names of shared ones."""
    return {
        **dict(nn.Module.named_parameters(module, remove_duplicate=False)),
        **dict(nn.Module.named_buffers(module, remove_duplicate=False)),
    }


def plain_tensors_in(module: nn.Module) -> dict[str, torch.Tensor]:
    """Returns {name: tensor} of tensors that are plain attributes, neither parameters nor buffers."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, part in nn.Module.named_modules(module)
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    }


def unwrapped(module: nn.Module) -> nn.Module:
    """Returns the module inside of torch.compile or of a wrapper that spreads a model over devices."""
    while isinstance(module, (torch._dynamo.OptimizedModule, *SPREAD)):
        module = module._orig_mod if isinstance(module, torch._dynamo.OptimizedModule) else module.module
    return module


def _refuse(place: str, module: nn.Module) -> None:
    """Raises for modules that hold anything but plain tensors and Python objects."""
    for name, part in nn.Module.named_modules(module):
        where = f" (at {name})" if name else ""
        if isinstance(part, torch.jit.ScriptModule):
            why = f"the module is TorchScript{where}, which cannot be exported: give the module that it was made from"
            raise PackageError(place, [why], PackageCode.SCRIPTED)
        if type(part).__module__.startswith(QUANTISED):
            raise PackageError(place, [_quantised(f"{type(part).__name__}{where}")], PackageCode.QUANTISED)
    for fault in _tensor_faults(place, module):
        raise fault


def _tensor_faults(place: str, module: nn.Module) -> Iterator[PackageError]:
    for name, tensor in tensors_in(module).items():
        if is_lazy(tensor):
            why = f"{name} has no shape yet: run the module once before it is written"
            yield PackageError(place, [why], PackageCode.NO_WEIGHTS)
        elif tensor.is_meta:
            why = f"{name} is on the meta device and has no values: load the weights before the module is written"
            yield PackageError(place, [why], PackageCode.NO_WEIGHTS)
        elif tensor.is_quantized or not _is_plain(tensor):
            yield PackageError(place, [_quantised(f"{name} ({type(tensor).__name__})")], PackageCode.QUANTISED)
        elif tensor.dtype not in TORCH_DTYPES.values() or tensor.layout is not torch.strided:
            dense = tensor.layout is torch.strided
            kind = str(tensor.dtype).removeprefix("torch.") if dense else f"a tensor of layout {tensor.layout}"
            mend = (
                "keep it as real numbers (torch.view_as_real), and make it complex in forward (torch.view_as_complex)"
                if tensor.is_complex()
                else "keep it as a dense tensor of floats, integers or booleans"
            )
            yield PackageError(place, [f"{name} is {kind}, which cannot be stored: {mend}"], PackageCode.BAD_MODULE)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Returns whether the tensor's memory holds its values; true also for subclasses that compute as Parameter does."""
    kind = type(tensor)
    if kind in PLAIN_TENSORS:
        return True
    return (
        issubclass(kind, nn.Parameter)
        and kind.__torch_function__ is nn.Parameter.__torch_function__
        and kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__
        and kind.__module__.partition(".")[0] not in QUANTISERS
    )


def _quantised(what: str) -> str:
    return (
        f"{what} holds quantised weights in a form of its own, which cannot be paged: give the module before it was "
        "quantised, or serve the quantised one as a container or from an ONNX file"
    )
