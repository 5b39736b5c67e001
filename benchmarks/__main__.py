"""`python -m benchmarks step`: measure, print, and write JSON."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import step
from benchmarks.record import RESULTS, command_line, write_result
from immiscible_policy.cli import CommandError, Option, parse, run

USAGE = """\
usage: python -m benchmarks step [KEY=VALUE ...]

  python -m benchmarks step                 # the training step beside the bare network, for every selector
  python -m benchmarks step scale=paper blocks=3 block_steps=2
"""

OPTIONS = {
    "blocks": Option(int, 10, "alternations between the two sides"),
    "block_steps": Option(int, 8, "steps per block"),
    "scale": Option(str, "cpu", "network size: cpu or paper"),
    "precision": Option(str, "auto", "fp32, bf16 or auto"),
    "threads": Option(str, "null", "CPU threads; null: the machine's, at most 4"),
    "out": Option(Path, RESULTS / "step_cpu.json", "where to write the figures"),
}


def _main(words: list[str]) -> int:
    if words and words[0] not in ("step", "-h", "--help", "help"):
        raise CommandError(f"unknown benchmark '{words[0]}'; known: step")
    options = parse(words[1:] if words[:1] == ["step"] else ["--help"], OPTIONS, USAGE)
    settings = [f"{key}={options[key]}" for key in ("scale", "precision", "threads")]
    figures = step.measure(options["blocks"], options["block_steps"], settings)
    write_result(options["out"], figures, command_line())
    print(json.dumps(figures, indent=2))
    print(f"saved in {options['out']}")
    return 0


if __name__ == "__main__":
    run(_main)
