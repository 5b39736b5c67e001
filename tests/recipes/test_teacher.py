"""A policy that is taught by another one: rectified flow."""

import shutil

import pytest
import torch

from immiscible_policy.evaluation.agent import read_policy
from immiscible_policy.path import Flow
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.recipes.teacher import make_teach
from immiscible_policy.store.run import RunDirectory
from tests.training.helpers import here, refused, tree

FAST = ("experiment=debug", "threads=1", "precision=fp32", "episodes=1", "steps=6", "checkpoint_every=3",
        "eval_every=6", "seed=1")  # fmt: skip


@pytest.fixture(scope="module")
def teacher(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "teacher"
    result = here("train_policy.py", *FAST, f"data={store}", f"out={out}")
    assert result.returncode == 0, result.stderr
    return out


def objective(store, out, *words):
    """The objective of a student, and its policy before training."""
    recipe = RobotRecipe.prepare(compose_config([*FAST, f"data={store}", f"out={out}", *words]))
    work = recipe.build(RunDirectory(out).seed(1))
    return work.objective, work.model


@pytest.mark.parametrize("spacing", ["trailing", "shifted"])
def test_times_of_the_calls_are_those_of_the_solvers_levels(spacing):
    path = Flow(law="calls", calls=3, spacing=spacing)
    levels = torch.tensor([level.alpha for level in path.levels(3, spacing)])
    times, counts = path.times(3000, torch.Generator().manual_seed(0)).unique(return_counts=True)
    assert torch.equal(times, levels)
    assert counts.tolist() == pytest.approx([1000] * 3, rel=0.1)


def test_a_student_of_one_call_by_one_call_has_nothing_to_learn(store, teacher, tmp_path):
    """Its target is its own answer, but where a clean number was cut off at the range of the data."""
    own, policy = objective(store, tmp_path / "run", f"teacher={teacher}", "teacher_calls=1", "sampling_steps=1")
    (batch,) = own.batches(0)
    answer = policy.network(batch.path.noisy, torch.zeros(32), policy.observer.encode(*batch.observed))
    inside = (batch.path.noisy + answer).abs() < 1
    assert batch.path.t.eq(0).all() and 0.2 < inside.float().mean() < 1
    torch.testing.assert_close(answer[inside], batch.path.target[inside], rtol=1e-4, atol=1e-5)


def test_pairs_are_what_the_teachers_solver_makes_of_plain_noise(store, teacher, tmp_path):
    own, _ = objective(store, tmp_path / "run", f"teacher={teacher}", "teacher_calls=4", "times=uniform")
    (batch,) = own.batches(3)
    t = batch.path.t.view(-1, 1, 1)
    noise, clean = batch.path.noisy - t * batch.path.target, batch.path.noisy + (1 - t) * batch.path.target
    policy, _ = read_policy(RunDirectory(teacher).seed(1).newest())
    rows = own.windows[own.order.rows(3)]
    torch.testing.assert_close(clean, make_teach(policy, 4, "fp32")(rows.obs, noise), rtol=1e-3, atol=1e-4)
    assert abs(float(noise.mean())) < 0.1 and float(noise.std()) == pytest.approx(1, abs=0.1)


def test_a_student_trains_and_resumes_as_in_one_go(store, teacher, tmp_path):
    words = [word for word in FAST if not word.startswith("steps=")]
    words += [f"data={store}", f"teacher={teacher}", "sampling_steps=1", "lr_schedule=constant"]
    for out, steps in (("whole", 6), ("cut", 3)):
        result = here("train_policy.py", *words, f"steps={steps}", f"out={tmp_path / out}")
        assert result.returncode == 0, result.stderr
    assert here("train_policy.py", f"resume={tmp_path / 'cut'}", "steps=6").returncode == 0
    last = "checkpoints/step_000006/model.safetensors"
    weights = [(tmp_path / out / "seed_1" / last).read_bytes() for out in ("whole", "cut")]
    assert weights[0] == weights[1] != (teacher / "seed_1" / last).read_bytes()


def test_a_teacher_that_has_learned_more_since_is_refused_on_resume(store, teacher, tmp_path):
    longer, run = shutil.copytree(teacher, tmp_path / "longer"), tmp_path / "run"
    words = [*FAST, f"data={store}", f"teacher={longer}", "sampling_steps=1", f"out={run}"]
    assert here("train_policy.py", *words).returncode == 0
    assert here("train_policy.py", f"resume={longer}", "steps=9").returncode == 0
    before = tree(run)
    line = refused(here("train_policy.py", f"resume={run}", "steps=9"))
    assert "longer: its seed 1 has changed since training began; restore it" in line and tree(run) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=2"], "it has no finished seed 2; train it first"),
        (["down_dims=[16,48]"], r"down_dims=(16, 48) differs from the teacher's, (16, 32)"),
        (["noise=knn"], "noise=knn: teacher= makes the actions of the noise"),
        (["method=diffusion"], "method=diffusion has no teacher; use method=flow"),
        (["teacher={loop}"], "loop: it has no finished seed 1"),
        (["teacher=nowhere"], "nowhere: it has no finished seed 1"),
        (["teacher=null", "teacher_calls=3"], "teacher_calls=3: there is no teacher; add teacher=RUN"),
    ],
)
def test_what_cannot_be_taught_is_one_line(store, teacher, tmp_path, words, message):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    words = [word.format(loop=tmp_path / "loop") for word in words]
    before = tree(tmp_path)
    given = {word.partition("=")[0] for word in words}
    usual = [word for word in (*FAST, f"data={store}", f"teacher={teacher}") if word.partition("=")[0] not in given]
    line = refused(here("train_policy.py", *usual, *words, f"out={tmp_path / 'run'}"))
    assert message in line and tree(tmp_path) == before
