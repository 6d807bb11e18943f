"""How often somebody may do something: a token bucket for each."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MOST = 10_000
"""Most keys that are remembered, a megabyte or two: sites and users are far fewer."""


@dataclass
class Bucket:
    """What one key has left, and when that was counted, in seconds of the clock."""

    left: float
    at: float


class Buckets:
    """Each key may do `burst` things at once, and `rate` a second in the long run. For one thread.

    A bucket that is full again is like one that never was, so those are forgotten first; beyond `most` the one longest unused
    is, and begins full.
    """

    def __init__(self, burst: int, rate: float, clock: Callable[[], float] = time.monotonic, most: int = MOST) -> None:
        self.burst, self.rate = burst, rate
        self._clock, self._most = clock, most
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()  # the longest unused first

    def take(self, key: str) -> bool:
        """Whether this key may do one thing more; if so it is counted."""
        bucket = self._of(key)
        if bucket.left < 1:
            return False
        bucket.left -= 1
        return True

    def wait(self, key: str) -> float:
        """Seconds until this key may do one thing more, 0 when it may now."""
        return max(0.0, (1 - self._of(key).left) / self.rate)

    def __len__(self) -> int:
        return len(self._buckets)

    def _of(self, key: str) -> Bucket:
        """The bucket of a key as it is now, the last used from now on."""
        now = self._clock()
        bucket = self._buckets.setdefault(key, Bucket(self.burst, now))
        bucket.left, bucket.at = min(self.burst, bucket.left + (now - bucket.at) * self.rate), now
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._most:
            self._forget(now)
        return bucket

    def _forget(self, now: float) -> None:
        """Forget what is full again; and if that is none, the one longest unused."""
        for key, bucket in list(self._buckets.items()):
            if now - bucket.at <= self.burst / self.rate:
                break  # it was used so lately that it need not be full, and those behind it later still
            del self._buckets[key]
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
