"""Functions that reach the module they belong to: in attributes, hooks, containers, and by global names."""

import functools
import threading
import types
from collections import deque
from typing import Any

import torch
from torch import nn

from tests.zoo.cases import Of, norm, refused, taken, x

ROW, OUT = x(4), (3,)


def net() -> nn.Sequential:
    """Returns a network that training changes, with parts that are off in evaluation."""
    return nn.Sequential(nn.Linear(4, 3), norm(nn.BatchNorm1d, 3), nn.Dropout(0.5))


class Captures(nn.Module):
    """A hook stores a part's output in the module, which reads it: a usual way to get features of inner layers."""

    def __init__(self, of: str = "closure") -> None:
        super().__init__()
        self.net, self.features = net(), {}
        if of == "closure":
            self.net[0].register_forward_hook(lambda m, a, out: self.features.__setitem__("first", out))
        else:
            self.net[0].register_forward_hook(functools.partial(keep, self.features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.net(x)
        return self.features["first"].relu()


def keep(features: dict[str, torch.Tensor], m: nn.Module, a: Any, out: torch.Tensor) -> None:
    features["first"] = out


def captured_before() -> nn.Module:
    """Returns such a module after a run, so that a stale value is stored."""
    made = Captures()
    made(torch.randn(2, 4))
    return made


def of_a_local_class() -> nn.Module:
    """Returns a module whose hook and class share a variable outside the module."""
    features = {}

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.net.register_forward_hook(lambda m, a, out: features.__setitem__("all", out))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.net(x)
            return features["all"].relu()

    return Local()


class Watched:
    """Holds the module, and cannot be copied."""

    def __init__(self) -> None:
        self.net, self.lock, self.calls = net(), threading.Lock(), 0
        for part in self.net:
            part.register_forward_hook(lambda m, a, out: self.saw())

    def saw(self) -> None:
        with self.lock:
            self.calls += 1


class Calls(nn.Module):
    """Calls a function of its own, which is stored in some place."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net = net()
        self.function: Any = {
            "lambda": lambda x: self.net(x),
            "default": lambda x, net=self.net: net(x),
            "keyword_default": lambda x, *, net=self.net: net(x),
            "wrapped": torch.no_grad()(lambda x: self.net(x)),
            "compiled": torch.compile(lambda x: self.net(x), backend="eager"),
            "partial": functools.partial(lambda net, x: net(x), self.net),
            "in_a_dict": {"a": [lambda x: self.net(x)]},
            "in_a_deque": deque([(lambda x: self.net(x), 1)]),
            "in_a_namespace": types.SimpleNamespace(a=lambda x: self.net(x)),
            "two_deep": (lambda inner: lambda x: inner(x))(lambda x: self.net(x)),
        }[how]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function.a(x) if isinstance(self.function, types.SimpleNamespace) else self.function(x)


HOWS = ("lambda", "default", "keyword_default", "wrapped", "compiled", "partial", "in_a_namespace", "two_deep")


class Contained(Calls):
    """The function is stored in containers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function["a"][0](x) if isinstance(self.function, dict) else self.function[0][0](x)


class CallsItself(nn.Module):
    """A nested function that calls itself, and counts down in a variable that it shares."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 4), norm(nn.BatchNorm1d, 4))

        def deeper(x: torch.Tensor, left: int) -> torch.Tensor:
            return deeper(self.layer(x), left - 1) if left else x

        self.deeper = deeper

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.deeper(x, 2)


def patched(bound: bool) -> nn.Module:
    """Returns a module whose forward is replaced by another one, which calls the old one."""
    made = net()
    old = made.forward

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return old(x).softmax(-1)

    made.forward = types.MethodType(forward, made) if bound else lambda x: old(x).softmax(-1)  # type: ignore[method-assign]
    return made


named: nn.Module


def by_a_global_name() -> nn.Module:
    """Returns a module made as in a notebook, where every name is a global one."""
    global named
    named = Of(lambda m, x: helper(x), net=net())
    return named


def helper(x: torch.Tensor) -> torch.Tensor:
    return named.net(x)


class ByAGlobalName(nn.Module):
    """Its class reaches the only instance by a global name."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return the_only_one.norm(x)


the_only_one: Any


def the_only() -> nn.Module:
    global the_only_one
    the_only_one = ByAGlobalName()
    return the_only_one


CASES = [
    taken("hook_that_captures", Captures, ROW, OUT),
    taken("hook_that_captures_by_a_partial", lambda: Captures("partial"), ROW, OUT),
    taken("hook_that_has_captured", captured_before, ROW, OUT),
    taken("hook_that_shares_with_a_class", of_a_local_class, ROW, OUT),
    taken("hook_of_one_who_watches", lambda: Watched().net, ROW, OUT),
    *(taken(f"function_of_its_own_{how}", lambda how=how: Calls(how), ROW, OUT) for how in HOWS),
    *(taken(f"function_of_its_own_{how}", lambda how=how: Contained(how), ROW, OUT)
      for how in ("in_a_dict", "in_a_deque")),
    taken("function_that_calls_itself", CallsItself, ROW, (4,)),
    taken("forward_that_is_patched", lambda: patched(False), ROW, OUT),
    taken("forward_that_is_patched_and_bound", lambda: patched(True), ROW, OUT),
    taken("function_by_a_global_name", by_a_global_name, ROW, OUT),
    refused("class_by_a_global_name", the_only, x(2, 3, 3), "bad_module"),
]  # fmt: skip
