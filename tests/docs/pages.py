"""Reading the project's pages: their code blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from itertools import product
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
         "lerobot_policy_immiscible/README.md")  # fmt: skip
PROGRAMS = ("python", "make", "torchrun", "pip", "hf", "ray", "lerobot-train", "lerobot-eval")
SHELL = ("", "sh", "bash")

Words = tuple[str, ...]


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        page: Path of the page in the repository.
        line: Number of the block's first line.
        language: What stands behind the opening fence.
        text: What stands between the fences.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where it stands, for people."""
        return f"{self.page}:{self.line}"


FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.M | re.S)


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (ROOT / page).read_text()
    return [
        Block(page, text.count("\n", 0, result.start(2)) + 1, result[1], result[2]) for result in FENCED.finditer(text)
    ]


def lines(block: Block) -> list[str]:
    """The lines of a block, continued ones joined, without comments and empty ones."""
    joined = re.sub(r"\\\n\s*", "", block.text).splitlines()
    bare = (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined)
    return [line for line in bare if line]


def is_listing(block: Block) -> bool:
    """Whether a block shows something else than commands: no line of it begins with a program."""
    return not any(line.split()[0] in PROGRAMS for line in lines(block))


def commands(block: Block) -> list[Words]:
    """The words of every command in a block."""
    return [tuple(shlex.split(line)) for line in lines(block)]


def inline_commands(page: str) -> list[Words]:
    """The words of every command within the sentences of a page; alternatives, written a|b, are all spelled out."""
    text = FENCED.sub("", (ROOT / page).read_text())
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text))
    result = [shlex.split(span) for span in spans if span.split()[0] in PROGRAMS and " " in span]
    return [words for item in result for words in product(*(word.split("|") for word in item))]
