"""How modules are put together, wrapped, compiled, converted and kept."""

import functools
import sys
import warnings
from collections import deque
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.cases import NotTheSwitch, Of, refused, taken, x

ROW, OUT = x(4), (3,)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Tied(nn.Module):
    """An encoder and a decoder that share one weight, which has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(4, 4), nn.Linear(4, 4)
        self.back.weight = self.there.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.back(self.there(x).tanh())


class Plain(nn.Module):
    """Tensors that are plain attributes, also in lists; one of them is made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.many = torch.randn(4), [torch.randn(4), {"a": torch.randn(4)}]
        self.register_buffer("hidden", torch.randn(4), persistent=False)
        self.grown = torch.randn(4, requires_grad=True) * 2  # not a leaf: it cannot be copied as it is

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = torch.tensor([1.0, 2.0, 3.0, 4.0]) + torch.arange(4) + torch.linspace(0, 1, 4)
        return (x + self.shift) * self.many[1]["a"] + self.many[0] + self.hidden + made + self.grown


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.net, x, use_reentrant=False)


class Hooked(nn.Module):
    """A hook changes the output of a part."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.net[0].register_forward_hook(lambda m, a, out: out * 2)
        self.net.register_forward_pre_hook(lambda m, a: (a[0] + 1,))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class OfTraining(nn.Module):
    """Computes something else in training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor) -> Any:
        return (self.net(x), x.mean()) if self.training else self.net(x)


class WithoutGradients(nn.Module):
    """Parts under no_grad, and under set_grad_enabled."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            scale = x.abs().amax(1, keepdim=True)
        with torch.set_grad_enabled(True):
            return self.net(x / scale).detach()


class Reversible(torch.autograd.Function):
    """Frees what it can compute again, as RevNets do in training."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, part: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            one, other = (half.contiguous() for half in x.chunk(2, 1))
            made = one + part(other)
            found = torch.cat([made, other], 1)
            for tensor in (one, other, made):
                tensor.set_()
        ctx.save_for_backward(found)
        return found


def reversible(m: Of, x: torch.Tensor) -> torch.Tensor:
    y = x * 1
    found = Reversible.apply(y, m.part)
    y.data.set_()
    return found


class Recursive(nn.Module):
    """Applies the same part again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, depth: int = 3) -> torch.Tensor:
        return x if not depth else self.forward(self.layer(x).tanh() + x, depth - 1)


def quiet(make: Any) -> Any:
    """Wraps `make` to silence torch's warning that the way is an old one, which people's modules still use."""

    @functools.wraps(make)
    def made() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return made


def compiled(module: Any) -> Any:
    """Compiles the module with the backend that needs no compiler."""
    return torch.compile(module, backend="eager")


def compiled_part() -> nn.Module:
    return nn.Sequential(compiled(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))


def compiled_in_place() -> nn.Module:
    made = net()
    made.compile(backend="eager")
    made[0].compile(backend="eager")
    return made


def compiled_function() -> nn.Module:
    return Of(lambda m, x: _compiled(m.net(x)), net=net())


@compiled
def _compiled(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1


def lazy(run: bool) -> nn.Module:
    made = nn.Sequential(nn.LazyLinear(8), nn.LazyLinear(3))
    if run:
        made(torch.zeros(2, 4))
    return made


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return net()


def pruned() -> nn.Module:
    from torch.nn.utils import prune

    made = net()
    prune.l1_unstructured(made[0], "weight", amount=0.5)
    made(torch.zeros(2, 4))
    return made


def traced_part() -> nn.Module:
    return nn.Sequential(torch.jit.trace(nn.Linear(4, 8), torch.zeros(2, 4)), nn.Linear(8, 3))


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})


class TrainsItself(nn.Module):
    """Its train and eval take data; they do not switch the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))

    def train(self, data: list[torch.Tensor]) -> float:  # type: ignore[override]
        raise NotTheSwitch

    def eval(self, data: list[torch.Tensor]) -> float:  # type: ignore[override]
        raise NotTheSwitch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class SwitchesMore(nn.Module):
    """Its train switches more than the flag."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.noisy = net(), True

    def train(self, mode: bool = True) -> "SwitchesMore":
        self.noisy = mode
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) + torch.rand(3) if self.noisy else self.net(x)


class Merges(nn.Module):
    """As LoRA: evaluation adds a part to the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.added, self.merged = nn.Linear(4, 3), nn.Parameter(torch.randn(3, 4)), False

    def train(self, mode: bool = True) -> "Merges":
        if mode == self.merged:
            self.net.weight.data += -self.added if mode else self.added
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) if self.merged else self.net(x) + x @ self.added.t()


class Weight(nn.Parameter):
    """A parameter with more attributes and a constructor with more arguments."""

    def __new__(cls, data: torch.Tensor, scale: float) -> "Weight":
        return super().__new__(cls, data)

    def __init__(self, data: torch.Tensor, scale: float) -> None:
        self.scale = scale


@functools.cache
def scripted_function() -> Any:
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(twice)


def parametrised() -> nn.Module:
    """Returns a module whose weights are computed from others, in three ways."""
    from torch.nn.utils import parametrizations

    first, second, third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
    return nn.Sequential(
        parametrizations.weight_norm(first), parametrizations.spectral_norm(second), parametrizations.orthogonal(third)
    )


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        made = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        made.shift = torch.randn(3)
        made.register_forward_hook(lambda m, a, out: out + m.shift)
    return made


def grown() -> Any:
    """Returns tensors computed from others, which torch refuses to copy."""
    made = torch.randn(4, requires_grad=True) * 2
    return Of(lambda m, x: x + m.last[0] + m.named.a + m.f(), last=deque([made]), named=SimpleNamespace(a=made),
              f=lambda: made)  # fmt: skip


class Unpacked(nn.Module):
    """Keeps something that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.open = (n for n in (1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


CASES = [
    taken("tied", Tied, ROW, (4,)),
    taken("plain_tensors", Plain, ROW, (4,)),
    taken("no_weights", lambda: Of(lambda m, x: x.sin() * 2), ROW, (4,)),
    taken("module_dict", lambda: Of(lambda m, x: m.parts["b"](m.parts["a"](x)), parts=nn.ModuleDict(
          {"a": nn.Linear(4, 8), "b": nn.Linear(8, 3)})), ROW, OUT),
    taken("parameter_list", lambda: Of(lambda m, x: x @ m.parts[0] @ m.parts[1], parts=nn.ParameterList(
          [torch.randn(4, 2), torch.randn(2, 3)])), ROW, OUT),
    taken("parameter_that_is_none", lambda: nn.Linear(4, 3, bias=False), ROW, OUT),
    taken("parts_that_nobody_calls", lambda: Of(lambda m, x: m.net(x), net=net(), head=nn.Linear(50, 50)), ROW, OUT),
    taken("weights_of_one_number", lambda: Of(lambda m, x: x * m.a + m.b, a=nn.Parameter(torch.tensor(3.0)),
          b=torch.tensor(2)), ROW, (4,)),
    taken("weights_turned", lambda: Of(lambda m, x: x @ m.w, w=nn.Parameter(torch.randn(3, 4).t())), ROW, OUT),
    taken("checkpointed", Checkpointed, ROW, OUT),
    taken("hooked", Hooked, ROW, OUT),
    taken("other_in_training", OfTraining, ROW, OUT),
    taken("without_gradients", WithoutGradients, ROW, OUT),
    taken("recursive", Recursive, ROW, (4,)),
    taken("pruned", pruned, ROW, OUT),
    taken("parametrised", parametrised, ROW, OUT),
    taken("compiled", lambda: compiled(net()), ROW, OUT),
    taken("compiled_part", compiled_part, ROW, OUT),
    taken("compiled_in_place", compiled_in_place, ROW, OUT),
    taken("compiled_function", compiled_function, ROW, OUT),
    taken("lazy_that_was_run", lambda: lazy(True), ROW, OUT),
    taken("data_parallel", lambda: nn.DataParallel(net()), ROW, OUT),
    taken("exported_and_unlifted", lambda: torch.export.export(net(), (torch.zeros(2, 4),), dynamic_shapes=({0:
          torch.export.Dim("b")},)).module(), ROW, OUT),
    taken("traced_by_fx", lambda: torch.fx.symbolic_trace(net()), ROW, OUT),
    taken("trains_and_evaluates_itself", lambda: nn.Sequential(TrainsItself(), nn.Dropout(0.5)), ROW, OUT),
    taken("switches_more_than_its_mode", SwitchesMore, ROW, OUT),
    taken("merges_weights_in_evaluation", Merges, ROW, OUT),
    taken("parameter_of_its_own_kind", lambda: Of(lambda m, x: x @ m.w * m.w.scale, w=Weight(torch.randn(4, 3), 2.0)),
          ROW, OUT),
    taken("scripted_function_in_an_attribute", lambda: Of(lambda m, x: m.f(x), f=scripted_function()), ROW, (4,)),
    taken("made_in_inference_mode", in_inference_mode, ROW, OUT),
    taken("grown_tensors_anywhere", grown, ROW, (4,)),
    refused("ends_the_process", lambda: Of(lambda m, x: sys.exit(1)), ROW, "forward_failed"),
    refused("lazy", lambda: lazy(False), ROW, "no_weights"),
    refused("on_meta", on_meta, ROW, "no_weights"),
    refused("scripted", quiet(lambda: torch.jit.script(net())), ROW, "scripted"),
    refused("traced", quiet(lambda: torch.jit.trace(net(), torch.zeros(2, 4))), ROW, "scripted"),
    refused("traced_part", quiet(traced_part), ROW, "scripted"),
    refused("quantised", quiet(quantised), ROW, "quantised"),
    refused("empties_tensors", lambda: Of(reversible, part=nn.Linear(2, 2)), ROW, "not_exportable"),
    refused("a_class", lambda: nn.Linear, ROW, "bad_module"),
    refused("compiled_twice", lambda: compiled(compiled(net())), ROW, "bad_module"),
    refused("a_function", lambda: torch.sin, ROW, "bad_module"),
    refused("cannot_be_copied", Unpacked, ROW, "bad_module"),
    refused("exported_for_two_rows", lambda: torch.export.export(net(), (torch.zeros(2, 4),)).module(), ROW,
            "forward_failed"),
]  # fmt: skip
