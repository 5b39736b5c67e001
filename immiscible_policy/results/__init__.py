"""How results are written: one interval, one table, one palette, one report."""

from immiscible_policy.cli import require_extra

require_extra("train")
