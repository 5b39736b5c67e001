"""A task and a selector from another package: trained, killed, resumed, evaluated, compared and reported."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.training.helpers import ROOT, here, refused, seeds_in_turn, tree

HERE = Path(__file__).parent
SMALL = ("experiment=debug", "down_dims=[16,32]", "step_embed_dim=16", "threads=1", "precision=fp32", "steps=6",
         "checkpoint_every=2", "eval_every=2", "episodes=3", "wandb=disabled", "keep=all")  # fmt: skip
METRICS = "closeness,reached,return"


def install(site: Path) -> Path:
    """Put the package where Python finds installed distributions, with the metadata that an installer writes."""
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    (site / "reach_lab").symlink_to(HERE / "reach_lab")
    info = site / f"reach_lab-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = (
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
    return site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The package, installed for this process and those that it starts."""
    path = install(tmp_path_factory.mktemp("site"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(path), os.environ.get("PYTHONPATH", str(ROOT))]))
        yield path


@pytest.fixture(scope="module")
def store(site, tmp_path_factory):
    """Scripted demonstrations with keys of their own."""
    from reach_lab.reach import demonstrate

    return demonstrate(tmp_path_factory.mktemp("data") / "reach.zarr")


def train(out: Path, store: Path, *words: str) -> str:
    result = here("train_policy.py", *SMALL, f"data={store}", f"out={out}", *words)
    assert result.returncode == 0, result.stderr + result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    """Two seeds of each: by entry-point names, and by dotted paths with options of their own."""
    parent = tmp_path_factory.mktemp("runs")
    with seeds_in_turn():
        train(parent / "vanilla", store, "task=reach", "seed=0..1")
    train(
        parent / "tempered", store, "task=reach_lab.reach:Reach", "task.radius=0.3", "seed=0..1",
        "noise=reach_lab.tempered:Tempered", "noise.temperature=0.1", "noise.k=4",
    )  # fmt: skip
    return parent


def test_seeds_train_and_their_rows_carry_the_tasks_metrics(runs):
    for run in ("vanilla", "tempered"):
        for seed in range(2):
            lines = (runs / run / f"seed_{seed}/episodes.csv").read_text().splitlines()
            assert set(lines[0].split(",")) == {"checkpoint", "start", "seed", *METRICS.split(","), "steps"}
            assert len(lines) == 1 + 3 * 3
        summary = json.loads((runs / run / "summary.json").read_text())
        assert "closeness" in json.dumps(summary) and "coverage" not in json.dumps(summary)
        assert "closeness" in (runs / run / "summary.md").read_text()


def test_the_options_of_outside_parts_are_recorded(runs):
    config = (runs / "tempered/config.yaml").read_text()
    assert re.search(r"radius: 0\.3", config) and re.search(r"temperature: 0\.1", config)
    assert "reach_lab.reach:Reach" in config and "reach_lab.tempered:Tempered" in config


def test_an_entry_point_is_the_class_that_it_names(runs, store, tmp_path):
    train(tmp_path / "named", store, "task=reach", "task.radius=0.3", "seed=1", "noise=tempered",
          "noise.temperature=0.1", "noise.k=4")  # fmt: skip
    ours, theirs = (tree(run / "seed_1") for run in (tmp_path / "named", runs / "tempered"))
    weights = [name for name in ours if name.endswith(".safetensors") or name == "episodes.csv"]
    assert len(weights) > 3 and all(ours[name] == theirs[name] for name in weights)


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(runs, store, tmp_path, site):
    out = tmp_path / "run"
    words = [*SMALL, f"data={store}", f"out={out}", "task=reach", "seed=0..1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_policy.py"), *words],
        env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(out.glob("seed_*/checkpoints/step_000002")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    result = here("train_policy.py", *words, "resume=true")
    assert result.returncode == 0, result.stderr + result.stdout
    for seed in range(2):
        ours, theirs = (tree(run / f"seed_{seed}") for run in (out, runs / "vanilla"))
        weights = [name for name in theirs if name.endswith(".safetensors")]
        assert weights and all(ours[name] == theirs[name] for name in weights)


def test_a_run_is_evaluated_and_rendered_on_its_own_task(runs, tmp_path):
    result = here("eval_policy.py", f"run={runs / 'tempered'}", "checkpoints=last", "starts=fresh", "episodes=4",
                  "sampling_steps=2")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "closeness" in result.stdout and "coverage" not in result.stdout
    checkpoint = runs / "vanilla/seed_0/checkpoints/step_000006"
    video = here("render_rollout.py", f"checkpoint={checkpoint}", f"out={tmp_path / 'a.mp4'}", "episodes=2", "size=64")
    assert video.returncode == 0, video.stderr
    assert "closeness" in video.stdout and (tmp_path / "a.mp4").stat().st_size > 500


def test_runs_are_compared_by_the_tasks_primary_metric(runs):
    result = here("compare_policies.py", f"a={runs / 'tempered'}", f"b={runs / 'vanilla'}")
    assert result.returncode == 0, result.stderr
    assert "closeness" in result.stdout and "coverage" not in result.stdout


def test_runs_are_reported_in_the_tasks_words(runs, tmp_path):
    page = tmp_path / "report.html"
    result = here("compare_policies.py", f"a={runs / 'tempered'}", f"b={runs / 'vanilla'}", f"report={page}")
    assert result.returncode == 0, result.stderr
    text = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.S)
    assert "Reach" in text and "closeness" in text and "coverage" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=reached"], "unknown task 'reached'; did you mean 'reach'?"),
        (["task=reach", "task.width=2"], "task=reach has no width; it takes radius"),
        (["task=reach", "obs=image"], "unknown obs 'image'"),
        (["task=reach", "mirror=true"], "task=reach has no mirror"),
        (["task=reach", "data=null"], "task=reach has no demonstrations of its own; name a store with data="),
        (["task=pusht"], "data/state is missing; a store needs data/state, data/action, data/keypoint"),
        (["task=reach", "noise=tempered", "noise.temperature=-1"], "temperature=-1"),
    ],
)
def test_mistakes_are_one_line_and_create_nothing(store, tmp_path, words, message):
    data = [] if "data=null" in words else [f"data={store}"]
    line = refused(here("train_policy.py", *SMALL, *data, f"out={tmp_path / 'run'}", *words))
    assert message in line and not (tmp_path / "run").exists()
