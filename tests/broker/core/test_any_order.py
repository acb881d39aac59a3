"""broker/core/catalogue.py: its invariants hold whatever happens in whatever order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.core.catalogue import Catalogue, Replies
from mesh import wire
from tests.broker.core.catalogues import SPEC, reopened

MODELS = st.sampled_from(["m", "n"])
VERSIONS = st.sampled_from(["1", "2", "3"])
PEERS = st.sampled_from(["ann", "ben"])
CONTENTS = st.sampled_from(["", "A", "B"])


class AnyOrder(RuleBasedStateMachine):
    """Every call is answered exactly once, unless its caller left; the invariants hold after every event."""

    @initialize()
    def begin(self) -> None:
        self.catalogue = Catalogue()
        self.found = {"m": ["1", "2"], "n": ["1"]}
        self.calls = 0
        self.open: set[tuple[str, int]] = set()
        self.contents: dict[tuple[str, str], str] = {}  # {(model, version): content ever served under it}

    def _call(self, peer: str) -> tuple[str, int]:
        self.calls += 1
        self.open.add((peer, self.calls))
        return peer, self.calls

    def _answered(self, replies: Replies) -> None:
        for key, _ in replies:
            self.open.remove(key)

    @rule()
    def a_version_comes(self) -> None:
        self.found = {"m": ["1", "2", "3"], "n": ["1", "2"]}

    @rule()
    def scan(self) -> None:
        self.catalogue.scan(self.found)

    @rule(peer=PEERS, name=MODELS, version=VERSIONS | st.none())
    def deploy(self, peer: str, name: str, version: str | None) -> None:
        self._answered(self.catalogue.deploy(self._call(peer), name, version, self.found))

    @rule(peer=PEERS, name=MODELS)
    def rollback(self, peer: str, name: str) -> None:
        self._answered(self.catalogue.rollback(self._call(peer), name))

    @rule(peer=PEERS, name=MODELS)
    def undeploy(self, peer: str, name: str) -> None:
        self._answered(self.catalogue.undeploy(self._call(peer), name))

    @rule(name=MODELS, version=VERSIONS, ok=st.booleans(), ready=st.booleans(), content=CONTENTS)
    def report(self, name: str, version: str, ok: bool, ready: bool, content: str) -> None:
        current = self.catalogue.models[name].current if name in self.catalogue.models else None
        ref = f"{name}:{version}"
        report = wire.PrepareReport(ref=ref, ok=ok, spec=SPEC, content=content if ok else "", ready=ready)
        differs = self.catalogue.differs(report)
        self._answered(self.catalogue.reported(report))
        if (not ok or differs or not ready) and name in self.catalogue.models:
            assert self.catalogue.models[name].current == current  # a failed deployment leaves it current

    @rule(name=MODELS)
    def reopen(self, name: str) -> None:
        if name in self.catalogue.models:
            assert reopened(self.catalogue.models[name]) == self.catalogue.models[name]

    @rule(peer=PEERS)
    def leave(self, peer: str) -> None:
        self.catalogue.drop_calls(peer)
        self.open = {key for key in self.open if key[0] != peer}

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "catalogue"):
            return
        self.catalogue.check()
        assert sorted(self.catalogue.open_calls()) == sorted(self.open)
        for name, model in self.catalogue.models.items():
            assert not model.history or model.history[-1] != model.current
            for version, content in model.contents.items():  # contents never change
                assert self.contents.setdefault((name, version), content) == content


AnyOrder.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)
TestAnyOrder = AnyOrder.TestCase
