"""What is committed below benchmarks/results: from a known commit, without places of a machine, quoted by a page."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results"
FILES = sorted(path for path in RESULTS.rglob("*") if path.is_file())
JSON = [path for path in FILES if path.suffix == ".json"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md")]
QUOTED = "".join(page.read_text() for page in PAGES)


def commits(content):
    """Every `commit` in a JSON value."""
    if isinstance(content, dict):
        own = [content["commit"]] if "commit" in content else []
        return own + [commit for value in content.values() for commit in commits(value)]
    return [commit for value in content for commit in commits(value)] if isinstance(content, list) else []


@pytest.mark.parametrize("path", JSON, ids=lambda path: path.stem)
def test_a_result_comes_from_commits_that_are_known(path):
    text = path.read_text()
    known = commits(json.loads(text))
    assert known and all(re.fullmatch("[0-9a-f]{7,40}", str(commit)) for commit in known), known
    assert not re.search(r"/(home|work|Users|root|tmp)/", text)


def test_every_result_is_quoted_by_a_page_or_by_another_result():
    sources = QUOTED + "".join(path.read_text() for path in JSON)
    for path in FILES:
        beside = [f"{path.stem}{suffix}" for suffix in (".json", ".md", ".png", ".html")]
        assert any(name in sources for name in beside), path
