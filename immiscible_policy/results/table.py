"""The one way a Markdown table is written."""

from __future__ import annotations

import re
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, numbers to the right.

    Raises ValueError if a row has not as many cells as the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells under a header of {len(header)}: {list(row)}")
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(map(_cell, cells))} |" for cells in (header, rule, *rows))


def literal(name: str) -> str:
    """A name that people chose as Markdown shows it, letter for letter and on one line."""
    return re.sub(r"([\\`*\[\]<>#|~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(name.split()))


def _cell(text: str) -> str:
    """A cell's text on one line, its bars not taken for the table's."""
    return re.sub(r"(?<!\\)\|", r"\|", " ".join(text.split()))
