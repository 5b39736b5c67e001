"""How long a training takes is said in the plan: a sample's seconds, times all that is done with samples."""

import time
from types import SimpleNamespace

import pytest
import torch

from immiscible_policy.training import duration
from immiscible_policy.training.duration import DAY, ENOUGH, Rehearsal, planned_time, sample_seconds, spoken

OPTIONS = {"batch_size": 8, "accumulate": 1, "steps": 100, "eval_every": 30, "seed": "0", "parallel": 1, "threads": 1,
           "device": "cpu", "precision": "fp32"}  # fmt: skip


@pytest.fixture
def plan(monkeypatch):
    """The line of a plan in which a sample takes a second, and an evaluation sees six without gradients."""
    monkeypatch.setattr(duration, "sample_seconds", lambda *_: 1.0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    return lambda **changed: planned_time(SimpleNamespace(**OPTIONS | changed), Rehearsal([], torch.zeros, 6))


def test_steps_and_evaluations_add_up(plan):
    """100 steps of 8 samples, and 4 evaluations of 6 samples at a third of the price."""
    assert plan() == f"time:   about {spoken(100 * 8 + 4 * 2)} (8.0 s a step, 2.0 s an evaluation)"
    assert plan(accumulate=3).startswith(f"time:   about {spoken(100 * 9 + 4 * 2)} (9.0 s a step")


def test_seeds_share_the_cores_and_the_gpu(plan):
    one = 808
    assert spoken(3 * one) in plan(seed="0..2")
    assert spoken(2 * one) in plan(seed="0..2", parallel=2)  # two at once, and one after them
    assert spoken(2 * one) in plan(seed="0..1", parallel=2, threads=2)
    assert spoken(2 * one) in plan(seed="0..1", parallel=2, device="cuda")


def test_an_absurd_plan_is_asked_about(plan):
    assert "if that is not meant, make steps=" in plan(steps=10**9) and "years" in plan(steps=10**9)
    assert "if that is not meant" not in plan(steps=1000)


def test_as_many_samples_are_measured_as_take_long_enough():
    seen = []

    def run(rows):
        seen.append(rows)
        time.sleep(1e-3 * rows)
        return torch.zeros(1, requires_grad=True)

    assert 1e-3 <= sample_seconds(Rehearsal([], run, 0), 10**6, "cpu", "fp32") < 5e-3
    assert seen == [1, 1, 16, 16, 256, 256] and 0.001 * seen[-1] > ENOUGH
    seen.clear()
    sample_seconds(Rehearsal([], run, 0), 5, "cpu", "bf16")
    assert seen == [1, 1, 5, 5]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 ms"), (0.0042, "4.2 ms"), (59.0, "59 s"), (90.0, "1.5 min"), (5400.0, "1.5 h"), (3 * DAY, "3.0 days"),
     (1e11, "3,169 years")],
)  # fmt: skip
def test_durations_have_a_unit(seconds, text):
    assert spoken(seconds) == text
