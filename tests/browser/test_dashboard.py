"""The dashboard in a real browser: it is live, people act through it, it breaks no rule, and it finds back by itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from excise.server.evidence import seal
from excise.server.life import State
from excise.server.members import invite
from excise.server.registry import version
from excise.server.requests import draft, move, status
from excise.simulations.bench.browser import faults
from tests.browser.conftest import Open
from tests.candidates import ran, signed
from tests.coordinators import DEVICE, OTHER, Network, ready
from tests.dashboards import OTHER_COORDINATOR, PASSWORD, VIEWER, app_of, serving, with_users

expect.set_options(timeout=30_000)  # how long things take is measured by excise bench, not here
PAGES = ("/", "/requests", "/requests/mr7", "/sites", "/compare", "/embeddings", "/audit", "/reports")
GONE = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE", "htmx:")
"""What Chromium's console says while the server is away."""
REFUSED = ("403 (Forbidden)", "409 (Conflict)", "401 (Unauthorized)", "Response Status Error Code")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a coordinator with a run, which each test has a copy of."""
    folder = tmp_path_factory.mktemp("prepared")
    with ready(folder) as one:
        run = ran(one, DEVICE)
        seal(one.store, one.folder, one.config, run)
        signed(one, run, "a", "b")
        with_users(one)
    return folder


def event(made: Network, kind: str, **details: object) -> None:
    """What the run tells next."""
    told = {"at": "2026-11-26T12:00:00.000+00:00", "event": kind, **details}
    with (made.config.runs / "mr7" / "events.jsonl").open("a") as file:
        file.write(json.dumps(told) + "\n")


def live(page: Page) -> None:
    expect(page.locator("#live")).to_have_text("live", timeout=30_000)


def drawn(page: Page, kind: str) -> int:
    """How often a chart was drawn."""
    return int(page.locator(f"[data-part='chart:{kind}']").get_attribute("data-drawn") or 0)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_is_for_everybody(url: str, opened: Open, theme: str) -> None:
    with opened(url, color_scheme=theme) as page:
        assert page.evaluate("() => document.documentElement.dataset.theme") == theme
        for path in PAGES:
            page.goto(url + path)
            live(page)
            assert faults(page) == [], path
    with opened(url, name="", color_scheme=theme) as page:
        page.goto(f"{url}/login")
        assert faults(page) == []


@pytest.mark.parametrize(("width", "height"), [(1366, 768), (1024, 768), (390, 844)])
def test_a_page_is_as_wide_as_the_window(url: str, opened: Open, width: int, height: int) -> None:
    with opened(url, width=width, height=height) as page:
        for path in PAGES:
            page.goto(url + path)
            live(page)
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width, path
            if width < 500:  # tables scroll within their cards, by the keyboard as well
                assert faults(page) == [], path
            if width < 1000:
                assert page.evaluate("() => document.querySelector('nav').getBoundingClientRect().height") < 60, path
        page.goto(url)
        live(page)
        if width == 1366:  # one glance, without scrolling
            assert page.evaluate("() => document.querySelector('.overview').getBoundingClientRect().bottom") <= height


def test_the_keyboard_reaches_everything_and_skips_the_frame(url: str, opened: Open) -> None:
    with opened(url) as page:
        live(page)
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.evaluate("() => document.activeElement.id") == "main"
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("() => document.activeElement.textContent.trim()"))
        assert {"Evidence", "Decide…", "mr7"} <= reached


def test_a_run_that_goes_on_is_shown_in_every_tab(made: Network, url: str, opened: Open) -> None:
    with opened(url) as page:
        tabs = [page, *(page.context.new_page() for _ in range(6))]  # one more than Chromium has connections
        for tab in tabs:
            tab.goto(url)
            live(tab)
        before = drawn(page, "heat")
        event(made, "awaiting", round="unlearned", number=1, sites=["b"], since="2026-11-26T11:59:00.000+00:00")
        for tab in tabs:
            expect(tab.locator(".headline")).to_contain_text("awaits b since", timeout=30_000)
        heat = "document.querySelector('[data-part=\"chart:heat\"]')"
        page.wait_for_function(f"() => Number({heat}.dataset.drawn) > {before}")


def test_a_request_is_typed_checked_and_sent(made: Network, url: str, opened: Open) -> None:
    with opened(url, expected=REFUSED) as page:
        page.goto(f"{url}/requests")
        live(page)
        page.get_by_label("Id").fill("mr1")
        page.get_by_label("Kind").select_option("device")
        page.get_by_label("Forget where").press_sequentially("StationName = = MR1")
        expect(page.locator("#checked")).to_contain_text("✗")
        page.get_by_label("Forget where").fill("StationName = MR1")
        expect(page.locator("#checked")).to_contain_text("✓")
        page.get_by_label("Reason").fill("retired too")
        page.get_by_label("a", exact=True).check()
        held: list[Route] = []

        def hold(route: Route) -> None:
            held.append(route)

        page.route("**/do/draft", hold)
        page.get_by_role("button", name="Send for approval").click()
        expect(page.get_by_role("button", name="Sending…")).to_be_disabled()
        assert page.locator("form[aria-busy=true]").count() == 1
        held[0].continue_()
        expect(page.locator("#said")).to_contain_text("'mr1' is drafted; it waits for a")
        expect(page.get_by_role("button", name="Send for approval")).to_be_enabled()
        assert page.locator("[aria-busy]").count() == 0
        for field in ("Id", "Forget where", "Reason"):  # it is not sent again by mistake
            expect(page.get_by_label(field)).to_have_value("")
        expect(page.locator("#checked")).to_be_empty()
        expect(page.locator("#all-requests")).to_contain_text("mr1")  # by itself
    assert status(made.store, "mr1").sites == {"a": "pending"}


def test_a_model_is_approved_with_reason_and_password(made: Network, url: str, opened: Open) -> None:
    with opened(url, expected=REFUSED) as page:
        live(page)
        page.get_by_role("link", name="Decide…").click()
        live(page)
        page.get_by_role("button", name="Approve…").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text(version(made.store).digest)
        dialog.get_by_label("Reason").fill("it forgot")
        dialog.get_by_label("Your password").fill("another password")
        dialog.get_by_role("button", name="Approve").click()
        expect(dialog.get_by_role("alert")).to_have_text("✗ the password is wrong")
        expect(dialog.get_by_role("alert")).to_be_focused()
        assert faults(page) == []
        assert page.locator("#said").text_content() == ""
        assert dialog.get_by_label("Reason").input_value() == "it forgot"  # what was typed is kept
        dialog.get_by_label("Your password").fill(PASSWORD)
        dialog.get_by_role("button", name="Approve").click()
        expect(page.locator("#said")).to_contain_text("Model 2 is in use", timeout=30_000)
        expect(page.locator("#standing")).to_contain_text("promoted")
        page.get_by_role("button", name="Roll back…").click()
        dialog.get_by_label("Reason").fill("it was worse")
        dialog.get_by_label("Your password").fill(PASSWORD)
        dialog.get_by_role("button", name="Roll back").click()
        expect(page.locator("#said")).to_contain_text("Model 1 is in use again")
    assert status(made.store, "mr7").state is State.ROLLED_BACK


def test_who_is_late_is_told_and_sees_how_it_is(made: Network, url: str, opened: Open) -> None:
    with opened(url, expected=REFUSED) as page:
        page.goto(f"{url}/requests/mr7")
        live(page)
        page.get_by_role("button", name="Reject…").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Reason").fill("no")
        dialog.get_by_label("Your password").fill(PASSWORD)
        move(made.store, ["mr7"], State.REJECTED, OTHER_COORDINATOR, "quicker")
        expect(page.locator("#standing")).to_contain_text("rejected")
        dialog.get_by_role("button", name="Reject").click()
        expect(dialog.get_by_role("alert")).to_contain_text(re.compile(f"rejected by now, since .* by {OTHER_COORDINATOR}"))


def test_an_unreachable_server_is_told_in_the_dialog(url: str, opened: Open) -> None:
    with opened(url, expected=GONE) as page:
        page.goto(f"{url}/requests/mr7")
        live(page)
        page.get_by_role("button", name="Reject…").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Reason").fill("no")
        dialog.get_by_label("Your password").fill(PASSWORD)
        page.route("**/do/reject", lambda route: route.abort("connectionrefused"))
        dialog.get_by_role("button", name="Reject").click()
        expect(dialog.get_by_role("alert")).to_contain_text("The server does not answer")
        dialog.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Reject…").click()
        expect(dialog.get_by_role("alert")).to_be_empty()  # of what was sent before
        assert dialog.get_by_label("Reason").input_value() == "no"


def test_the_button_says_which_theme_is_on(url: str, opened: Open) -> None:
    with opened(url, color_scheme="light") as page:
        live(page)
        button = page.get_by_role("button", name="Theme: light")
        expect(button).to_have_text("☀ Light")
        button.click()
        expect(page.get_by_role("button", name="Theme: dark")).to_have_text("☾ Dark")
        page.reload()
        expect(page.get_by_role("button", name="Theme: dark")).to_have_text("☾ Dark")


def test_viewers_find_nothing_to_press(url: str, opened: Open) -> None:
    with opened(url, VIEWER) as page:
        for path in PAGES:
            page.goto(url + path)
            live(page)
            assert page.locator("[hx-post^='/do/']").count() == 0
            assert page.get_by_role("button", name="…").count() == 0


def test_an_invite_is_shown_once(url: str, opened: Open) -> None:
    with opened(url) as page:
        page.goto(f"{url}/sites")
        live(page)
        page.get_by_label("Name").fill("c")
        page.get_by_role("button", name="Make an invite").click()
        expect(page.locator("#invite-text")).to_have_value(re.compile("BEGIN"))
        expect(page.locator("#all-sites")).to_contain_text("invited")
        page.reload()
        assert page.locator("#invite-text").count() == 0


def test_a_session_that_ended_keeps_what_was_typed(made: Network, opened: Open) -> None:
    app = app_of(made)
    with serving(app) as url, opened(url, expected=REFUSED) as page:
        page.goto(f"{url}/requests")
        live(page)
        page.get_by_label("Reason").fill("a long reason")
        app.state.access.sessions.end_all_of("ada")
        page.get_by_label("Id").fill("mr1")
        page.get_by_label("Forget where").fill("StationName = MR1")
        page.get_by_role("button", name="Send for approval").click()
        expect(page.locator("#said")).to_contain_text("You are not signed in")
        assert page.get_by_label("Reason").input_value() == "a long reason"
        with page.context.expect_page() as opens:
            page.get_by_role("link", name="Sign in in another tab").click()
        other = opens.value
        other.get_by_label("User name").fill("ada")
        other.get_by_label("Password").fill(PASSWORD)
        other.get_by_role("button", name="Sign in").click()
        other.wait_for_url(f"{url}/")
        live(page)  # it has the new session's key by itself
        page.get_by_role("button", name="Send for approval").click()
        expect(page.locator("#said")).to_contain_text("'mr1' is drafted")


def test_a_server_that_is_started_again_is_found_again(made: Network, opened: Open) -> None:
    app = app_of(made)
    with serving(app) as url:
        port = int(url.rpartition(":")[2])
        context = opened(url, expected=(*GONE, *REFUSED))
        page = context.__enter__()
        live(page)
    expect(page.locator("#live")).to_have_text("reconnecting", timeout=30_000)
    draft(made.store, OTHER, (), "tests")  # unseen
    again = app_of(made)
    again.state.access.sessions = app.state.access.sessions  # else they would have to sign in anew
    with serving(again, port):
        live(page)
        expect(page.get_by_role("region", name="Requests")).to_contain_text("mr1", timeout=30_000)
        context.__exit__(None, None, None)


def test_a_malformed_event_is_shown_and_the_page_lives(made: Network, url: str, opened: Open) -> None:
    with opened(url) as page:
        live(page)
        event(made, "unlearned_round", round="<img src=x onerror=alert(1)>")
        event(made, "awaiting", round="unlearned", number=2, sites=["a"], since="2026-11-26T11:59:00.000+00:00")
        expect(page.locator(".headline")).to_contain_text("awaits a since", timeout=30_000)
        expect(page.get_by_label("Problems")).to_contain_text("1 malformed line in events.jsonl")


def test_who_reads_a_list_stays_where_they_are(made: Network, url: str, opened: Open) -> None:
    for number in range(40):
        draft(made.store, OTHER.model_copy(update={"id": f"other-{number:02}"}), (), "tests")
    with opened(url) as page:
        live(page)
        page.get_by_role("region", name="Requests").get_by_role("link", name="other-00").focus()
        page.evaluate("() => { document.querySelector('[data-part=requests] .scroll').scrollTop = 200 }")
        draft(made.store, OTHER.model_copy(update={"id": "another"}), (), "tests")
        expect(page.get_by_role("region", name="Requests")).to_contain_text("another")
        assert page.evaluate("() => document.querySelector('[data-part=requests] .scroll').scrollTop") == 200
        assert page.evaluate("() => document.activeElement.textContent") == "other-00"


@pytest.mark.parametrize("path", ["/audit", "/sites"])
def test_who_reads_a_wide_table_on_a_telephone_stays_where_they_are(made: Network, url: str, opened: Open, path: str) -> None:
    with opened(url, width=390, height=844) as page:
        page.goto(url + path)
        live(page)
        page.evaluate("() => { document.querySelector('.wide').scrollLeft = 60 }")
        invite(made.store, made.folder, made.config, "a-new-site", "tests")
        expect(page.locator(".wide")).to_contain_text("a-new-site")
        page.wait_for_function("() => document.querySelector('.wide').scrollLeft === 60")


def test_what_can_be_done_follows_and_an_open_dialog_is_left_alone(made: Network, url: str, opened: Open) -> None:
    draft(made.store, OTHER, (), "tests")
    with opened(url) as page:
        page.goto(f"{url}/requests/mr1")
        live(page)
        expect(page.get_by_role("button", name="Start…")).to_have_count(0)
        for site in ("a", "b"):
            made.decide(site, OTHER)
        expect(page.get_by_role("button", name="Start…")).to_be_visible()
        expect(page.locator("#steps")).to_contain_text("every site approved")
        page.get_by_role("button", name="Start…").click()
        page.get_by_role("dialog").get_by_label("Settings").fill("[rounds]")
        move(made.store, ["mr1"], State.REJECTED, OTHER_COORDINATOR, "not needed")
        expect(page.locator("#steps")).to_contain_text("not needed")
        assert page.get_by_role("dialog").get_by_label("Settings").input_value() == "[rounds]"


def test_hostile_text_runs_nowhere(made: Network, url: str, opened: Open) -> None:
    hostile = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
    draft(made.store, OTHER.model_copy(update={"reason": hostile}), (), hostile, hostile)
    with opened(url) as page:
        for path in (*PAGES, "/requests/mr1"):
            page.goto(url + path)
            live(page)
            assert page.title() != "taken"
        assert page.locator("img").count() == 0
