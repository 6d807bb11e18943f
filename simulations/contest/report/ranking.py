"""Mean ranks over all scenarios and seeds, and how sure they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from excise.server.report import three
from excise.simulations.contest.report.contests import Contest, Measure
from excise.simulations.contest.report.standing import mean
from excise.simulations.judging.bootstrap import Interval
from excise.simulations.judging.ranking import ALPHA, Friedman, cliques, critical_difference, friedman

ENOUGH, SEVERAL = 10, 3
"""Blocks (scenario × seed), and scenarios, from which on a critical difference is told (Demšar, 2006: some 10 blocks)."""


@dataclass(frozen=True)
class Overall:
    """Ranks of methods over blocks.

    Attributes
    ----------
    measure : by what they are ranked
    ranks : mean rank of each method and its bootstrap interval over the blocks, best first; 1 is best
    kinds : of each of them (`Runs.kind`)
    blocks, scenarios : over how many
    left_out : methods that some of the blocks have no record of
    failed : methods that failed in a block, and are last there
    test, difference, groups : Friedman's test, the critical difference and the groups it does not tell apart; None and
        nothing where there are too few blocks
    """

    measure: Measure
    ranks: Mapping[str, Interval]
    kinds: Mapping[str, str]
    blocks: int
    scenarios: int
    left_out: tuple[str, ...]
    failed: tuple[str, ...]
    test: Friedman | None = None
    difference: float | None = None
    groups: tuple[tuple[str, ...], ...] = ()

    @property
    def words(self) -> str:
        """Which picture this is, and what the test says."""
        over = f"{self.blocks} block{'s' if self.blocks > 1 else ''} (scenario × seed), {len(self.ranks)} methods"
        if self.test is None or self.difference is None:
            sure = "bars are 95 % bootstrap intervals over the blocks" if self.blocks > 1 else "one block has no interval"
            text = (
                f"By {self.measure.name}, over {over}: an interval plot, since a critical difference needs {ENOUGH} blocks of "
            )
            text += f"{SEVERAL} scenarios or more; {sure}."
        else:
            differ = "differ" if self.test.p_f < ALPHA else "are not shown to differ"
            text = (
                f"By {self.measure.name}, over {over}: a critical-difference diagram. The methods {differ} (Friedman's "
                f"test, Iman and Davenport's F, p {_p(self.test.p_f)}); mean ranks less than {self.difference:.2f} apart are "
                "not told apart (Nemenyi, 5 %), and share a bar. Seeds of one scenario are alike, so both tests are too sure."
            )
        if self.failed:
            text += f" Last where they failed: {'; '.join(self.failed)}."
        if self.left_out:
            text += f" Left out, since some block lacks them: {'; '.join(self.left_out)}."
        return text


def overall(contests: Sequence[Contest], measure: Measure) -> Overall | None:
    """Ranks over all contests; None where fewer than two methods are in all of them."""
    named = sorted({name for one in contests for name, runs in one.methods.items() if runs.kind != "gold"})
    complete, failed = [], []
    for name in named:
        runs = [(one, one.methods.get(name)) for one in contests]
        if all(of is not None and (of.failed or name in one.ranked(measure)) for one, of in runs):
            complete.append(name)
            if any(of is not None and of.failed for _, of in runs):
                failed.append(name)
    if len(complete) < 2:
        return None
    rows = []
    for one in contests:
        shortfalls = one.ranked(measure)
        # One that failed is worse than any model can be.
        rows += [[shortfalls[name][i] if name in shortfalls else 2.0 for name in complete] for i in range(len(one.seeds))]
    rank_BM = rankdata(np.array(rows), axis=1)
    of = {name: mean(tuple(map(float, rank_BM[:, i]))) for i, name in enumerate(complete)}
    of = dict(sorted(of.items(), key=lambda pair: (pair[1].mean, pair[0])))
    left_out = tuple(name for name in named if name not in complete)
    kinds = {name: contests[0].methods[name].kind for name in of}
    plain = Overall(measure, of, kinds, len(rows), len(contests), left_out, tuple(failed))
    if len(rows) < ENOUGH or len(contests) < SEVERAL:
        return plain
    apart = critical_difference(len(complete), len(rows))
    groups = tuple(cliques({name: rank.mean for name, rank in of.items()}, apart))
    return replace(plain, test=friedman(rows), difference=apart, groups=groups)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {three(value)}"
