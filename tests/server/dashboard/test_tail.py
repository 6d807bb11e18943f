from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import excise.server
from excise.server import events
from excise.server.dashboard.kinds import KINDS, event_of, parsed
from excise.server.dashboard.tail import Tail
from excise.server.post import LATE, REPEATED, STRAY

AT = "2026-01-01T10:00:00.000+00:00"


def line(kind: str = "left", **details: Any) -> bytes:
    return json.dumps({"at": AT, "event": kind, **({"site": "a"} | details)}).encode() + b"\n"


def test_every_kind_that_is_written_is_known() -> None:
    source = "".join(path.read_text() for path in Path(excise.server.__file__).parent.rglob("*.py"))
    found = re.findall(r'event\(\s*"(\w+)"(?: if \w+ else "(\w+)")?', source)
    by_name = {events.FAILED, events.STOPPED, LATE, REPEATED, STRAY}
    assert {kind for pair in found for kind in pair if kind} | by_name == set(KINDS)


def test_events_of_a_real_run_are_all_events(made: Path) -> None:
    for name in ("one", "two"):
        news = Tail(made / name / "events.jsonl").read()
        assert news.malformed == 0
        assert news.events == events.events_of(made / name)


@pytest.mark.parametrize(
    "bad",
    [
        b"not json",
        b"[1, 2]",
        b"5",
        b'{"at": "2026-01-01T10:00:00+00:00"}',
        b'{"event": "left", "site": "a"}',
        b'{"at": "yesterday", "event": "left", "site": "a"}',
        b'{"at": "2026-01-01T10:00:00", "event": "left", "site": "a"}',  # of which zone?
        line(site=5).strip(),
        line(site="x" * 30_000).strip(),
        line("awaiting", round="audit", sites="all", since=AT).strip(),
        line("awaiting", round="audit", sites=["a"], since="long ago").strip(),
        line("refused", round="audit", code="c", number=-1).strip(),
        line("unlearned_round", candidate="c", round="1").strip(),
        line("status", sites={"a": {"train": 1.5}}).strip(),
        line("class_mix", distance=True).strip(),
        b'{"at": "2026-01-01T10:00:00+00:00", "event": "class_mix", "distance": NaN}',
        b'{"at": "2026-01-01T10:00:00+00:00", "event": "class_mix", "distance": 1e999}',
        b'{"at": "2026-01-01T10:00:00+00:00", "event": "class_mix", "distance": ' + b"9" * 5000 + b"}",
        line("class_mix", distance=10**400).strip(),
        line("checkpoint_damaged", phase="p", rounds=10**16).strip(),
        b'{"at": "2026-01-01T10:00:00+00:00", "event": "left", "site": "\\ud800"}',
        b'{"at": "2026-01-01T10:00:00+00:00", "event": "left", "site": "\xff"}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_event_is_counted(bad: bytes, tmp_path: Path) -> None:
    (tmp_path / "e").write_bytes(line() + bad + b"\n" + line(site="b"))
    news = Tail(tmp_path / "e").read()
    assert [event["site"] for event in news.events] == ["a", "b"]
    assert news.malformed == 1


def test_an_event_of_a_kind_to_come_is_let_through() -> None:
    assert event_of(line("reincarnated")) is not None


def test_a_pair_of_halves_is_a_character() -> None:
    assert parsed(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_a_torn_line_waits_and_then_counts(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line() + line(site="b")[:20])
    tail = Tail(path)
    assert (len(tail.read().events), tail.read()) == (1, ([], 0, False))
    with path.open("ab") as file:
        file.write(line(site="b")[20:])
    assert [event["site"] for event in tail.read().events] == ["b"]
    with path.open("ab") as file:
        file.write(b'{"at": "20')
    assert tail.read() == ([], 0, False)
    events.add(tmp_path, "left", site="c")  # another process goes on
    news = tail.read()
    assert ([event["site"] for event in news.events], news.malformed) == (["c"], 1)


def test_a_file_that_is_cut_replaced_or_removed_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "e"
    path.write_bytes(line() + line(site="b"))
    tail = Tail(path)
    assert not tail.read().anew
    path.write_bytes(line(site="c"))  # shorter
    assert (news := tail.read()).anew
    assert [event["site"] for event in news.events] == ["c"]
    path.write_bytes(line(site="d") + line(site="e"))  # of one inode, and longer
    assert (news := tail.read()).anew
    assert [event["site"] for event in news.events] == ["d", "e"]
    (tmp_path / "new").write_bytes(line(site="d") + line(site="e") + line(site="f"))
    (tmp_path / "new").replace(path)  # begins the same, is another file
    assert (news := tail.read()).anew
    assert len(news.events) == 3
    path.unlink()
    assert tail.read() == ([], 0, True)
    assert tail.read() == ([], 0, False)


def test_a_file_that_is_not_there_yet_is_read_when_it_is(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "e")
    assert tail.read() == ([], 0, False)
    (tmp_path / "e").write_bytes(line())
    assert len(tail.read().events) == 1


@given(
    lines=st.lists(
        st.sampled_from([line(), line(site="b"), b"\n", b"bad\n", b"\xff\n", line("status", sites={})]), max_size=12
    ),
    torn=st.sampled_from([b"", b'{"at"']),
    cuts=st.lists(st.integers(0, 900), max_size=8),
)
def test_whatever_pieces_the_bytes_come_in_the_events_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], torn: bytes, cuts: list[int]
) -> None:
    content, path = b"".join(lines) + torn, tmp_path_factory.mktemp("tail") / "e"
    tail, seen, malformed = Tail(path), list[Any](), 0
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(content)], strict=True):
        with path.open("ab") as file:
            file.write(content[start : max(start, end)])
        news = tail.read()
        seen += news.events
        malformed += news.malformed
        assert not news.anew
    at_once = Tail(path).read()
    assert path.read_bytes() == content
    assert (seen, malformed) == (at_once.events, at_once.malformed)
