"""LeRobot's commands where nothing can be downloaded: `python -m tests.plugins.lerobot_command DIR SCRIPT --word ...`.

`lerobot_train --policy.type=immiscible_pi0` is made small, by what lies in DIR.
"""

from __future__ import annotations

import json
import resource
import sys
from importlib import import_module
from pathlib import Path


def small_words(folder: Path, words: list[str]) -> list[str]:
    """Options that make the policy that the words name small."""
    kind = next((word.split("=")[1] for word in words if word.startswith("--policy.type=")), "")
    if kind.removeprefix("immiscible") in ("", "diffusion"):
        return []
    from tests.plugins.small_models import small_options

    options = small_options(folder)[kind.removeprefix("immiscible_")]
    return [f"--policy.{name}={json.dumps(value).strip(chr(34))}" for name, value in options.items()]


def main(folder: str, script: str, *words: str) -> None:
    """Run LeRobot's script and say on stderr how much memory it took at most."""
    sys.argv = [script, *small_words(Path(folder), list(words)), *words]
    import_module(f"lerobot.scripts.{script}").main()
    print(f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
