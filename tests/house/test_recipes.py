"""CONTRIBUTING says where else each kind of thing has to be named: whoever forgets one of these places is told."""

import re
from dataclasses import fields
from types import ModuleType
from typing import Any, get_args

import msgspec
import pytest
from typer.testing import CliRunner

from controller.core.policies.registry import POLICIES
from gearmesh.cli.main import app
from mesh import wire
from mesh.process.settings import Settings
from mesh.wire import broker, controller, results, shared, workers
from scripts import ROOT


def test_every_policy_can_be_chosen_by_the_setting_and_no_other() -> None:
    assert sorted(get_args(Settings.model_fields["policy"].annotation)) == sorted(POLICIES)


def test_the_help_of_simulate_names_every_policy() -> None:
    told = CliRunner().invoke(app, ["simulate", "--help"], env={"COLUMNS": "200"})
    assert ", ".join(POLICIES) in told.output


def test_the_table_of_the_policies_parameters_names_each_with_its_default() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(rf"^\| ({'|'.join(POLICIES)}) \| `(\w+)` \| (\S+) \|", text, re.MULTILINE)
    known: list[tuple[str, str, Any]] = [
        (name, field.name, getattr(parameters, field.name))
        for name, (_, parameters) in POLICIES.items()
        for field in fields(parameters)
    ]
    assert sorted((name, field, float(default)) for name, field, default in rows) == sorted(
        (name, field, float(default or 0)) for name, field, default in known
    )


@pytest.mark.parametrize("module", [broker, controller, results, shared, workers], ids=lambda module: module.__name__)
def test_every_message_is_a_name_of_the_package_wire(module: ModuleType) -> None:
    structs = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value.__module__ == module.__name__
    ]
    assert structs
    assert [name for name in structs if name not in wire.__all__ or not hasattr(wire, name)] == []
