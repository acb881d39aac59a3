"""What policies keep of models that are gone."""

from collections.abc import Collection

import pytest

from controller.core.policies.gone import GONE_MAX, gone_among
from tests.controller.core.policies.policy_world import NOW, SECONDS, World

OVER = 4 * GONE_MAX


@pytest.mark.parametrize(
    ("known", "gone"), [(range(GONE_MAX + 4), 0), (range(GONE_MAX + 5), GONE_MAX + 3), ([0, 1], 0), ([], 0)]
)
def test_those_that_are_gone_are_named_once_they_are_many(known: Collection[int], gone: int) -> None:
    found = gone_among([str(number) for number in known], {"0", "1"})
    assert len(found) == gone
    assert not {"0", "1"} & set(found)


def test_of_models_that_are_gone_the_default_policy_keeps_but_a_few() -> None:
    refs = [f"m{number}:1" for number in range(OVER)]
    world = World(dict.fromkeys(refs, SECONDS), pages=2 * OVER)
    policy, state, models = world.policy, world.state, dict(world.state.models)
    for ref in refs:
        state.models[ref] = model = models[ref]
        assert world.admit(60.0, ref=ref).admitted
        one = world.waits(NOW + 60.0, ref=ref).model(ref).queue.first()
        policy.completed(world.device, model, state.take_first(model, 1), NOW)
        policy.ended(one, False, NOW)
        if ref == refs[0]:
            state.models.clear()
        elif ref != refs[-1]:
            del state.models[ref]
    assert len(state.models) == 1
    for known in (policy.clients, policy.admission):
        assert 1 <= len(known) <= GONE_MAX + 3
    assert refs[-1] in policy.clients
