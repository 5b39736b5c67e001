"""The same jobs wherever they run: bits equal to those of seeds run alone, also where workers and machines die."""

import fcntl
import json
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from immiscible_policy.cli import CommandError
from immiscible_policy.commands.train_grid import Grid, train_grid
from immiscible_policy.commands.train_policy import policy_table
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.training import launchers
from immiscible_policy.training.display import FEW, Display
from immiscible_policy.training.driver import begin, conclude, train_run
from immiscible_policy.training.launchers import job as jobs
from immiscible_policy.training.launchers import require_launcher
from immiscible_policy.training.workers import Ending, Job
from tests.image.folders import write_images
from tests.training.helpers import ROOT, command, refused

TINY = ("down_dims=[16,32]", "step_embed_dim=16", "groups=4", "batch_size=16", "steps=20", "checkpoint_every=5",
        "eval_every=10", "episodes=1", "sampling_steps=2", "warmup_steps=1", "log_every=5", "threads=1",
        "precision=fp32", "wandb=disabled", "device=cpu")  # fmt: skip
LONG = ("steps=300", "checkpoint_every=20", "eval_every=100")
"""Long enough for somebody to die midway."""


@pytest.fixture(autouse=True)
def actual(monkeypatch):
    """Worker processes find this checkout through the environment, as other machines find the installed package."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray would make them wait for whatever else runs here


def with_words(*words):
    """The usual words, but for those given."""
    given = {word.partition("=")[0] for word in words}
    return (*(word for word in TINY if word.partition("=")[0] not in given), *words)


def train(*words):
    train_run(RobotRecipe, compose_config(with_words(*words)))


def small_grid(store, out, *words):
    """Six runs: three kinds of noise, two seeds each."""
    common = (*with_words(*words), "seed=0..1", f"data={store}", "resume=true")
    return Grid("small", out, {
        arm: compose_config([*common, f"noise={arm}", f"out={out / arm}"]) for arm in ("vanilla", "knn", "linear")
    })  # fmt: skip


def result(run, seed):
    """Everything that a seed yields and that does not tell the time; of its last checkpoint the bytes."""
    directory = RunDirectory(run).seed(seed)
    checkpoints = directory.checkpoints()
    files = {path.name: path.read_bytes() for path in checkpoints[-1].path.glob("*.safetensors")}
    kept = ("step", "loss", "coverage", "noise/distance_percent")
    measured = [{key: row[key] for key in row if key in kept} for row in directory.metrics()]
    assert {"model.safetensors", "ema.safetensors", "optimizer.safetensors"} == files.keys()
    return [item.step for item in checkpoints], files, measured, directory.episodes()


@pytest.fixture
def untrained(monkeypatch):
    """Jobs report as trainings do, and train nothing; seed 1 of the arm `linear` fails."""

    def in_process(job, listen):
        listen({"event": "started", "seed": job.seed, "step": 0})
        if job.name == "linear/1":
            return Ending("seed 1 failed (exit code 2): no space left", False)
        listen({"event": "finished", "seed": job.seed, "step": 20})
        return Ending(None, False)

    monkeypatch.setattr(jobs, "in_process", in_process)


def test_a_grids_jobs_are_shown_together_and_what_fails_is_named_by_its_arm(untrained, store, tmp_path, capsys):
    pytest.importorskip("joblib", reason="joblib is not installed")
    grid = small_grid(store, tmp_path, "launcher=joblib", "parallel=2")
    with pytest.raises(CommandError) as caught:
        train_grid(grid, RobotRecipe, policy_table)
    assert str(caught.value) == "linear: seed 1 failed (exit code 2): no space left"
    message = capsys.readouterr().out
    assert "linear: seed 1 failed" in message and "5 of 6 jobs finished" in message
    for job in ("vanilla/0", "vanilla/1", "knn/0", "knn/1", "linear/0"):
        assert f"finished seed {job} at step 20" in message
    table = json.loads((tmp_path / "small.json").read_text())["arms"]
    assert {arm: item["missing_seeds"] for arm, item in table.items()} == dict.fromkeys(grid.arms, [0, 1])


def test_a_thousand_failures_are_no_longer_a_line_than_six():
    kind = type("Silent", (RobotRecipe,), {"summarise": staticmethod(lambda run: "")})
    with pytest.raises(CommandError) as caught:
        conclude(kind, RunDirectory("run"), [f"seed {seed} failed" for seed in range(1000)])
    assert str(caught.value).endswith("seed 4 failed; and 995 more")


def listening() -> set[str]:
    """The addresses on which this machine's processes listen, in hexadecimal as the kernel writes them."""
    rows = [row.split() for file in ("tcp", "tcp6") for row in Path(f"/proc/net/{file}").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A"}


@pytest.mark.slow
def test_a_ray_of_this_machine_alone_listens_on_loopback_alone():
    ray = pytest.importorskip("ray", reason="ray is not installed")
    on_ray = pytest.importorskip("immiscible_policy.training.launchers.on_ray")
    before = listening()
    on_ray.start_alone()
    try:
        places = listening() - before
    finally:
        ray.shutdown()
    assert places and all(place.partition(":")[0].endswith("0100007F") for place in places)  # 127.0.0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("launcher=rai",), "unknown launcher 'rai'; did you mean 'ray'?"),
        (("cluster=auto",), "cluster=auto: launcher=local runs on this machine alone"),
        (("launcher=joblib", "job_options=a.yaml"), "job_options=a.yaml: launcher=joblib runs on this machine alone"),
        (("launcher=ray", "parallel=2"), "parallel=2: launcher=ray runs as many jobs at once as its cluster has room"),
        (("launcher=ray", "job_options=a.yaml"), "job_options=a.yaml: a.yaml cannot be read"),
        (("launcher=ray", "job_options=EMPTY"), "it has no keys and values); write lines such as"),
        (("launcher=ray", "job_options=MISSPELT"), "launcher=ray: Invalid option keyword num_cpsu"),
        (("launcher=ray", "device=cuda:1"), "device=cuda:1: launcher=ray gives each job a device of its own"),
        (("launcher=ray", "device=cuda", "precision=auto"), "precision=auto: no CUDA device is visible here"),
        (("launcher=submitit", "cluster=slrum"), "unknown cluster of launcher=submitit 'slrum'; did you mean 'slurm'?"),
        (("launcher=submitit",), 'launcher=submitit: Could not detect "srun"'),
        (("launcher=submitit", "cluster=local", "job_options=MISSPELT"), "launcher=submitit: Unknown executor 'num'"),
        (("launcher=submitit", "cluster=local", "job_options=TEXT"), 'launcher=submitit: Parameter "timeout_min"'),
    ],
)
def test_unusable_words_are_one_line_and_nothing_is_written(words, message, store, tmp_path, monkeypatch):
    for library in ("joblib", "ray", "submitit"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    monkeypatch.chdir(tmp_path)
    for name, text in {"EMPTY": "", "MISSPELT": "num_cpsu: 1", "TEXT": "timeout_min: long"}.items():
        Path(name).write_text(text)
    with pytest.raises(CommandError) as caught:
        train(*words, f"data={store}", "out=run")
    assert message in str(caught.value) and "\n" not in str(caught.value) and not Path("run").exists()


def test_a_cluster_that_does_not_answer_is_one_line_and_nothing_is_written(store, tmp_path, monkeypatch):
    on_ray = pytest.importorskip("immiscible_policy.training.launchers.on_ray", reason="ray is not installed")
    monkeypatch.setattr(on_ray, "ANSWER_WITHIN", 0.2)
    with pytest.raises(CommandError, match="cluster=127.0.0.1:1: no Ray cluster answers there within"):
        train("launcher=ray", "cluster=127.0.0.1:1", f"data={store}", f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_ray_says_of_an_address_is_passed_on(store, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    words = with_words("launcher=ray", "cluster=nonsense", f"data={store}", f"out={tmp_path / 'run'}")
    message = refused(command("train_policy.py", *words))
    assert "cluster=nonsense: " in message and "Invalid address format: nonsense" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("library", ["joblib", "ray", "submitit"])
def test_an_absent_library_is_one_line_that_says_what_to_install(library, store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"immiscible_policy.training.launchers.on_{library}", raising=False)
    message = f"launcher={library}: {library} is not installed; pip install {library}, or launcher=local"
    with pytest.raises(CommandError, match=message):
        train(f"launcher={library}", f"data={store}", f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_several_processes_of_one_training_are_not_launched(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CommandError, match="launcher=joblib: 2 processes train one seed here; leave it out"):
        compose_config(with_words("launcher=joblib"))


def test_where_it_runs_does_not_change_what_a_run_is():
    here, there = (compose_config(with_words(*words)) for words in ((), ("launcher=ray", "cluster=auto")))
    assert here.identity == there.identity and here.launcher != there.launcher
    require_launcher(here)


def new_job(tmp_path):
    job = Job("m:Class", tmp_path / "run", 3, (("wandb", "disabled"),), tmp_path)
    job.directory.path.mkdir(parents=True)
    return job


def test_events_are_shown_once_whole_and_to_the_last(tmp_path, monkeypatch):
    job, seen = new_job(tmp_path), []
    job.directory.events.write_text('{"event": "earlier"}\n')
    display = type("Seen", (), {"show": staticmethod(seen.append)})
    monkeypatch.setattr(launchers, "LOOK_EVERY", 0.01)
    with launchers.shown([job], display), open(job.directory.events, "a") as events:
        for text in ('{"event": "a"}\n{"eve', 'nt": "b"}\n', '{"event": "to', '\n{"event": "c"}\n', '{"event": "d"'):
            events.write(text)
            events.flush()
            time.sleep(0.05)
    assert [event["event"] for event in seen] == ["a", "b", "c"]
    assert {event["seed"] for event in seen} == {"run/3"}


def test_a_job_waits_for_the_lock_of_a_dead_machine(tmp_path, monkeypatch):
    job, happened = new_job(tmp_path), []
    monkeypatch.setattr(jobs, "in_process", lambda *_: happened.append("trained"))

    def release():
        happened.append("released")
        fcntl.flock(lock, fcntl.LOCK_UN)

    with open(job.directory.path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.2, release).start()
        jobs.train_job(job)
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(jobs, "PATIENCE", 0.0)
        jobs.train_job(job)  # what it finds then is its worker's to say
    assert happened == ["released", "trained", "trained"]


def test_of_many_seeds_their_sum_is_shown(capsys):
    seeds = [f"knn/{number}" for number in range(FEW + 2)]
    with Display(dict.fromkeys(seeds, 100), {}) as display:
        for seed, step in zip(seeds, (100, 50), strict=False):
            display.show({"event": "started", "seed": seed, "step": 0})
            display.show({"event": "finished", "seed": seed, "step": step})
        display.show({"event": "metrics", "seed": seeds[2], "step": 25, "loss": 1.0, "rate": 1.0, "waited": 0.0})
        display.show({"event": "metrics", "seed": seeds[3], "step": 25, "loss": 1.0, "rate": 1.0, "waited": 0.0})
    message = capsys.readouterr().out.splitlines()
    assert message[-1] == f"all  1.8 of {FEW + 2} seeds trained, 2 finished" and "loss" not in "".join(message)


@pytest.fixture(scope="module")
def alone(store, tmp_path_factory):
    """Two seeds, each trained alone, in this process."""
    out = tmp_path_factory.mktemp("alone")
    for seed in (0, 1):
        train("noise=knn", f"data={store}", f"seed={seed}", f"out={out / str(seed)}")
    return [result(out / str(seed), seed) for seed in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("words", [("joblib", "parallel=2"), ("submitit", "cluster=local"), ("ray",)], ids=" ".join)
def test_every_launcher_gives_the_bits_of_a_seed_alone(words, alone, store, tmp_path, monkeypatch, capsys):
    launcher, *more = words
    pytest.importorskip(launcher, reason=f"{launcher} is not installed")
    monkeypatch.chdir(tmp_path)  # relative paths begin where the command was given
    Path("here.zarr").symlink_to(store)
    common = ("noise=knn", "seed=0..1", "data=here.zarr", "out=run")
    train(*common, f"launcher={launcher}", *more)
    assert [result(tmp_path / "run", seed) for seed in (0, 1)] == alone
    message = capsys.readouterr().out
    assert "2 of 2 jobs finished" in message and "finished seed run/1 at step 20" in message
    assert set(json.loads((tmp_path / "run" / "summary.json").read_text())["seeds"]) == {"0", "1"}
    train(*common, "resume=true")  # by another launcher
    assert "finished already" in capsys.readouterr().out


@pytest.mark.slow
def test_image_models_are_launched_as_policies_are(tmp_path):
    pytest.importorskip("joblib", reason="joblib is not installed")
    write_images(tmp_path / "cifar10", "train", 20)
    write_images(tmp_path / "cifar10", "test", 10)
    words = ("model=flow", "noise=knn", "seed=0..1", f"data={tmp_path / 'cifar10'}", "scale=cpu", "steps=4",
             "batch_size=4", "checkpoint_every=2", "eval_every=4", "samples=4", "sampling_steps=2", "size=8",
             "channels=[8,16]", "attention=[false,true]", "groups=4", "head_channels=4", "warmup_steps=1",
             "precision=fp32", "wandb=disabled")  # fmt: skip
    weights = {}
    for name in ("local", "joblib"):
        message = command("train_image.py", *words, f"launcher={name}", f"out={tmp_path / name}")
        assert message.returncode == 0, message.stderr
        weights[name] = [path.read_bytes() for path in sorted((tmp_path / name).glob("seed_*/checkpoints/*/*.safe*"))]
    assert weights["local"] == weights["joblib"] and len(weights["local"]) == 12


@pytest.mark.slow
def test_a_seed_that_somebody_trains_is_named_and_the_others_are_trained(alone, store, tmp_path, monkeypatch):
    pytest.importorskip("joblib", reason="joblib is not installed")
    monkeypatch.setattr(jobs, "PATIENCE", 0.0)
    words = ("noise=knn", "seed=0..1", f"data={store}", f"out={tmp_path}", "launcher=joblib")
    (tmp_path / "like").mkdir()
    begin(RobotRecipe, compose_config(with_words(*words[:-2], f"out={tmp_path / 'like'}")))
    for name in ("config.yaml", "provenance.json"):
        shutil.move(tmp_path / "like" / name, tmp_path / name)
    (tmp_path / "seed_0").mkdir()
    with open(tmp_path / "seed_0" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CommandError, match=r"^seed 0 failed \(exit code 2\): .* another process"):
            train(*words, "resume=true")
    assert result(tmp_path, 1) == alone[1]


def find_training(out, older=()):
    """Wait for a training process below a directory that is midway; returns its id and its job's name."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        for log in Path("/proc").glob("[0-9]*/fd/1"):  # what a worker prints goes to its seed's log
            with suppress(OSError):
                seed = log.readlink().parent
                name = f"{seed.parent.name}/{seed.name.removeprefix('seed_')}"
                midway = seed.is_relative_to(out) and (seed / "checkpoints/step_000160").exists()
                if midway and name not in older:
                    return int(log.parts[2]), name
        time.sleep(0.02)
    raise TimeoutError("no training is midway")


def parent(process):
    return int(Path(f"/proc/{process}/status").read_text().split("PPid:")[1].split()[0])


def trainer(process):
    """The process that a worker trains for; the worker's own parent is the server that forked it."""
    return parent(parent(process))


@pytest.mark.slow
def test_a_job_that_is_preempted_enters_the_queue_again_and_resumes(store, tmp_path, capfd):
    pytest.importorskip("submitit", reason="submitit is not installed")
    words = (*LONG, "noise=knn", f"data={store}")

    def preempt():  # Slurm tells every process of a job
        process, _ = find_training(tmp_path / "there")
        for item in (process, parent(process), trainer(process)):
            os.kill(item, signal.SIGUSR2)

    reported = threading.Thread(target=preempt)
    reported.start()
    train(*words, "launcher=submitit", "cluster=local", f"out={tmp_path / 'there'}")
    reported.join()
    assert "resume seed there/0 at step" in capfd.readouterr().out
    train(*words, f"out={tmp_path / 'here'}")
    assert result(tmp_path / "there", 0) == result(tmp_path / "here", 0)


@pytest.fixture
def cluster():
    """A Ray cluster of a head that runs nothing and three machines of one core each, all on this one."""
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield nodes, [nodes.add_node(num_cpus=1) for _ in range(3)]
    nodes.shutdown()


def machine_of(process, machines):
    """The machine of a Ray cluster that a training process runs on: process, its server, Ray's worker, raylet."""
    raylet = parent(trainer(process))
    return next(item for item in machines if item.all_processes["raylet"][0].process.pid == raylet)


@pytest.mark.slow
def test_a_grid_survives_the_death_of_trainings_workers_and_machines(cluster, store, tmp_path, capfd):
    nodes, machines = cluster
    there = small_grid(store, tmp_path / "there", *LONG, "launcher=ray", f"cluster={nodes.address}")
    killed = []

    def kill():
        for kind in ("training", "worker", "machine"):
            process, name = find_training(tmp_path / "there", killed)
            killed.append(name)
            if kind == "machine":
                nodes.remove_node(machine_of(process, machines), allow_graceful=False)
            else:
                os.kill(process if kind == "training" else trainer(process), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    train_grid(there, RobotRecipe, policy_table)
    killer.join()
    message = capfd.readouterr().out
    assert len(killed) == 3 and "6 of 6 jobs finished" in message
    for name in killed:
        assert f"resume seed {name} at step" in message
    here = small_grid(store, tmp_path / "here", *LONG)
    for arm, config in here.arms.items():
        for seed in (0, 1):
            run = tmp_path / "here" / f"{arm}{seed}"
            train_run(RobotRecipe, replace(config, seed=str(seed), out=str(run)))
            assert result(tmp_path / "there" / arm, seed) == result(run, seed), (arm, seed)
    table = json.loads((tmp_path / "there" / "small.json").read_text())["arms"]
    assert {arm: item["missing_seeds"] for arm, item in table.items()} == dict.fromkeys(there.arms, [])


@pytest.mark.slow
def test_a_job_that_dies_again_and_again_is_given_up_and_named(store, tmp_path, capfd):
    pytest.importorskip("ray", reason="ray is not installed")
    (tmp_path / "once.yaml").write_text("max_retries: 0")
    killer = threading.Thread(target=lambda: os.kill(find_training(tmp_path / "run")[0], signal.SIGKILL))
    killer.start()
    with pytest.raises(CommandError, match=r"seed 0 failed .*killed by signal 9"):
        train(
            *LONG, f"data={store}", "launcher=ray", f"job_options={tmp_path / 'once.yaml'}", f"out={tmp_path / 'run'}"
        )
    killer.join()
