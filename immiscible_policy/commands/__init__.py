"""One file per verb: what the command line knows, and the only place that knows everybody."""

from immiscible_policy.cli import require_extra

require_extra("train")
