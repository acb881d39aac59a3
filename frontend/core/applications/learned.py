"""What the applications have learned, as far as this frontend knows."""

from frontend.core.applications.definitions import Application
from frontend.core.applications.messages import StoreChanged
from selection.base import State, adapt, fresh
from selection.contexts import Key, StateCache

STATES_MAX = 10_000  # contexts in a frontend's memory


class LearnedStates:
    """The states in memory, and how the store that they come from is."""

    def __init__(self) -> None:
        self.cache = StateCache(STATES_MAX)
        self.store = StoreChanged()  # as it was last said to be

    def of(self, app: Application, context: str) -> State:
        """The state in this context; an even one where nothing is known."""
        held = self.cache.get((app.name, context))
        return adapt(held.state, app.models) if held is not None and held.state is not None else fresh(app.models)

    def read(self, key: Key, state: State | None, error: str, now: float) -> None:
        """The store was read; after an error, what is in memory stays."""
        if error:
            self.cache.failed(key, now)
        else:
            self.cache.refreshed(key, state, now)

    @property
    def learning(self) -> str:
        """For `status`: "on", or why learning pauses."""
        return f"paused: {self.store.down}" if self.store.down else "on"
