"""Which starts to evaluate on: always an explicit list of start seeds, read by the published mapping."""

from __future__ import annotations

from immiscible_policy.cli import CommandError, parse_range

LEGACY_FIRST = 100_000
"""The published test starts are 100000, 100001, ..."""
FRESH_FIRST = 200_000
"""Starts that no checkpoint is chosen on."""


def parse_starts(text: str, episodes: int) -> list[int]:
    """Read `legacy`, `fresh`, or start seeds such as `100000..100008` or `3,5,8`.

    Args:
        text: What to evaluate on.
        episodes: Number of starts for `legacy` and `fresh`; the others name each start themselves.

    Returns:
        Start seeds, as `immiscible_envs.starts.legacy_starts` and `reset(options={"legacy_seed": ...})` take them.

    Raises:
        CommandError: If the text is none of these or there is no episode.
    """
    if episodes < 1:
        raise CommandError(f"episodes={episodes}: needs 1 or more")
    if text in ("legacy", "fresh"):
        first = LEGACY_FIRST if text == "legacy" else FRESH_FIRST
        return list(range(first, first + episodes))
    try:
        starts = parse_range("starts", text)
    except CommandError as error:
        raise CommandError(f"{error}, or legacy, or fresh") from None
    if max(starts) >= 2**32:
        raise CommandError(f"starts={text}: a start seed is at most {2**32 - 1}")
    return starts
