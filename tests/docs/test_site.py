"""The site: every page has its place, every link leads somewhere, and in a browser nothing goes wrong."""

import re
from itertools import product

import pytest
import yaml

from tests.browser import DESKTOP, PHONE, browser, watched  # noqa: F401
from tests.docs.pages import FENCED, PAGES, ROOT

SITE = ROOT / "site"
OUTSIDE = ("https:", "mailto:")


def anchors(page):
    """What the headings of a page are called in links."""
    headings = re.findall("^#+ (.*)", FENCED.sub("", page.read_text()), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_leads_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text())):
        if not link.startswith(OUTSIDE):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_navigation():
    shown = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2])
    assert {name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")} <= set(shown)
    assert len(shown) == len(set(shown))


def test_the_reference_says_where_everything_is_imported_from():
    """A block above each list of objects; the test of its Python runs it."""
    sections = (ROOT / "docs/api.md").read_text().split("\n## ")[1:]
    for section in sections:
        shown = {path.rpartition(".")[2] for path in re.findall("^::: (.*)", section, flags=re.M)}
        imported = re.findall("^from .* import (.*)", section, flags=re.M)
        assert shown == {name.strip() for line in imported for name in line.split(",")}, section.splitlines()[0]
    assert len(sections) > 5


def test_the_site_loads_no_font_and_no_library_from_elsewhere():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert settings["theme"]["font"] is False
    assert "offline" in settings["plugins"] and "http" not in str(settings.get("extra_javascript", ""))


@pytest.mark.slow
@pytest.mark.skipif(not SITE.is_dir(), reason="`make docs` builds the site")
@pytest.mark.parametrize(("viewport", "scheme"), list(product((DESKTOP, PHONE), ("light", "dark"))))
def test_nothing_goes_wrong_on_any_page(browser, viewport, scheme):  # noqa: F811
    pages = sorted(path for path in SITE.rglob("*.html") if "benchmarks" not in path.parts and path.stem != "404")
    assert len(pages) > 20
    with watched(browser, viewport=viewport, color_scheme=scheme) as page:
        for path in pages:
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], path.name
            assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)"), path.name
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 3 * 128) == (scheme == "light"), path.name


@pytest.mark.slow
@pytest.mark.skipif(not SITE.is_dir(), reason="`make docs` builds the site")
def test_no_page_loads_a_script_from_elsewhere():
    for path in SITE.rglob("*.html"):
        assert not re.search(r"""["'(]https?://[^"')]+(\.js|/shim)["')]""", path.read_text()), path.name


@pytest.mark.slow
@pytest.mark.skipif(not SITE.is_dir(), reason="`make docs` builds the site")
def test_a_search_finds_pages_without_a_server(browser):  # noqa: F811
    with watched(browser, viewport=DESKTOP) as page:
        page.goto((SITE / "index.html").as_uri())
        page.fill("input[name=query]", "assignment")
        page.wait_for_selector(".md-search-result__item")
        assert "selectors.html" in page.locator(".md-search-result__list").inner_html()
