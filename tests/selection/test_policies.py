"""The policies on arms whose accuracy is known."""

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selection.base import Arm, Observation, PolicyError, State, adapt, fresh
from selection.registry import POLICIES, make_policy
from tests.selection.arms import play, steady

LEARNING = ["exp3", "exp4", "linear", "epsilon_greedy", "ucb1", "thompson"]
MODELS = ["a", "b", "c"]
losses = st.dictionaries(st.sampled_from(MODELS), st.floats(0, 1), min_size=1)


@pytest.mark.parametrize("name", POLICIES)
@given(rounds=st.lists(losses, max_size=30), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_shares_sum_to_one_and_selections_have_chances_whatever_is_observed(
    name: str, rounds: list[dict[str, float]], seed: int
) -> None:
    policy, _ = make_policy(name, {}, MODELS)
    state = fresh(MODELS)
    rng = random.Random(seed)
    for losses_ in rounds:
        selection = policy.select(state, rng, "")
        assert set(selection.models) <= set(MODELS)
        assert all(0 < selection.chances[model] <= 1 for model in selection.models)
        state = policy.observe(state, Observation(losses_, dict.fromkeys(losses_, 0.5)))
        shares = policy.shares(state)
        assert list(shares) == MODELS
        assert sum(shares.values()) == pytest.approx(1.0)
        assert all(0 <= share <= 1 for share in shares.values())
    assert state.rounds == len(rounds)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=State) == state


@pytest.mark.parametrize("name", LEARNING)
def test_shares_order_by_accuracy(name: str) -> None:
    played = play(name, steady(good=0.95, fair=0.6, poor=0.2), 1500)
    shares = played.policy.shares(played.state)
    assert shares["good"] > 0.5
    arms = played.state.arms
    means = {model: arm.lost / arm.seen for model, arm in arms.items()}
    assert means["good"] < means["fair"] < means["poor"]
    if name in ("exp4", "linear"):
        assert arms["good"].log_weight > arms["fair"].log_weight > arms["poor"].log_weight - 1e-9


@pytest.mark.parametrize("name", LEARNING)
def test_regret_grows_more_slowly_than_the_rounds(name: str) -> None:
    args = {"discount": 1.0} if name in ("epsilon_greedy", "ucb1", "thompson") else {"share": 0.0}
    if name == "epsilon_greedy":
        args["epsilon"] = 0.02
    if name == "exp3":
        args |= {"gamma": 0.02, "eta": 0.02}
    played = play(name, steady(good=0.9, poor=0.5), 6000, **args)
    early = sum(played.losses[:1000]) - 0.1 * 1000
    late = sum(played.losses[-1000:]) - 0.1 * 1000
    assert late < max(0.5 * early, 40)


@pytest.mark.parametrize("name", LEARNING)
def test_a_model_that_degrades_is_left_and_comes_back_once_repaired(name: str) -> None:
    def accuracy(i: int) -> dict[str, float]:
        return {"best": 0.1 if 2000 <= i < 4000 else 0.95, "second": 0.8}

    played = play(name, accuracy, 8000)
    assert np.mean(played.losses[3000:4000]) < 0.4
    assert np.mean(played.losses[7000:]) < 0.16  # the second one alone: 0.2
    if name != "ucb1":  # its share is 0 or 1: its next choice
        assert played.policy.shares(played.state)["best"] > 0.5
        during = play(name, accuracy, 4000)
        assert during.policy.shares(during.state)["best"] < 0.5


@pytest.mark.parametrize("name", LEARNING)
def test_the_same_seed_gives_the_same_run(name: str) -> None:
    one, two = (play(name, steady(good=0.9, poor=0.5), 200, seed=5) for _ in range(2))
    assert one.state == two.state
    assert one.losses == two.losses


def test_no_weight_is_lost_after_ten_thousand_bad_answers() -> None:
    policy, _ = make_policy("exp3", {"eta": 10.0}, ["a", "b"])
    state = fresh(["a", "b"])
    for _ in range(10_000):
        state = policy.observe(state, Observation({"a": 1.0}, {"a": 0.001}))
    assert math.isfinite(state.arms["a"].log_weight)
    assert policy.shares(state)["a"] >= 0.05


def test_exp3_divides_by_the_chance_of_the_draw_and_only_for_the_model_that_was_drawn() -> None:
    policy, _ = make_policy("exp3", {"eta": 0.1, "gamma": 0.01, "share": 0.0}, ["a", "b"])
    state = policy.observe(fresh(["a", "b"]), Observation({"a": 0.5}, {"a": 0.25}))
    ratio = math.exp(state.arms["a"].log_weight - state.arms["b"].log_weight)
    assert ratio == pytest.approx(math.exp(-0.1 * 0.5 / 0.25))


def test_a_member_that_did_not_answer_is_neither_rewarded_nor_punished() -> None:
    policy, _ = make_policy("exp4", {"share": 0.0, "eta": 1.0}, MODELS)
    state = policy.observe(fresh(MODELS), Observation({"a": 0.0, "b": 1.0}, {}))
    assert state.arms["a"].log_weight > state.arms["c"].log_weight > state.arms["b"].log_weight
    assert state.arms["c"].seen == 0


chances = st.floats(0.01, 1)


@given(st.fixed_dictionaries({model: st.floats(0, 1) for model in MODELS}), st.floats(0.01, 3))
def test_exp4_moves_the_odds_of_two_models_by_the_difference_of_their_losses(
    lost: dict[str, float], eta: float
) -> None:
    policy, _ = make_policy("exp4", {"share": 0.0, "eta": eta}, MODELS)
    before = fresh(MODELS)
    after = policy.observe(before, Observation(lost, dict.fromkeys(MODELS, 1.0)))
    odds = after.arms["a"].log_weight - after.arms["b"].log_weight
    assert odds == pytest.approx(-eta * (lost["a"] - lost["b"]), abs=1e-9)


@given(st.lists(st.tuples(st.sampled_from(MODELS), st.floats(0, 1), chances), max_size=40), st.floats(0.01, 1))
def test_exp3_never_draws_a_model_less_often_than_it_explores(
    rounds: list[tuple[str, float, float]], gamma: float
) -> None:
    policy, _ = make_policy("exp3", {"eta": 5.0, "gamma": gamma, "share": 0.001}, MODELS)
    state = fresh(MODELS)
    for model, loss, chance in rounds:
        state = policy.observe(state, Observation({model: loss}, {model: chance}))
        assert min(policy.shares(state).values()) >= gamma / 3 - 1e-12
        assert min(arm.log_weight for arm in state.arms.values()) >= math.log(0.001 / 3) - 1e-9
        assert sum(math.exp(arm.log_weight) for arm in state.arms.values()) == pytest.approx(1.0)


@given(st.lists(losses, max_size=20), st.permutations(MODELS))
@settings(deadline=None)
@pytest.mark.parametrize("name", LEARNING)
def test_the_order_in_which_models_are_named_is_nothing_to_a_policy(
    name: str, rounds: list[dict[str, float]], order: list[str]
) -> None:
    shares = []
    for models in (MODELS, order):
        policy, _ = make_policy(name, {}, models)
        state = fresh(models)
        for lost in rounds:
            state = policy.observe(state, Observation(lost, dict.fromkeys(lost, 0.5)))
        shares.append(policy.shares(state))
    assert shares[0] == pytest.approx(shares[1])


def test_ucb1_takes_the_least_of_mean_loss_less_root_of_c_ln_n_by_n_i() -> None:
    policy, _ = make_policy("ucb1", {"exploration": 2.0, "discount": 1.0}, MODELS)
    arms = {"a": Arm(pulls=100, loss=30), "b": Arm(pulls=10, loss=5), "c": Arm(pulls=50, loss=10)}
    bounds = {name: arm.loss / arm.pulls - math.sqrt(2 * math.log(160) / arm.pulls) for name, arm in arms.items()}
    assert min(bounds, key=lambda name: bounds[name]) == "b"
    assert policy.shares(State(arms)) == {"a": 0, "b": 1, "c": 0}
    arms["b"] = Arm(pulls=40, loss=20)  # equally bad, but with more observations
    assert policy.shares(State(arms)) == {"a": 0, "b": 0, "c": 1}


def test_thompson_s_shares_are_the_frequencies_of_its_draws() -> None:
    policy, _ = make_policy("thompson", {}, MODELS)
    state = State({"a": Arm(pulls=20, loss=6), "b": Arm(pulls=5, loss=1.5), "c": Arm(pulls=40, loss=30)})
    rng = random.Random(5)
    drawn = [policy.select(state, rng, "").models[0] for _ in range(4000)]
    for model, share in policy.shares(state).items():
        assert drawn.count(model) / 4000 == pytest.approx(share, abs=0.03)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(-50, 0), min_size=1),
    st.lists(st.sampled_from("abcdef"), min_size=1, unique=True),
)
def test_a_changed_list_of_models_keeps_what_was_learned_of_those_that_stay(
    before: dict[str, float], after: list[str]
) -> None:
    total = math.log(sum(map(math.exp, before.values())))
    state = State({model: Arm(log_weight=log - total, seen=i) for i, (model, log) in enumerate(before.items())}, 9)
    arms = adapt(state, after).arms
    assert list(arms) == after
    assert sum(math.exp(arm.log_weight) for arm in arms.values()) == pytest.approx(1.0)
    stay = [model for model in after if model in before]
    for model in stay:
        assert arms[model].seen == state.arms[model].seen
        odds = arms[model].log_weight - arms[stay[0]].log_weight
        assert odds == pytest.approx(before[model] - before[stay[0]], abs=1e-9)
    mean = np.mean([math.exp(arms[model].log_weight) for model in stay]) if stay else 1 / len(after)
    for model in set(after) - set(before):
        assert math.exp(arms[model].log_weight) == pytest.approx(mean)
        assert arms[model].seen == 0


def test_split_follows_its_shares_and_keeps_a_context_with_its_model() -> None:
    policy, _ = make_policy("split", {"shares": {"a": 3, "b": 1}}, ["a", "b", "c"])
    rng = random.Random(3)
    drawn = [policy.select(fresh(MODELS), rng, "").models[0] for _ in range(4000)]
    assert drawn.count("a") / 4000 == pytest.approx(0.75, abs=0.03)
    assert drawn.count("c") == 0
    users = [policy.select(fresh(MODELS), rng, f"user-{i}").models[0] for i in range(2000)]
    assert users == [policy.select(fresh(MODELS), rng, f"user-{i}").models[0] for i in range(2000)]
    assert users.count("a") / 2000 == pytest.approx(0.75, abs=0.04)


def test_a_shadow_is_no_candidate_of_the_policy() -> None:
    policy, common = make_policy("exp4", {"shadow": ["b"]}, MODELS)
    assert common.shadow == ["b"]
    assert policy.select(fresh(MODELS), random.Random(1), "").models == ("a", "c")
    assert sum(policy.shares(fresh(MODELS)).values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "args", "field", "says"),
    [
        ("exp9", {}, "policy", "single, exp3"),
        ("exp3", {"eta": 0}, "policy_args.eta", "> 0.0"),
        ("exp3", {"etta": 1}, "policy_args.etta", "'etta'"),
        ("exp3", {"etta": 1}, "policy_args.etta", "eta, gamma"),
        ("exp3", {"eta": "fast"}, "policy_args.eta", "eta"),
        ("exp4", {"gamma": 0.1}, "policy_args.gamma", "'gamma'"),
        ("epsilon_greedy", {"epsilon": 1.5}, "policy_args.epsilon", "<= 1.0"),
        ("single", {"model": "z"}, "policy_args.model", "a, b, c"),
        ("split", {"shares": {"z": 1.0}}, "policy_args.shares", "'z'"),
        ("split", {"shares": {"a": -1.0, "b": 2.0}}, "policy_args.shares", "shares"),
        ("split", {"shares": {"a": 1e308, "b": 1e308}}, "policy_args.shares", "shares"),
        ("split", {"shares": {"a": float("nan")}}, "policy_args.shares", "shares"),
        ("majority", {"shadow": ["z"]}, "policy_args.shadow", "z"),
        ("majority", {"shadow": MODELS}, "policy_args.shadow", "shadow"),
        ("majority", {"loss": "log"}, "policy_args.loss", "'log'"),
        ("os:system", {}, "policy", "os:system"),
    ],
)
def test_a_wrong_definition_is_refused_with_its_key(name: str, args: dict[str, object], field: str, says: str) -> None:
    with pytest.raises(PolicyError) as refused:
        make_policy(name, args, MODELS)
    assert refused.value.field == field
    assert says in refused.value.message


def test_a_policy_of_ones_own_is_imported_if_it_is_allowed_and_whole() -> None:
    allow = ("tests.selection.own_policy:",)
    policy, _ = make_policy("tests.selection.own_policy:Second", {"place": 2}, MODELS, allow)
    assert policy.select(fresh(MODELS), random.Random(1), "").models == ("c",)
    for attribute, says in [
        ("Broken", r"select, combine"),
        ("absent", "AttributeError"),
        ("Raises", "ValueError"),
    ]:
        with pytest.raises(PolicyError, match=says):
            make_policy(f"tests.selection.own_policy:{attribute}", {}, MODELS, allow)
    with pytest.raises(PolicyError, match="odd"):
        make_policy("tests.selection.own_policy:Second", {"odd": 1}, MODELS, allow)
