"""controller/core/policies/registry.py: what a person may set of a policy, and what is said of anything else."""

import pytest

from controller.core.policies.atc import Atc
from controller.core.policies.registry import make_policy
from controller.core.state import ShardState
from mesh.errors import SettingsError
from tests.messages import names


@pytest.mark.parametrize(("given", "taken"), [(0.0, False), (1.0, True), (0, False), (True, True), (False, False)])
def test_switches_are_set_as_truth_values_or_as_the_numbers_that_settings_hold(given: float, taken: bool) -> None:
    policy = make_policy("atc", ShardState(), {"echo": given})
    assert isinstance(policy, Atc)
    assert policy.parameters.echo is taken


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"echo": 2.0}, "policy.atc.echo: must be true (1) or false (0); got 2.0"),
        ({"depth": True}, "policy.atc.depth: must be a number like 2; got True"),
        ({"depth": "two"}, "policy.atc.depth: must be a number like 2; got 'two'"),
        ({"skip_gain": -1}, "policy.atc.skip_gain: must not be negative; got -1"),
        ({"window": 1}, "policy.atc.window: there is no such parameter; there are: window_min"),
    ],
)
def test_what_cannot_be_set_is_named_with_what_can(given: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        make_policy("atc", ShardState(), given)
    assert said in str(error.value)


def test_an_unknown_policy_is_told_the_known_ones() -> None:
    with pytest.raises(SettingsError) as error:
        make_policy("edf", ShardState())
    assert names(str(error.value), "edf", "atc", "clockwork", "fifo")
