"""Lines of the audit log in words."""

from __future__ import annotations

from typing import Any

import pytest

from excise.server.dashboard.trail import Line, told


def line(event: str, **fields: Any) -> Line:
    return told({"line": 3, "at": "2026-11-26T12:00:00+00:00", "event": event, "hash": "ab", "before": "cd", **fields})


def test_what_says_nothing_is_left_out() -> None:
    assert line("site runs", site="st-mary", model=None, release="0.1.0").details == (
        ("site", "st-mary"),
        ("release", "0.1.0"),
    )
    assert line("request drafted", request="mr7", sites=["a", "b"], by="Ada", why="") == Line(
        3, "2026-11-26T12:00:00+00:00", "request drafted", "Ada", "mr7", (("request", "mr7"), ("sites", "a, b"))
    )
    assert line("request decided", sites=[], now={"mr7": "approved", "mr8": None}).details == (("now", "mr7 approved"),)


@pytest.mark.parametrize(
    ("event", "fields", "who", "about"),
    [
        ("signed in", {"user": "ada", "address": "::1"}, "ada", ""),
        ("sign-in failed", {"user": "", "address": "::1"}, "an unknown name", ""),
        ("locked out", {"user": "", "address": "::1"}, "whoever is at ::1", ""),
        ("user removed", {"user": "max", "by": "ada"}, "ada", "max"),
        ("request approved", {"requests": ["mr7", "mr1"], "by": "ada"}, "ada", "mr7, mr1"),
        ("a line that cannot be read", {}, "", ""),
    ],
)
def test_who_did_it_and_to_what(event: str, fields: dict[str, Any], who: str, about: str) -> None:
    assert (line(event, **fields).who, line(event, **fields).about) == (who, about)


def test_a_line_that_somebody_wrote_into_the_log_is_shown_as_it_is() -> None:
    odd = told({"line": 1, "event": ["x", 7], "at": 5, "by": {"a": True}, "more": 1.5, "user": "eve"})
    assert odd == Line(1, "", "x, 7", "a yes", "eve", (("user", "eve"), ("more", "1.5")))
