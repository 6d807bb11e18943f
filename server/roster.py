"""Which sites take part in a run: those that were there at its start, those that leave and come back, those that come later.

Flower knows nodes; a site is known by the name in its status. So a node is asked for its status before anything else: all of
them at the start, later only those that nobody knows, and those only while a site is missing. A run that nobody disturbs asks
for no status twice, and its sites and their weights stay what they were.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Protocol

from flwr.serverapp import Grid

from excise.common import messages as m
from excise.common.errors import DataError, Interrupted, NothingToForget, QuorumError, UpdateRefused
from excise.server.plan import Plan
from excise.server.rounds import NO_ANSWER, Refusal, RoundResult, advice
from excise.server.vigil import Awaiting, Vigil

HELLO = 30.0
"""Seconds that a round waits at most for the status of nodes that are new. Flower needs six for any answer; a site that
prepares its images first takes longer, and is asked again."""
AGAIN = 600.0
"""Seconds after which such a node is asked again: with `HELLO`, one that never answers costs a run a twentieth of its time."""
LOOK = 0.5
"""Seconds between looks at which nodes are connected."""
NAME_TAKEN, NOT_IN_PLAN = "name_taken", "not_in_plan"


class Ask(Protocol):
    """Asks nodes, by a name for each, for their status; see `Federation.ask_status`."""

    def __call__(
        self, nodes: Mapping[str, int], use: Callable[[str, m.SiteStatus], None], limit: float | None
    ) -> RoundResult[m.SiteStatus]: ...


class Roster:
    """The sites of one plan.

    Parameters
    ----------
    event : writes an event of the run
    ask : asks nodes for their status
    arrived : told of a site that came after the start, or came back as another node: it may have missed what the others got

    Attributes
    ----------
    nodes : Flower's node id of each site that was heard, by its name
    status : what each said of itself
    away : those of them that are not connected now
    """

    def __init__(
        self,
        grid: Grid,
        plan: Plan,
        event: Callable[..., None],
        ask: Ask,
        arrived: Callable[[str], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._grid, self._plan, self._event, self._ask, self._stopped = grid, plan, event, ask, stopped
        self._arrived = arrived
        self.nodes: dict[str, int] = {}
        self.status: dict[str, m.SiteStatus] = {}
        self.away: set[str] = set()
        self._asked: dict[int, float] = {}  # when each node was last asked for its status
        self._turned_away: set[int] = set()

    # ---- at the start -------------------------------------------------------------------------------------------------

    def gather(self) -> None:
        """Wait for the sites and ask each for its name and its numbers of images.

        Raises
        ------
        NothingToForget : no training image at any site matches the request
        QuorumError : too few sites are there, or answer
        DataError : two sites have one name, the sites do not agree on the classes, or nothing would be retained
        Interrupted : Ctrl-C
        """
        by_node = self._called(self._wait_for_nodes())

        def hear(node: str, status: m.SiteStatus) -> None:
            self._check_name(by_node[node], status)
            if self._plan.site_names and status.site not in self._plan.site_names:
                raise UpdateRefused(NOT_IN_PLAN, f"'{status.site}' is no site of this run")
            if status.site in self.nodes:
                raise DataError(f"two sites call themselves '{status.site}'; give each its own name in site.toml")
            self._enter(status, by_node[node])

        self._asked |= dict.fromkeys(by_node.values(), time.monotonic())
        try:
            refused = self._ask(by_node, hear, None).refused
        except QuorumError as error:  # may know missing sites by their node ids alone
            answered = {name for name, code in zip(error.missing, error.codes, strict=True) if code != NO_ANSWER}
            silent = tuple(site for site in self.missing if site not in answered)
            known = f"\nHeard from: {', '.join(self.nodes) or 'nobody'}." + (
                f" Silent: {', '.join(silent)}." if silent else ""
            )
            raise QuorumError(f"{error}{known}", tuple(self.missing) or error.missing) from error
        self._check_quorum(refused)
        classes = {s.classes for s in self.status.values()}
        if len(classes) > 1:
            raise DataError(f"the sites do not agree on the classes: {'; '.join(map(str, sorted(classes)))}")
        self._event("status", sites=self.counts())
        self._check_something_to_do()

    def _wait_for_nodes(self) -> list[int]:
        """Nodes of the grid, once there are as many as the plan expects; at the deadline of a round, if they are a quorum."""
        plan, before = self._plan, 0

        def tell(awaited: tuple[list[str], int], since: str) -> None:
            sites, connected = awaited
            self._event("awaiting", round="status", sites=sites, connected=connected, of=plan.sites, since=since)

        vigil, deadline = Vigil(tell), time.monotonic() + plan.rounds.deadline
        while True:
            nodes = self._connected()
            over = time.monotonic() > deadline
            if len(nodes) >= plan.sites or (over and len(nodes) >= plan.rounds.quorum * plan.sites):
                return sorted(nodes)
            silent = self._not_named(nodes.values())
            if over:
                raise QuorumError(
                    f"{len(nodes)} of {plan.sites} sites connected; start the others and run again"
                    + (f". Not connected: {', '.join(silent)}" if silent else ""),
                    tuple(silent),
                )
            if len(nodes) != before:
                vigil.news()
            before = len(nodes)
            vigil.look((silent, len(nodes)))
            self._pause()

    def _called(self, nodes: Iterable[int]) -> dict[str, int]:
        """Nodes by what to call them before they were heard: the name that each was let in under, else its number."""
        names = {node.node_id: node.name for node in self._grid.get_nodes()}
        let_in = Counter(names.values())
        return {
            names[node] if names.get(node) and let_in[names[node]] == 1 else f"node-{node}": node for node in sorted(nodes)
        }

    def _connected(self) -> dict[int, str]:
        """Nodes that are connected, with the name under which each was let in.

        Those of other sites than the plan's are none of them: nobody there is asked, or learns of the request.
        """
        named = {node.node_id: node.name for node in self._grid.get_nodes()}
        wanted = set(self._plan.site_names)
        return {node: name for node, name in named.items() if not wanted or not name or name in wanted}

    def _not_named(self, names: Iterable[str]) -> list[str]:
        """Sites of the plan of which no node has the name; none when Flower, as in a simulation, knows no node by a name."""
        there = {name for name in names if name}
        return sorted(set(self._plan.site_names) - there) if there else []

    def _check_quorum(self, refused: Iterable[Refusal]) -> None:
        """The quorum of all sites of the plan: those that answered may be one of those that are connected."""
        if len(self.nodes) < self._plan.rounds.quorum * self._plan.sites:
            known = list(refused)
            absent = [Refusal(site, NO_ANSWER) for site in self.missing if site not in {one.site for one in known}]
            raise QuorumError(
                f"{len(self.nodes)} of {self._plan.sites} sites answered; the quorum is {self._plan.rounds.quorum:.0%}. "
                f"Missing: {', '.join(f'{one.site} ({one.code})' for one in [*known, *absent])}. {advice([*known, *absent])}",
                tuple(self.missing),
            )

    def _check_something_to_do(self) -> None:
        plan, status = self._plan, self.status.values()
        if sum(s.forget for s in status) == 0:
            never = sum(s.excluded for s in status)
            raise NothingToForget(
                f"no training image at any of {len(self.nodes)} sites matches: {plan.request.where}\n"
                f"({never} images that were never trained on match.) Nothing was changed; check the predicate."
            )
        for i, part in enumerate(plan.parts):
            if sum(s.parts[i] for s in status if len(s.parts) > i) == 0:
                raise NothingToForget(f"no training image at any site matches '{part.id}': {part.where}\nNothing was changed.")
        if sum(s.retain for s in status) == 0:
            raise DataError("every training image at every site matches the request: nothing would be left of the model")

    # ---- before each round --------------------------------------------------------------------------------------------

    def present(self, sites: Iterable[str], awaiting: Awaiting) -> dict[str, int | None]:
        """Node id of each of `sites`, None of one that is not connected.

        While too few for a quorum are connected it waits, to the deadline of a round, before any of them works in vain.

        Raises
        ------
        QuorumError : too few even then
        Interrupted : Ctrl-C
        """
        sites, vigil = list(sites), Vigil[list[str]](awaiting)
        deadline = time.monotonic() + self._plan.rounds.deadline
        while True:
            self._look()
            away = [site for site in sites if site in self.away]
            if len(sites) - len(away) >= self._plan.rounds.quorum * len(sites):
                return {site: None if site in self.away else self.nodes[site] for site in sites}
            if time.monotonic() > deadline:
                raise QuorumError(
                    f"{len(sites) - len(away)} of {len(sites)} sites are connected; the quorum is "
                    f"{self._plan.rounds.quorum:.0%}. Missing: {', '.join(away)}. "
                    + advice(Refusal(site, NO_ANSWER) for site in away),
                    tuple(away),
                )
            vigil.look(away)
            self._pause()

    def _look(self) -> None:
        """Note who left and who is back, and meet nodes that are new while somebody is missing."""
        connected = set(self._connected())
        for site, node in self.nodes.items():
            if node in connected and site in self.away:
                self.away.remove(site)
                self._event("returned", site=site)
            elif node not in connected and site not in self.away:
                self.away.add(site)
                self._event("left", site=site)
        if self.away or len(self.nodes) < self._plan.sites:
            now = time.monotonic()
            unknown = connected - set(self.nodes.values()) - self._turned_away
            if due := sorted(node for node in unknown if now - self._asked.get(node, -AGAIN) >= AGAIN):
                self._meet(self._called(due))

    def _meet(self, nodes: Mapping[str, int]) -> None:
        self._asked |= dict.fromkeys(nodes.values(), time.monotonic())
        with suppress(QuorumError):  # none of them answered: the round is held with those who are known
            self._ask(nodes, lambda name, status: self._hear(nodes[name], status), HELLO)

    def _hear(self, node: int, status: m.SiteStatus) -> None:
        """A node that is new says which site it is."""
        self._check_name(node, status)
        site, known = status.site, status.site in self.nodes
        if code := self._unfit(status):
            if code != NAME_TAKEN:  # it may be free later: Flower takes a minute to see that a node is gone
                self._turned_away.add(node)
            self._event("refused", round="status", site=site, code=code)
            return
        self.away.discard(site)
        self._enter(status, node)
        self._arrived(site)
        self._event("returned" if known else "joined", site=site, counts=self.counts()[site])

    def _check_name(self, node: int, status: m.SiteStatus) -> None:
        """A site that was let in under one name does not speak under another; in a simulation nodes have no names.

        Raises
        ------
        UpdateRefused : it does
        """
        (name,) = {known.name for known in self._grid.get_nodes() if known.node_id == node} or {""}
        if name and name != status.site:
            raise UpdateRefused("another_name", f"the site that was let in as '{name}' calls itself '{status.site}'")

    def _unfit(self, status: m.SiteStatus) -> str:
        """Why a site that comes later cannot take part; empty when it can."""
        if status.site in self.nodes and status.site not in self.away:
            return NAME_TAKEN
        if self._plan.site_names and status.site not in self._plan.site_names:
            return NOT_IN_PLAN
        return "other_classes" if {s.classes for s in self.status.values()} - {status.classes} else ""

    # ---- what is known of them ----------------------------------------------------------------------------------------

    def _enter(self, status: m.SiteStatus, node: int) -> None:
        # In the order of their names, whenever they came: sums over sites depend on it.
        self.nodes = dict(sorted({**self.nodes, status.site: node}.items()))
        self.status = dict(sorted({**self.status, status.site: status}.items()))

    @property
    def missing(self) -> list[str]:
        """Sites of the plan that were not heard, as far as it names them."""
        return sorted(set(self._plan.site_names) - set(self.nodes))

    def commitments(self) -> dict[str, str]:
        """The keyed hash with which each site committed to its forget set, of those that told one."""
        return {site: status.commitment for site, status in self.status.items() if status.commitment}

    def code(self) -> dict[str, dict[str, str]]:
        """Release and source digest that each site told."""
        return {site: {"release": status.release, "source_sha256": status.source} for site, status in self.status.items()}

    def counts(self) -> dict[str, dict[str, int]]:
        """Numbers of images of each site, as they go into results and events."""
        keys = ("train", "forget", "retain", "reference", "held_out", "excluded", "skipped", "forgotten")
        return {site: {key: int(getattr(status, key)) for key in keys} for site, status in self.status.items()}

    def _pause(self) -> None:
        if self._stopped():
            raise Interrupted("stopped by Ctrl-C")
        time.sleep(LOOK)
