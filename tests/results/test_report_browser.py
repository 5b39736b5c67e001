"""The report in a real browser: it opens, its tabs turn by mouse and keyboard, its videos play, it fits a phone."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from immiscible_policy.results.report.evidence import gather
from immiscible_policy.results.report.page import render
from immiscible_policy.store.run import RunDirectory, label_runs
from tests.browser import DESKTOP, PHONE, browser, watched  # noqa: F401
from tests.results.reports import keep_checkpoint, noisy, shorten, write_whole_run
from tests.results.test_report import ORIGIN


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two runs, one of a long name, with a video of 2 seconds."""
    place = tmp_path_factory.mktemp("report")
    runs = []
    for index, name in enumerate(("vanilla", "linear_with_a_very_long_name_indeed_0123456789")):
        run = write_whole_run(place / name, noisy(-0.2 * index, index), name.split("_")[0], seeds=(0, 1)[: 2 - index])
        keep_checkpoint(run, 0, 1500)
        runs.append(RunDirectory(run))
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch, steps=40)
        (place / "report.html").write_text(render(gather(label_runs(runs), "vanilla"), ORIGIN, videos=1))
    return place / "report.html"


@pytest.fixture
def page(browser, report: Path, request: pytest.FixtureRequest) -> Iterator:  # noqa: F811
    """The opened report; nothing may have gone wrong on it when the test ends."""
    with watched(browser, **getattr(request, "param", {"viewport": DESKTOP})) as opened:
        opened.goto(report.as_uri())
        yield opened


def visible(page) -> list[str]:
    return [panel.get_attribute("id") for panel in page.locator("[role=tabpanel]").all() if panel.is_visible()]


def test_the_first_screen_answers(page) -> None:
    for what in (".verdict", ".warning", "#summary table", "#summary figure svg[role=img]"):
        box = page.locator(what).first.bounding_box()
        assert box["y"] + min(box["height"], 200) < DESKTOP["height"], what
    assert "is worse than vanilla" in page.locator(".verdict").inner_text()
    assert visible(page) == ["summary"]


def test_tabs_turn_by_click(page) -> None:
    for tab in page.get_by_role("tab").all():
        tab.click()
        assert visible(page) == [tab.get_attribute("aria-controls")]
        assert tab.get_attribute("aria-selected") == "true"
    assert page.locator("[role=tab][aria-selected=true]").count() == 1


def test_tabs_turn_by_keyboard(page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tab-summary"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, panel in (
        ("ArrowRight", "curves"),
        ("End", "reproduce"),
        ("ArrowRight", "summary"),
        ("ArrowLeft", "reproduce"),
        ("Home", "summary"),
    ):
        page.keyboard.press(key)
        assert visible(page) == [panel] and page.evaluate("document.activeElement.id") == f"tab-{panel}"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "summary"


def test_every_tab_and_panel_know_each_other(page) -> None:
    for tab in page.get_by_role("tab").all():
        panel = page.locator(f"#{tab.get_attribute('aria-controls')}")
        assert panel.get_attribute("role") == "tabpanel"
        assert panel.get_attribute("aria-labelledby") == tab.get_attribute("id")
    assert page.get_by_role("tablist", name="Parts of the report").count() == 1


def test_curves_are_named_and_their_numbers_open_by_keyboard(page) -> None:
    page.get_by_role("tab", name="Curves").click()
    figures = page.get_by_role("img")
    assert figures.count() == 4 and all("at step 1,500" in item.get_attribute("aria-label") for item in figures.all())
    table = page.locator("#curves table").first
    assert not table.is_visible()
    page.locator("#curves summary").first.press("Enter")
    assert table.is_visible() and "1,500" in table.inner_text()


def test_a_video_plays_and_stops_when_its_tab_is_left(page) -> None:
    page.get_by_role("tab", name="Rollouts").click()
    video = page.locator("video").first
    assert not video.evaluate("video => video.autoplay") and video.evaluate("video => video.paused")
    assert video.evaluate("video => video.src").startswith("blob:")  # what phones play
    video.evaluate("video => video.play()")
    deadline = monotonic() + 10
    while video.evaluate("video => video.currentTime") < 0.3:
        assert monotonic() < deadline, "the video stands still"
        page.wait_for_timeout(50)
    assert video.evaluate("video => [video.videoWidth, video.videoHeight]") == [512, 280]
    page.get_by_role("tab", name="Summary").click()
    assert video.evaluate("video => video.paused")


@pytest.mark.parametrize("page", [{"viewport": PHONE, "has_touch": True}], indirect=True)
def test_nothing_scrolls_sideways_on_a_phone(page) -> None:
    for tab in page.get_by_role("tab").all():
        tab.tap()
        page.evaluate("document.querySelectorAll('details').forEach(each => (each.open = true))")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab.get_attribute("id")
        assert tab.bounding_box()["height"] >= 44
    smallest = (
        "Math.min(...[...document.querySelectorAll('*')].map(each => parseFloat(getComputedStyle(each).fontSize)))"
    )
    assert page.evaluate(smallest) >= 12


@pytest.mark.parametrize("page", [{"color_scheme": scheme} for scheme in ("light", "dark")], indirect=True)
def test_the_page_follows_the_readers_light(page, request: pytest.FixtureRequest) -> None:
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = sum(map(int, background.strip("rgb()").split(","))) > 3 * 128
    assert bright == (request.node.callspec.params["page"]["color_scheme"] == "light")


@pytest.mark.parametrize("page", [{"java_script_enabled": False}], indirect=True)
def test_without_scripts_everything_is_there(page) -> None:
    assert all(section.is_visible() for section in page.locator("section").all())
    assert not page.locator(".tabs").is_visible()


def test_a_link_opens_a_tab(page, report: Path) -> None:
    page.goto("about:blank")
    page.goto(f"{report.as_uri()}#noise")
    assert visible(page) == ["noise"]
