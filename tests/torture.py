"""Trainings are killed, raced, signalled, left without room, their data replaced; then every row is compared.

    python -m tests.torture kills=30 out=DIR

Every command is a process of its own, a fork of this one, which has imported everything and computed nothing. What a
torture leaves is resumed to its end and compared with the same training undisturbed: each row of `metrics.jsonl` and
`episodes.csv` must be there once and be equal, the weights' bytes too. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from immiscible_policy.cli import CommandError, Option, parse, program, require_new, unknown, whole
from immiscible_policy.commands import train_policy
from immiscible_policy.recipes import robot  # noqa: F401, imports would take most of a training's time
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.training import driver  # noqa: F401
from tests.training.helpers import as_typed, tree, write_small_store

USAGE = "usage: python -m tests.torture [kills=30] [only=races,signals] [seed=0] [out=DIR]"
TORTURES = ("kills", "races", "parents", "disks", "signals", "data")
OPTIONS = {
    "only": Option(str, ",".join(TORTURES), "which of them"),
    "kills": Option(whole(1, 10_000), 30, "kills at random moments; of each other there are a tenth as many or so"),
    "seed": Option(whole(0, 10**9), 0, "of the random moments"),
    "out": Option(Path, None, "keep the runs there"),
}
TINY = ("experiment=debug", "task=none", "obs=state", "method=flow", "validation=0.5", "kernels=plain", "threads=1",
        "precision=fp32", "device=cpu", "steps=60", "checkpoint_every=10", "eval_every=20", "log_every=5")  # fmt: skip
ARMS = {"vanilla": ("noise=vanilla", "seed=0"), "knn": ("noise=knn", "k=4", "seed=1"), "two": ("seed=0..1",)}
LOGGED = "logged"
MEASURED = ("step", "loss", "lr", "energy_score", "action_error")


def start(*words: str, log: Path, prepare: Callable[[], object] = lambda: None) -> int:
    """Begin a training in a process group of its own; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    prepare()
    with as_typed([sys.executable, str(Path(train_policy.__file__)), *words]):
        try:
            train_policy.main()
        except SystemExit as left:
            os._exit(int(left.code or 0))
        except BaseException as error:
            print(f"not one line: {error!r}", flush=True)
    os._exit(99)


def ended(pid: int) -> int:
    """Wait for a process; its exit code, negative if a signal killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def limit_files(largest: int) -> None:
    """Let no file of this process grow beyond so many bytes; it is not heard, as its log may be larger."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))


class Torture:
    """A place for runs, how they must end, and what has been counted."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.random, self.counts = place, random.Random(seed), Counter[str]()
        place.mkdir(parents=True, exist_ok=True)
        self.store = write_small_store(place / "data.zarr")
        self.seconds, self.expected = {}, {}
        for arm in ARMS:
            begun = time.monotonic()
            assert self.train(arm, place / "straight" / arm) == 0, (place / "log").read_text()
            self.seconds[arm] = time.monotonic() - begun
            self.expected[arm] = self.rows(place / "straight" / arm)

    def begin(self, arm: str, out: Path, *words: str, prepare: Callable[[], object] = lambda: None) -> int:
        """Begin the training of an arm there, or go on with it."""
        self.counts["commands"] += 1
        given = (*TINY, *ARMS[arm], f"data={self.store}", f"out={out}", *words)
        return start(*given, log=self.place / "log", prepare=prepare)

    def train(self, arm: str, out: Path, *words: str, prepare: Callable[[], object] = lambda: None) -> int:
        """The same, to its end."""
        return ended(self.begin(arm, out, *words, prepare=prepare))

    def moment(self, arm: str) -> None:
        """Wait for some moment of a training."""
        time.sleep(self.random.uniform(0, 0.7 * self.seconds[arm]))

    def rows(self, out: Path) -> dict[str, list[str]]:
        """What a run's seeds wrote, time left out: a line for every row of metrics, episode and tensor file."""
        run, lines = RunDirectory(out), {}
        for seed in map(run.seed, run.seeds()):
            rows = [{key: row[key] for key in MEASURED if key in row} for row in seed.metrics()]
            newest = seed.newest()
            assert newest is not None, seed.path
            lines[f"{seed.number} {LOGGED}"] = [json.dumps(row) for row in rows if "loss" in row]
            lines[f"{seed.number} evaluated"] = [json.dumps(row) for row in rows if "loss" not in row]
            lines[f"{seed.number} episodes"] = (seed.path / "episodes.csv").read_text().splitlines()
            lines[f"{seed.number} hashes"] = [f"{newest.step} {newest.metadata['sha256']}"]
        return lines

    def check(self, arm: str, out: Path, besides: str = "") -> None:
        """Count what a finished run lost, has twice, or has from elsewhere, `besides` one kind of rows."""
        RunDirectory(out).checkpoints()  # refuses what is of another training
        actual, expected = self.rows(out), self.expected[arm]
        for kind in (kind for kind in actual.keys() | expected.keys() if not kind.endswith(besides or "none")):
            ours, theirs = Counter(actual.get(kind, [])), Counter(expected.get(kind, []))
            self.counts["rows lost"] += len(theirs.keys() - ours.keys())
            self.counts["rows mixed"] += len(ours.keys() - theirs.keys())
            self.counts["rows doubled"] += (ours - Counter(ours.keys())).total()
            self.counts["rows compared"] += ours.total()
        assert RunDirectory(out).is_finished(), out
        self.counts["runs"] += 1

    def finish(self, arm: str, out: Path, besides: str = "") -> None:
        """Resume to the end, which must succeed, and check."""
        code = self.train(arm, out, "resume=true")
        assert code == 0, f"{out}: exit code {code}, see {self.place / 'log'}"
        self.check(arm, out, besides)

    def kills(self, number: int) -> None:
        """SIGKILL at random moments, up to three in a run; now and then of a parent of two workers."""
        runs = 0
        while self.counts["kills"] < number:
            runs += 1
            out, arm = self.place / f"killed{runs}", "two" if runs % 10 == 0 else ("vanilla", "knn")[runs % 2]
            for _ in range(3):
                pid = self.begin(arm, out, "resume=true")
                self.moment(arm)
                os.kill(pid, signal.SIGKILL)
                if ended(pid) != -signal.SIGKILL:
                    break
                self.counts["kills"] += 1
            if arm == "two":
                time.sleep(1)  # its workers notice
            self.finish(arm, out)

    def races(self, number: int) -> None:
        """Two trainings into a new directory, the one or the other first: one trains, the other is refused."""
        for race in range(number):
            out, order = self.place / f"raced{race}", ["vanilla", "knn"][:: 1 if race % 2 else -1]
            pids = {order[0]: self.begin(order[0], out)}
            time.sleep(self.random.choice((0, self.random.uniform(0, self.seconds["knn"]))))
            pids[order[1]] = self.begin(order[1], out)
            codes = {arm: ended(pid) for arm, pid in pids.items()}
            assert sorted(codes.values()) == [0, 2], codes
            self.counts[f"races won by the {'first' if codes[order[0]] == 0 else 'second'}"] += 1
            self.check(next(arm for arm, code in codes.items() if code == 0), out)

    def parents(self, number: int) -> None:
        """Two commands go on with a killed run at once: it is trained once."""
        for race in range(number):
            out = self.place / f"parents{race}"
            pid = self.begin("knn", out)
            self.moment("knn")
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            pids = [self.begin("knn", out, "resume=true")]
            time.sleep(self.random.choice((0, self.random.uniform(0, self.seconds["knn"]))))
            pids.append(self.begin("knn", out, "resume=true"))
            codes = [ended(pid) for pid in pids]
            assert set(codes) <= {0, 2} and 0 in codes, codes
            self.counts["pairs of parents"] += 1
            self.finish("knn", out)

    def disks(self, number: int) -> None:
        """Files may not grow beyond a random size; where a file system may be mounted, one that is full."""
        for full in range(number):
            out, largest = self.place / f"full{full}", int(10 ** self.random.uniform(1.5, 5.5))
            code = self.train("vanilla", out, prepare=partial(limit_files, largest))
            assert code in (0, 2), code
            self.counts["disks full"] += code == 2
            self.finish("vanilla", out)
        whole = sum(file.stat().st_size for file in (self.place / "straight/vanilla").rglob("*") if file.is_file())
        for full in range(number):
            disk = self.place / f"disk{full}"
            disk.mkdir()
            size = int(self.random.uniform(0.05, 0.9) * whole)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)]
            if subprocess.run(mount, capture_output=True).returncode:
                return
            try:
                code = self.train("vanilla", disk / "run", "keep=last+best")
                assert code in (0, 2), code
                self.counts["disks full"] += code == 2
                subprocess.run(["mount", "-o", "remount,size=1G", disk], check=True)
                assert self.train("vanilla", disk / "run", "keep=last+best", "resume=true") == 0
                self.check("vanilla", disk / "run")
            finally:
                subprocess.run(["umount", disk], check=True)

    def signals(self, number: int) -> None:
        """Each signal to a parent of two workers alone, and to the group: all end, and go on where they were."""
        kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
        for turn in range(number):
            sent, group = kinds[turn // 2 % 4], turn % 2 == 1
            out = self.place / f"signalled{turn}"
            pid = self.begin("two", out)
            self.moment("two")
            (os.killpg if group else os.kill)(pid, sent)
            code = ended(pid)
            assert code in (0, 128 + sent, -sent), code
            if sent == signal.SIGKILL:
                time.sleep(1)  # its workers notice
            assert not any(RunDirectory(out).seed(seed).is_locked for seed in (0, 1)), "a worker goes on"
            self.counts[f"{sent.name} to the {'group' if group else 'parent'}"] += 1
            self.finish("two", out, besides=LOGGED)  # the step of the signal is logged too

    def data(self, number: int) -> None:
        """Other data under the same name: refused by a resume, which writes nothing, and by a seed that comes later."""
        kept = self.place / "kept.zarr"
        shutil.copytree(self.store, kept)
        for turn in range(number):
            resumed, later = self.place / f"resumed{turn}", self.place / f"later{turn}"
            pid = self.begin("vanilla", resumed)
            self._first_checkpoint(resumed)
            os.kill(pid, signal.SIGKILL)
            ended(pid)
            self._replace()
            before = tree(resumed)
            assert self.train("vanilla", resumed, "resume=true") == 2 and tree(resumed) == before
            self._restore(kept)
            self.finish("vanilla", resumed)
            pid = self.begin("two", later, "launcher=joblib", "parallel=1")
            self._first_checkpoint(later)
            self._replace()
            assert ended(pid) == 2 and RunDirectory(later).seed(1).newest() is None
            summary = RunDirectory(later).summary
            assert summary is not None and summary["unfinished"] == {"1": 0}, summary
            self._restore(kept)
            self.finish("two", later)
            self.counts["data replaced"] += 2

    def _first_checkpoint(self, out: Path) -> None:
        while not list(out.glob("seed_0/checkpoints/step_*")):
            time.sleep(0.01)

    def _replace(self) -> None:
        shutil.rmtree(self.store)
        write_small_store(self.store, seed=1)

    def _restore(self, kept: Path) -> None:
        shutil.rmtree(self.store)
        shutil.copytree(kept, self.store)


@program
def main(words: list[str]) -> int:
    """Run all tortures and print what was counted."""
    options = parse(words, OPTIONS, USAGE)
    if options["out"]:
        require_new("out", options["out"])
    with TemporaryDirectory() as scratch:
        torture, some = Torture(options["out"] or Path(scratch), options["seed"]), -(-options["kills"] // 10)
        turns = {"kills": options["kills"], "races": 2 * some, "signals": 8, "data": 1}
        for name in options["only"].split(","):
            if name not in TORTURES:
                raise CommandError(unknown("torture", name, TORTURES))
            getattr(torture, name)(turns.get(name, some))
            print(f"{name} survived, {torture.counts['rows compared']:,} rows compared so far", flush=True)
        print("\n".join(f"{count:6,}  {what}" for what, count in sorted(torture.counts.items())))
        return int(any(torture.counts[f"rows {kind}"] for kind in ("lost", "doubled", "mixed")))


if __name__ == "__main__":
    main()
