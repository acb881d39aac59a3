"""Policies by name."""

from controller.policies.atc import Atc
from controller.policies.base import Policy
from controller.state import State

POLICIES = {"atc": Atc}


def make_policy(name: str, state: State) -> Policy:
    """The policy of that name. Raises: KeyError; settings are checked before."""
    return POLICIES[name](state)
