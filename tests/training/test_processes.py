"""One training over several processes, through the real command line: what one process alone does, in shares."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from immiscible_policy.store.run import RunDirectory
from tests.training.helpers import ROOT, here, refused

WORDS = ("down_dims=[16,32]", "step_embed_dim=16", "groups=4", "steps=6", "batch_size=16", "checkpoint_every=6",
         "episodes=1", "warmup_steps=1", "wandb=disabled", "log_every=1", "threads=1", "precision=fp32")  # fmt: skip
LOST = "error: another process of this training is gone; start them all again with resume=true"


def start(size, *words):
    """The processes of a training, with the environment that torchrun gives them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "WORLD_SIZE": str(size),
              "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, str(ROOT / "train_policy.py"), *words], cwd=ROOT, text=True,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]  # fmt: skip


def with_words(*words):
    """The usual words, but for those given."""
    given = {word.partition("=")[0] for word in words}
    return (*(word for word in WORDS if word.partition("=")[0] not in given), *words)


def together(size, *words):
    message = [process.communicate(timeout=200) for process in start(size, *words)]
    assert not any(err for _, err in message) and not any(out for out, _ in message[1:]), message


def trained(out):
    checkpoint = RunDirectory(out).seed(0).newest()
    rows = [json.loads(line) for line in (out / "seed_0/metrics.jsonl").read_text().splitlines()]
    return checkpoint.tensors("model"), [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "size"),
    [
        (("noise=linear",), 2),
        (("noise=knn", "k=4", "accumulate=2"), 2),
        (("noise=vanilla",), 2),
        (("noise=vanilla",), 4),
        (("noise=knn",), 4),
        (("noise=linear",), 4),
    ],
)
def test_several_processes_train_what_one_trains(noise, size, store, tmp_path):
    words = (*WORDS, *noise, f"data={store}")
    assert here("train_policy.py", *words, f"out={tmp_path / 'alone'}").returncode == 0
    together(size, *words, f"out={tmp_path / 'shared'}")
    weights, losses = trained(tmp_path / "alone")
    others, shared = trained(tmp_path / "shared")
    assert shared == pytest.approx(losses, rel=1e-5) and len(losses) == 6
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_when_a_process_dies_the_first_says_so_and_what_is_left_can_be_resumed(store, tmp_path):
    words = with_words(
        "steps=100000", "checkpoint_every=5", "eval_every=100000", f"data={store}", f"out={tmp_path / 'run'}"
    )
    first, other = start(2, *words)
    while not list((tmp_path / "run").glob("seed_0/checkpoints/step_*")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    other.send_signal(signal.SIGKILL)
    _, message = first.communicate(timeout=60)
    other.communicate()
    assert first.returncode == 2 and message.strip().splitlines()[-1] == LOST
    last = RunDirectory(tmp_path / "run").seed(0).newest()
    assert last.resumable and last.tensors("model").keys() == last.tensors("ema").keys() and last.tensors("optimizer")
    plan = here("train_policy.py", *words, "resume=true", "dry_run=true")
    assert plan.returncode == 0 and plan.stderr == "", plan.stderr


def torchrun(*words):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ROOT / "train_policy.py"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *launch, *words], cwd=ROOT, text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def started(launcher, rank):
    """The process of a launcher that has this rank."""
    own = f"RANK={rank}".encode()
    result = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return next(int(pid) for pid in result if own in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for the processes in /proc")
def test_under_torchrun_a_killed_training_ends_with_a_line_and_resumes_to_the_same_result(store, tmp_path):
    words = with_words("noise=linear", "steps=200", "checkpoint_every=5", "eval_every=200", f"data={store}")
    whole = torchrun(*words, f"out={tmp_path / 'whole'}")
    _, message = whole.communicate(timeout=300)
    assert whole.returncode == 0, message
    cut = torchrun(*words, f"out={tmp_path / 'cut'}")
    while not list((tmp_path / "cut").glob("seed_0/checkpoints/step_*")):
        assert cut.poll() is None, cut.communicate()
        time.sleep(0.05)
    os.kill(started(cut, 1), signal.SIGKILL)
    _, message = cut.communicate(timeout=60)
    assert cut.returncode != 0 and [line for line in message.splitlines() if line.startswith("error: ")] == [LOST], (
        message
    )
    assert RunDirectory(tmp_path / "cut").seed(0).newest().step < 200
    again = torchrun(*words, f"out={tmp_path / 'cut'}", "resume=true")
    out, message = again.communicate(timeout=300)
    assert again.returncode == 0 and "resume seed 0 at step" in out, message
    (weights, losses), (others, their_losses) = trained(tmp_path / "whole"), trained(tmp_path / "cut")
    assert losses == their_losses and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("receiver", [0, 1])
def test_a_signal_to_one_of_several_processes_ends_them_all_with_a_checkpoint(receiver, store, tmp_path):
    words = with_words("steps=100000", "checkpoint_every=100000", f"data={store}", f"out={tmp_path / 'run'}")
    both = start(2, *words)
    while not (tmp_path / "run/seed_0/metrics.jsonl").exists() or not RunDirectory(tmp_path / "run").seed(0).metrics():
        assert both[0].poll() is None, both[0].communicate()
        time.sleep(0.05)
    both[receiver].send_signal(signal.SIGTERM)
    (_, first), (_, other) = (process.communicate(timeout=120) for process in both)
    assert [process.returncode for process in both] == [128 + signal.SIGTERM] * 2, (first, other)
    assert f"torchrun ... {ROOT / 'train_policy.py'} resume={tmp_path / 'run'}" in first and "resume" not in other
    newest = RunDirectory(tmp_path / "run").seed(0).newest()
    assert newest.step % 10 == 0 and newest.resumable and newest.metadata["interrupted"]


@pytest.mark.parametrize(
    ("words", "message"),
    [(("batch_size=15",), "batch_size=15: 2 processes with accumulate=1 need a multiple of 2"),
     (("seed=0..1",), "seed=0,1: 2 processes train one seed together")],
)  # fmt: skip
def test_what_cannot_be_shared_out_is_one_line(words, message, store, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refused(here("train_policy.py", *with_words(*words, f"data={store}", f"out={tmp_path / 'run'}")))
    assert message in line and not (tmp_path / "run").exists()
