"""The peer's end of the pipe; needs nothing but the standard library."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence


def serve(peer: object) -> None:
    """Call methods of the peer as asked on stdin, one JSON line each, and answer on stdout, until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(peer, request["action"])(**request["options"])), file=answers)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of what is installed here, by package."""
    return {package: importlib.metadata.version(package) for package in packages}
