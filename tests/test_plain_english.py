"""Pages, messages and help are plain English: no phrase of this list, each with what to write in its place."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import FENCED, PAGES, ROOT

BANNED = {
    r"\bless (half|a|an|the|its|their)\b": "minus",
    r"\b(is|be) a null\b|\ba null (result|difference)": "no difference detected",
    r"starts that did not choose": "held-out starts",
    r"\bhow sure\b": "confidence",
    r"\b(holds?|keeps?) no\b": "has no",
    r"(?<!there )\bis no (?!longer\b|more\b|better\b|less\b|worse\b|different\b)": "is not a",
    r"\btold\b(?! apart)": "given, set, known",
    r"\bforetell(s|ing)?\b(?!\.|`)|\bforesee": "predict",
    r"\bunsent\b": "not sent",
    r"\bas the option\b": "like the option",
    r"\bknown are\b|\bknows? (?:\w+) (?:and|or) \w+$": "choose from",
    r"\bleads nowhere\b": "a broken link",
    r"\bthe first so many\b": "the first N",
    r"\b(go|goes|went) on with\b": "continue with",
    r"\binterval (that )?holds\b": "contains",
    r"\bflatter": "too high",
    r"\bmay not be written\b": "is not writable",
    r"\b(speaks?|spoke) (of|about)\b": "is about",
    r"\bread as (it|they) (lies?|are)\b|\bas (it|they) lies?\b": "read in place",
    r"\bsomebody else'?s?\b": "another",
    r"\bready-made\b": "pretrained, published",
    r"\bleaves? open of\b": "the residual",
    r"\bproposes? a cure\b": "suggests a fix",
    r"\bafter so many\b": "after N",
    r"(?<=[\d}]) %(?![\w{(}])": "no space before the sign",
    r"\bsides? by sides? would\b": "in parallel",
    r"\bbeside (it )?nothing\b|\bbeside it stand": "",
    r"\bin its place\b": "instead",
    r"\bforesaid\b|\bthereof\b|\bwhereby\b|\bhereby\b": "",
    r"\bis to be (?!seen)": "must be",
    r"\bto (have|keep) apart\b": "to distinguish",
    r"\bof one'?s own\b": "your own",
    r"\bin the words of\b": "as",
}
"""Pattern -> what to write instead, in pages, messages, help and docstrings."""
IN_CODE = {r"\b(these|those|other|more|same|two|the) words\b(?! of the)|\bthe word out\b": "options"}
"""The same for what docstrings may say: words are what a command line is made of."""


def prose(page: str) -> str:
    """A page without its code."""
    return re.sub("`[^`]*`", "``", FENCED.sub("", (ROOT / page).read_text()))


def strings(path: Path, docstrings: bool) -> Iterator[tuple[int, str]]:
    """The strings of a module with their lines, with docstrings or without; what is filled in becomes `{}`."""
    tree = ast.parse(path.read_text())
    silent = set() if docstrings else {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            silent |= {id(part) for part in node.values}
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield node.lineno, "".join(map(str, parts))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.lineno, node.value


def texts(docstrings: bool) -> Iterator[tuple[str, str]]:
    """Everything that people read, with the place where it stands."""
    for page in {*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"}:
        yield page, prose(page)
    for folder in ("immiscible_policy", "envs", "benchmarks", "lerobot_policy_immiscible", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from ((f"{path.relative_to(ROOT)}:{line}", text) for line, text in strings(path, docstrings))
        for path in sorted((ROOT / folder).rglob("templates/*.html")):
            yield str(path.relative_to(ROOT)), path.read_text()
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        yield str(path.relative_to(ROOT)), " ".join(re.findall("#(.*)", path.read_text()))


@pytest.fixture(scope="module")
def everything() -> dict[bool, list[tuple[str, str]]]:
    return {docstrings: [(place, " ".join(text.split())) for place, text in texts(docstrings)] for docstrings in (0, 1)}


@pytest.mark.parametrize(("banned", "better"), (BANNED | IN_CODE).items())
def test_no_banned_phrase_is_left(everything, banned, better):
    pattern = re.compile(banned, re.I)
    hits = [
        f"{place}: ...{text[max(0, hit.start() - 40) : hit.end() + 20]}..."
        for place, text in everything[banned in BANNED]
        for hit in pattern.finditer(text)
    ]
    assert not hits, f"write {better!r}:\n" + "\n".join(hits)


@pytest.mark.parametrize(("page", "most"), [("README.md", 700), ("docs/when-to-use.md", 1200)])
def test_the_first_pages_stay_short(page, most):
    assert len((ROOT / page).read_text().split()) <= most


@pytest.mark.parametrize(
    "sentence",
    ["distance, less half of the spread", "the run holds no checkpoint", "that is no FID", "unless told otherwise"],
)
def test_the_list_finds_what_it_bans(sentence):
    assert any(re.search(banned, sentence, re.I) for banned in BANNED)
