"""How much the updates that left a site can have told of it, over all its runs and requests.

    requests/updates.json    how many updates left, by the multiplier z of their noise ("0.0": without)

**What is protected is everything that the site learns from, at once**: whichever images it had in place of its own, the
coordinator sees the same updates with nearly the same probability. That is differential privacy at the level of the site, or
local differential privacy (Kasiviswanathan et al., 2011). Two clipped updates differ by at most 2·C, so noise of z·C is one
of z/2 for each unit of sensitivity. (Libraries that speak of a client that is there or not count C, and tell less for the
same noise; here it is known that the site takes part.) Each update is a Gaussian mechanism of Rényi divergence 2α/z² at order
α (Mironov, 2017, corollary 3). Divergences add up, also where a question follows from earlier answers (proposition 1), and
Opacus turns their sum into ε at a δ (Balle et al., 2020, theorem 21). No update is taken at random out of several, so nothing
is amplified.

Only weights' changes are counted. What else a reply tells (losses, numbers of images, audits, seconds) has no noise.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from excise.client.database import exclusively
from excise.client.permission import Forbidden
from excise.client.policy import UpdatePrivacySettings
from excise.common.errors import DataError, SiteError
from excise.common.files import write_atomically

ORDERS = tuple(1 + 10 ** (k / 20) for k in range(-120, 81))
"""Orders α among which the best is taken, 1 + 10⁻⁶ to 1 + 10⁴: small ones for little noise, large ones for much."""


@dataclass(frozen=True)
class Spent:
    """What the updates of a site come to.

    Attributes
    ----------
    updates : updates that left
    bare : of them those without noise, of which no bound can be told
    epsilon : ε of those with noise, at `delta`
    """

    updates: int
    bare: int
    epsilon: float
    delta: float


def epsilon(counts: Mapping[float, int], delta: float) -> float:
    """ε at `delta` of so many updates with noise of each multiplier; 0 for none, infinite when one of them has none."""
    counts = {z: n for z, n in counts.items() if n}
    if not counts:
        return 0.0
    if 0.0 in counts:
        return math.inf
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent  # seconds: only who adds noise waits for them

    rdp = sum(compute_rdp(q=1.0, noise_multiplier=z / 2, steps=n, orders=ORDERS) for z, n in counts.items())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order")  # at the end of our orders ε is larger than it need be
        found, _ = get_privacy_spent(orders=ORDERS, rdp=rdp, delta=delta)
    return max(0.0, float(found))


class Accountant:
    """Counts the updates that leave a site.

    Parameters
    ----------
    folder : of the site, where site.toml is
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "requests" / "updates.json"

    def check(self, privacy: UpdatePrivacySettings) -> None:
        """Refuse a round, before it is worked on, whose update could not leave.

        Raises
        ------
        Forbidden : one update more would exceed `max_epsilon`
        DataError : the counts are damaged
        """
        self._with_one_more(privacy)

    def count(self, privacy: UpdatePrivacySettings) -> None:
        """Count an update that is about to leave; it is on disk when this returns. Raises as `check` does.

        Raises
        ------
        StorageError : it cannot be counted
        """
        with exclusively(self.path):
            counts = self._with_one_more(privacy)
            write_atomically(self.path, json.dumps({str(z): n for z, n in counts.items()}))

    def spent(self, delta: float) -> Spent:
        """What all updates so far come to at `delta`.

        Raises
        ------
        DataError : the counts are damaged
        """
        counts = self._counts()
        noisy = {z: n for z, n in counts.items() if z}
        return Spent(sum(counts.values()), counts.get(0.0, 0), epsilon(noisy, delta), delta)

    def _with_one_more(self, privacy: UpdatePrivacySettings) -> dict[float, int]:
        """The counts with one update more under `privacy`."""
        counts, z = self._counts(), privacy.noise_multiplier
        counts[z] = counts.get(z, 0) + 1
        if privacy.max_epsilon is not None:
            told = epsilon({z: n for z, n in counts.items() if z}, privacy.delta)
            if told > privacy.max_epsilon:
                raise Forbidden(
                    SiteError.FORBIDDEN,
                    f"with one update more ε would be {told:.4g} at δ = {privacy.delta:g}; policy.privacy.max_epsilon = "
                    f"{privacy.max_epsilon:g}",
                )
        return counts

    def _counts(self) -> dict[float, int]:
        if not self.path.exists():
            return {}
        try:
            counts = {float(z): int(n) for z, n in json.loads(self.path.read_text()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{self.path} is damaged: put it back from your backup; no update leaves before") from error
        if not all(n >= 0 and 0 <= z < math.inf for z, n in counts.items()):
            raise DataError(f"{self.path} holds numbers that are none of updates: put it back from your backup")
        return counts
