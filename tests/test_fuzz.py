"""Words and files of any kind are answered: done, or refused in one line, at once, with nothing created.

What the commands are given are words that are near to sense; what they read are files that were sound before a byte, a
value or a line of theirs was changed.
"""

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import chdir, contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.__main__ import EXPERIMENTS as BENCHMARKS
from immiscible_policy.commands import (
    compare_policies,
    convert,
    doctor,
    eval_image,
    eval_modality,
    eval_policy,
    render_rollout,
    train_classifier,
    train_small_sd,
)
from immiscible_policy.demos.__main__ import COMMANDS as DEMOS
from immiscible_policy.demos.store import attributes, contents, open_store, write_store
from immiscible_policy.demos.validate import problems
from immiscible_policy.evaluation.agent import read_policy, solver_of, spec_metadata
from immiscible_policy.image.evaluation.rows import read_image_rows
from immiscible_policy.lab.__main__ import EXPERIMENTS as LABORATORY
from immiscible_policy.plugins import bridge
from immiscible_policy.plugins.bridge import open_checkpoint
from immiscible_policy.recipes import image_config, robot_config
from immiscible_policy.results import experiment
from immiscible_policy.results.experiment import Experiments
from immiscible_policy.results.report import __main__ as report
from immiscible_policy.results.report.evidence import gather
from immiscible_policy.store.checkpoint import save_checkpoint
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.training.driver import train_run
from immiscible_policy.training.launchers.job import needs
from tests.demos.arm import arm_arrays, write_lerobot
from tests.results.runs import write_run
from tests.small_policy import SPEC, small_policy
from tests.training.toy_recipe import ToyRecipe

MANY = pytest.mark.parametrize("examples", [25, pytest.param(2000, marks=pytest.mark.slow)])
MOST_SECONDS = 10.0
"""Of processor time that one answer may take."""
LONGEST_LINE = 7000

COMMANDS = {
    **{module.__name__.rpartition(".")[2]: module for module in (
        compare_policies, convert, doctor, eval_image, eval_modality, eval_policy, render_rollout, train_classifier,
        train_small_sd)},
    **{f"demos {name}": import_module(module) for name, (module, _) in DEMOS.items() if name != "download"},
    "report": report,
}  # fmt: skip
PROGRAMS = {f"{of.package} {name}": (of, name) for of in (LABORATORY, BENCHMARKS) for name in of.names}
WORDS = ("0", "1", "-1", "1e309", "nan", ".inf", "-inf", "true", "null", "none", "[]", "[[1]]", "[1,2]", "{a: 1}",
         "9" * 30, "9" * 5000, "1.5", "..", "/", ".", "~", "~nobody-here/x", "a\0b", "a\nb", "[/red]", "loop", "loop/x",
         "file", "file/x", "dir", "run", "run,", "run,run", "a=run,b=run", "run/seed_0/checkpoints/step_000500", "0..2",
         "2..0", "0..999999999999", "${oc.env:HOME}", "${x}", "!!python/object:os.system", "é", "\N{GRINNING FACE}",
         " ", "=", "a=b", "x" * 300, ",", ",,", "'", '"', "knn", "linear", "os:getcwd", "nowhere:Nothing", "cuda:99",
         "all", "best", "last", "fresh", "image", "pusht", "paper", "debug", "flow", "sd", "ray", "joblib")  # fmt: skip
VALUES = st.sampled_from(WORDS) | st.integers(-(10**30), 10**30).map(str) | st.text(max_size=12)


class Hung(BaseException):
    """An answer took too long."""


@contextmanager
def answered(directory: Path) -> Iterator[None]:
    """A context in which whatever is refused is refused in one line, in time, and leaves a directory as it was."""

    def hung(*_: object) -> None:
        raise Hung

    before, earlier = sorted(directory.rglob("*")), signal.signal(signal.SIGVTALRM, hung)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    try:
        yield
    except (ValueError, OSError) as error:
        line = str(error)
        assert line.strip() and len(line) < LONGEST_LINE, line[:200]
        assert sorted(directory.rglob("*")) == before
    except SystemExit as left:
        assert left.code in (0, 2)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, earlier)


def fuzz(examples: int, check, **drawn) -> None:
    """Call a check with so many drawn examples."""
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settings(max_examples=examples, deadline=None, suppress_health_check=quiet, database=None)(given(**drawn)(check))()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    """A run that was trained, as far as its files say, with whatever lies beside one."""
    plan = {"seed": "0..1", "steps": 1000, "eval_every": 500, "starts": "100..101", "episodes": 2, "solver": "ddim",
            "task": {"name": "pusht"}, "noise": {"name": "knn", "k": 2}, "sampling_steps": 2}  # fmt: skip
    path = tmp_path_factory.mktemp("fuzz") / "run"
    write_run(path, lambda seed, step, start: 0.3 + 0.1 * seed, seeds=(0, 1), steps=(500, 1000), starts=(100, 101))
    (path / "config.yaml").write_text(yaml.safe_dump(plan))
    (path / "provenance.json").write_text(json.dumps({"command": "python x", "data": {"content_hash": "f" * 64}}))
    run, weights = RunDirectory(path), small_policy().state_dict()
    for seed in map(run.seed, (0, 1)):
        seed.append_fresh(seed.episodes()[:2])
        metadata = spec_metadata(SPEC) | {"config": plan, "data_hash": "f" * 64, "seed": seed.number}
        save_checkpoint(seed.checkpoint_path(1000), metadata | {"step": 1000}, {"ema": weights})
        (seed.path / "metrics.jsonl").write_text('{"step": 500, "loss": 1.0}\n{"step": 1000, "noise/cost": 0.5}\n')
    estimate = [{"mean": 0.5, "low": 0.4, "high": 0.6}]
    arm = {"name": "run", "demonstrated": [1, 2], "steps": [1000], "shares": [[0.5, 0.5]]}
    arm |= dict.fromkeys(("majority", "total_variation", "coverage"), estimate)
    (path / "modality.json").write_text(json.dumps({"arms": [arm], "modes": ["left", "right"]}))
    (path / "summary.json").write_text("{}")
    return run


@pytest.fixture
def desk(tmp_path, run) -> Iterator[Path]:
    """A working directory with a run, a file, an empty directory, and a link to itself."""
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "file").write_text("nothing\n")
    (tmp_path / "dir").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with chdir(tmp_path):
        yield tmp_path


@MANY
def test_words_of_every_command_are_answered(desk, examples, monkeypatch):
    for name in ("evaluate", "write_comparison", "write_report"):  # what is right is not carried out
        for module in COMMANDS.values():
            monkeypatch.setattr(module, name, stopped, raising=False)
    loaded = {(of.package, name): replace(of.load(name), measure=stopped) for of, name in PROGRAMS.values()}
    monkeypatch.setattr(Experiments, "load", lambda of, name: loaded[of.package, name])
    monkeypatch.setattr(experiment, "origin_here", dict)

    def check(command, keys, values):
        if command in PROGRAMS:
            of, name = PROGRAMS[command]
            options, main = loaded[of.package, name].options | {"out": None}, lambda words: of.run([name, *words])
        else:
            options, main = COMMANDS[command].OPTIONS, COMMANDS[command].main
        words = [f"{sorted(options)[key % len(options)]}={value}" for key, value in zip(keys, values, strict=False)]
        if command.startswith("demos"):
            words = [word for word in words if not word.startswith("task=")] + ["task=nowhere"] * ("task" in options)
        with answered(desk):
            main(words)

    keys, values = st.lists(st.integers(0, 50), max_size=4), st.lists(VALUES, max_size=4)
    fuzz(examples, check, command=st.sampled_from(sorted([*COMMANDS, *PROGRAMS])), keys=keys, values=values)


def stopped(*_: object, **__: object) -> None:
    raise ValueError("not carried out")


@MANY
@pytest.mark.parametrize("schema", [robot_config.SCHEMA, image_config.SCHEMA], ids=["robot", "image"])
def test_options_of_training_are_answered(desk, schema, examples):
    """As far as a dry run without data goes."""
    known = sorted({*schema.fields, *schema.groups, "noise.k", "k", "task.name", "sampler"} - {"dry_run"})

    def check(words):
        with answered(desk):
            config = schema.compose([f"{key}={value}" for key, value in words.items()] + ["dry_run=true"])
            config.data, config.launcher = "file", "local"
            train_run(Planned, config)

    fuzz(examples, check, words=st.dictionaries(st.sampled_from(known), VALUES, max_size=3))


class Planned(ToyRecipe):
    """A recipe of a thousand windows that is prepared without being counted."""

    @classmethod
    def prepare(cls, config):
        return cls(config.sized(1000))


KINDS = ("config.yaml", "provenance.json", "modality.json", "summary.json", "seed_0/metrics.jsonl",
         "seed_0/episodes.csv", "seed_0/fresh.csv", "seed_0/frechet.csv",
         "seed_0/checkpoints/step_001000/metadata.json", "seed_0/checkpoints/step_001000/ema.safetensors",
         "seed_0/checkpoints/step_001000/config.json")  # fmt: skip
HOSTILE = (b"", b"[]", b"null", b"0", b'"text"', b"{", b"\xff\xfe\0", b"[" * 20000, b"{}", b"a: &a [*a]", b"1" * 5000,
           b"\n\n", b"a,b\n1", b'{"step": 1e999}')  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@st.composite
def changes(draw):
    """A change of a file's content: another content, a byte, a cut, or another value of one of its keys."""
    how = draw(st.sampled_from(("content", "byte", "cut", "value", "value")))
    if how == "content":
        content = draw(st.sampled_from(HOSTILE) | st.binary(max_size=30))
        return lambda _: content
    place, byte, value = draw(st.integers(0, 10**6)), draw(st.integers(0, 255)), draw(JSON)
    if how == "byte":
        return lambda old: old[: place % len(old)] + bytes([byte]) + old[place % len(old) + 1 :] if old else old
    if how == "cut":
        return lambda old: old[: place % (len(old) + 1)]
    return lambda old: exchanged(old, place, value)


def exchanged(old: bytes, place: int, value: object) -> bytes:
    """A JSON or YAML mapping, one of whose values, perhaps within another one, is exchanged."""
    try:
        content = yaml.safe_load(old)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError):
        return old
    inner = content
    while isinstance(inner, dict) and inner:
        key = list(inner)[place % len(inner)]
        place //= len(inner)
        if not isinstance(inner[key], dict) or place % 2:
            inner[key] = value
            break
        inner = inner[key]
    with suppress(ValueError):
        return json.dumps(content).encode()
    return old


@MANY
def test_files_that_are_read_are_answered(desk, examples):
    run, sound = RunDirectory(desk / "run"), {}
    for kind in KINDS:
        file = desk / "run" / kind
        sound[file] = file.read_bytes() if file.exists() else b""

    def check(kind, change):
        file = desk / "run" / kind
        file.write_bytes(change(sound[file]))
        checkpoint = run.path / "seed_0/checkpoints/step_001000"
        readers = (
            *(lambda: gather({"run": run}, "run"), run.missing, run.fresh, lambda: run.summary),
            *(lambda: read_policy(open_checkpoint(checkpoint)), lambda: solver_of(open_checkpoint(checkpoint))),
            *(lambda: robot_config.SCHEMA.read(run), lambda: read_image_rows(run.path / "seed_0/frechet.csv")),
            *(lambda: run.seed(0).metrics(), lambda: run.origin, run.is_finished),
        )
        try:
            for reader in readers:
                with answered(desk):
                    reader()
        finally:
            for path, content in sound.items():
                path.write_bytes(content) if content else path.unlink(missing_ok=True)

    fuzz(examples, check, kind=st.sampled_from(KINDS), change=changes())


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    """Demonstrations and policies in the formats of others, and a cluster's options."""
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    place = tmp_path_factory.mktemp("foreign")
    weights = small_policy().state_dict()
    save_checkpoint(place / "ours", spec_metadata(SPEC) | {"step": 1, "seed": 0}, {"model": weights, "ema": weights})
    bridge.convert(place / "ours", "lerobot", place / "lerobot")
    bridge.convert(place / "ours", "diffusion_policy", place / "workspace.ckpt")
    arrays, ends = arm_arrays(episodes=2, steps=4)
    write_store(place / "arm.zarr", arrays, ends)
    for version in ("v2.1", "v3.0"):
        write_lerobot(place / version, arrays, ends, version)
    (place / "job.yaml").write_text("num_gpus: 0.5\nresources: {a: 1}\n")
    return place


@MANY
def test_files_of_others_are_answered(foreign, tmp_path, examples):
    place = shutil.copytree(foreign, tmp_path / "foreign")
    sound = {file: file.read_bytes() for file in sorted(place.rglob("*")) if file.is_file()}
    jobs = robot_config.SCHEMA.compose(["experiment=debug", "launcher=ray", f"job_options={place / 'job.yaml'}"])
    readers = {
        **dict.fromkeys(
            ("arm.zarr", "v2.1", "v3.0"), (open_store, contents, attributes, lambda at: list(problems(at)))
        ),
        **dict.fromkeys(("ours", "lerobot", "workspace.ckpt"), (lambda at: read_policy(open_checkpoint(at)),)),
        "job.yaml": (lambda at: needs(jobs, "cpus", "gpus"),),
    }

    def check(name, change, kind):
        files = [file for file in sound if file.relative_to(place).parts[0] == kind]
        file = files[name % len(files)]
        file.write_bytes(change(sound[file]))
        try:
            for reader in readers[kind]:
                with answered(place):
                    reader(place / kind)
        finally:
            file.write_bytes(sound[file])

    fuzz(examples, check, kind=st.sampled_from(sorted(readers)), name=st.integers(0, 50), change=changes())
