"""Selection state in Redis, shared by frontends on several hosts."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from selection.stores.base import NOTHING, TIMEOUT_S, StoreDown, Versioned, next_version

PREFIX = "gearmesh"
# One step in Redis, so that no other writer comes between comparison and write. KEYS: state, set of contexts by last
# use.
_SWAP = """
if (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'state', ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[5], ARGV[4])
local over = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[6])
if over > 0 then
  local old = redis.call('ZPOPMIN', KEYS[2], over)
  for i = 1, #old, 2 do redis.call('DEL', ARGV[7] .. old[i]) end
end
return 1
"""
_CLAIM = """
local known = redis.call('GET', KEYS[1])
if known then redis.call('SET', KEYS[1], '', 'KEEPTTL') end
return known
"""


class RedisStore:
    """A Redis server, shared by frontends on any host. As durable as that server is configured to be."""

    def __init__(self, url: str, contexts_max: int, decision_s: float) -> None:
        self._url, self._contexts_max, self._decision_s = url, contexts_max, decision_s
        self._client: Any = redis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),  # the keeper's thread retries, and holds the updates meanwhile
            decode_responses=False,
        )
        self._swap = self._client.register_script(_SWAP)
        self._claim = self._client.register_script(_CLAIM)

    def read(self, app: str, context: str) -> Versioned:
        """The state, or NOTHING. Raises: StoreDown."""
        version, state = self._do(lambda: self._client.hmget(self._key(app, context), "version", "state"))
        return Versioned(int(version), state) if version is not None and state is not None else NOTHING

    def swap(self, app: str, context: str, version: int, state: bytes) -> int:
        """Writes if the stored version is still `version`; returns the new version or 0. Raises: StoreDown."""
        new = next_version(version)
        keys = [self._key(app, context), self._used(app)]
        values: list[str | bytes | int | float] = [
            version,
            new,
            state,
            context,
            time.time(),
            self._contexts_max,
            self._key(app, ""),
        ]
        done = self._do(lambda: self._swap(keys=keys, args=values))
        return new if done else 0

    def drop(self, app: str) -> None:
        """Deletes all contexts of the application. Raises: StoreDown."""

        def remove() -> None:
            while contexts := self._client.zrange(self._used(app), 0, 999):
                keys = [self._key(app, context.decode()) for context in contexts]
                self._client.delete(*keys)
                self._client.zrem(self._used(app), *contexts)

        self._do(remove)

    def count(self, app: str) -> int:
        """The number of contexts of the application. Raises: StoreDown."""
        return int(self._do(lambda: self._client.zcard(self._used(app))))

    def park(self, decisions: Sequence[tuple[str, bytes]]) -> None:
        """Stores decisions, which expire by themselves. Raises: StoreDown."""

        def write() -> None:
            with self._client.pipeline(transaction=False) as pipeline:
                for decision, known in decisions:
                    pipeline.set(f"{PREFIX}:decision:{decision}", known, ex=max(1, round(self._decision_s)), nx=True)
                pipeline.execute()

        self._do(write)

    def claim(self, decision: str) -> bytes | None:
        """The decision's record once, b"" afterwards, None if there is none. Raises: StoreDown."""
        known: bytes | None = self._do(lambda: self._claim(keys=[f"{PREFIX}:decision:{decision}"]))
        return known

    def close(self) -> None:
        """Closes the connection; a later call opens it again."""
        self._client.close()

    def _key(self, app: str, context: str) -> str:
        return f"{PREFIX}:{{{app}}}:state:{context}"

    def _used(self, app: str) -> str:
        return f"{PREFIX}:{{{app}}}:used"

    def _do(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except (redis.RedisError, OSError) as error:
            raise StoreDown(f"the selection state in Redis cannot be reached: {error}") from error
