"""Guesses of passwords: who failed too often is refused for a while, also with the right password.

A try is counted as failed when it begins, and taken back when it turns out right: checking a password takes long, and whoever
tries a hundred at once would otherwise be through with all of them before the first is counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

WINDOW = 15 * 60.0
"""Seconds within which failures count together."""
LOCKED = 15 * 60.0
"""Seconds for which a key is locked after its last failure."""
MOST = 10_000
"""Most keys that are remembered. To fill it takes as many guesses, and they take longer than `WINDOW`."""


class Tries:
    """The latest failures of each key, for one `limit`. Not thread-safe: the owner holds a lock.

    A key is locked once `limit` failures lie within `WINDOW`. What is refused is no failure, so a lock ends, and its key
    begins anew. What is too old to matter is forgotten when the key is looked at, or when there are too many keys.
    """

    def __init__(self, limit: int, clock: Callable[[], float], most: int = MOST) -> None:
        self.limit, self._clock, self._most = limit, clock, most
        self._failed: OrderedDict[str, list[float]] = OrderedDict()  # when, oldest first; keys by their last failure

    def locked(self, key: str) -> float:
        """Seconds for which a key is locked still; 0 when it is not."""
        failed = self._of(key)
        return failed[-1] + LOCKED - self._clock() if len(failed) >= self.limit else 0.0

    def begin(self, key: str) -> float:
        """Count a try of a key that is not locked as failed, until it is taken back; returns when it was."""
        now = self._clock()
        failed = self._of(key)
        assert len(failed) < self.limit, "a try of a locked key"
        failed.append(now)
        self._failed[key] = failed
        self._failed.move_to_end(key)
        while len(self._failed) > self._most:
            self._failed.popitem(last=False)
        return now

    def take_back(self, key: str, at: float) -> None:
        """Count a try no more, that began at this time: it did not fail."""
        failed = self._failed.get(key, [])
        if at in failed:  # else it was forgotten meanwhile
            failed.remove(at)
            self._keep(key, failed)

    def forget(self, key: str) -> None:
        """Forget all failures of a key: it showed that it knows the password."""
        self._failed.pop(key, None)

    def __len__(self) -> int:
        return len(self._failed)

    def _of(self, key: str) -> list[float]:
        """Failures of a key that count now."""
        failed, now = self._failed.get(key, []), self._clock()
        if len(failed) >= self.limit:
            failed = failed if now < failed[-1] + LOCKED else []
        else:
            failed = [at for at in failed if now < at + WINDOW]
        self._keep(key, failed)
        return failed

    def _keep(self, key: str, failed: list[float]) -> None:
        if failed:
            self._failed[key] = failed
        else:
            self._failed.pop(key, None)
