"""From noise options to selectors: schedules in epochs, potentials, masks."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest
import torch

from immiscible_policy.demos.windows import Layout
from immiscible_policy.noise import cross_fitted, fit_mlp_prediction, fit_potentials, make_selector
from immiscible_policy.noise.assignment import Assignment
from immiscible_policy.noise.schedule import Schedule
from immiscible_policy.recipes.noise import (
    actions_compared,
    diffusion_levels,
    noise_audit,
    noise_options,
    require_noise,
)
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.recipes.robot_objective import RobotObjective, conditions
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.tasks import find_task, open_demonstrations, task_windows
from tests.training.helpers import here, refused


@pytest.fixture(autouse=True)
def quick_fit(monkeypatch):
    """Potentials change the time of a selection and nothing else, so a short fit will do."""
    monkeypatch.setattr("immiscible_policy.noise.assignment.fit_potentials", partial(fit_potentials, steps=20))


def noise(words, steps=5000, steps_per_epoch=95.0, batch_size=256):
    return noise_options(
        compose_config(words).noise, steps=steps, batch_size=batch_size, steps_per_epoch=steps_per_epoch
    )


def objective(store, choice, **options):
    config = compose_config(["experiment=debug", "method=diffusion", f"data={store}", "device=cpu"])
    recipe = RobotRecipe.prepare(config)
    windows = recipe.loaded.training
    return RobotObjective(recipe.policy(0), windows, choice, batch_size=16, accumulate=1, seed=0, **options)


def test_a_schedule_that_batches_chosen_together_never_meet_is_refused():
    """They see the step of their first batch: of 8 steps in eights that is step 0."""
    options = {"steps": 8, "batch_size": 128, "steps_per_epoch": 10.0}
    known = {"name": "linear", "start": 7}
    assert noise_options(known, **options).select.schedule.start == 7
    with pytest.raises(ValueError, match=r"start=7: noise=linear would first select at step 7"):
        noise_options(known, select_over=8, **options)
    assert noise_options(known | {"start": 8}, select_over=8, **(options | {"steps": 9})).select.schedule.start == 8


def test_levels_are_read_and_refused():
    assert diffusion_levels("all", 100) is None
    assert list(diffusion_levels("0..49", 100)) == list(range(50)) and list(diffusion_levels("99..99", 100)) == [99]
    for text in ("50", "50..100", "60..50", "high", "-1..5"):
        with pytest.raises(
            ValueError, match=f"select_at={re.escape(text)}: write all, or diffusion steps such as 0..49"
        ):
            diffusion_levels(text, 100)


def test_levels_reach_the_batches(store):
    def chosen(x, **_):
        return torch.full_like(x, 7.0)

    ((sample, _),) = objective(store, chosen, levels=range(50)).batches(0)
    low = sample.t < 50
    assert torch.equal((sample.target == 7).all(dim=(1, 2)), low) and 0 < low.sum() < 16


def test_selection_for_residuals_sees_what_other_episodes_do_not_predict(store, tmp_path):
    """Noise, potentials and the audit are for the actions less their cross-fitted mean."""
    words = ["experiment=debug", f"data={store}", "device=cpu", "noise=linear", "potentials=true"]
    recipe = RobotRecipe.prepare(compose_config([*words, "select_for=residual", "residual_mean=mlp"]))
    built = recipe.build(RunDirectory(tmp_path).seed(0)).objective
    actions, seen = built.policy.clean(built.windows.action), conditions(built.policy, built.windows, None, None)
    expected = cross_fitted(fit_mlp_prediction, seen, actions, built.windows.episode).reshape(actions.shape)
    assert torch.equal(built.expected, expected)
    same = recipe.noise.build(actions - expected).potentials
    assert all(torch.equal(a, b) for a, b in zip(built.select.potentials.weights, same.weights, strict=True))
    rows, shown = built.order.rows(3), {}

    def spy(x, *, condition=None, mask=None, step=None, generator=None):
        shown.update(x=x, condition=condition)
        return torch.randn(x.shape, generator=generator)

    built.select = spy
    built.batches(3)
    assert torch.equal(shown["x"], (actions - expected)[rows]) and torch.equal(shown["condition"], seen[rows])


def test_what_is_predicted_is_chosen_where_something_is():
    message = "residual_mean=mlp: nothing is predicted; add select_for=residual"
    with pytest.raises(ValueError, match=message):
        compose_config(["experiment=debug", "device=cpu", "noise=knn", "residual_mean=mlp"])
    with pytest.raises(ValueError, match="residual_mean"):
        compose_config(["experiment=debug", "device=cpu", "noise=knn", "select_for=residual", "residual_mean=tree"])


@pytest.mark.parametrize("word", ["select_for=residual", "exclude=padding"])
def test_where_nothing_is_selected_options_of_the_selection_are_refused(store, word):
    with pytest.raises(ValueError, match=f"{word}: noise=vanilla selects no noise for a sample"):
        compose_config(["experiment=debug", f"data={store}", "device=cpu", word])


def test_epochs_become_steps():
    assert noise(["noise=idp26"]).select.schedule == Schedule(4750)
    in_epochs = noise(["noise=knn", "start=2.5ep", "ramp=1ep", "stop=40ep"]).select
    assert in_epochs == make_selector("knn", start=238, ramp=95, stop=3800)
    assert noise(["noise=knn", "start=7"]).select.schedule == Schedule(7)


def test_a_selector_from_elsewhere_is_fitted_and_reads_epochs(write_module):
    write_module(
        "own_recipe",
        "class Own:\n"
        "    def __init__(self, start=0, shift=None):\n"
        "        self.start, self.shift = start, shift\n"
        "    def fitted(self, x):\n"
        "        return Own(self.start, x.mean())\n"
        "    def __call__(self, x, *, condition=None, mask=None, step=None, generator=None):\n"
        "        return x + self.shift\n",
    )
    select = noise(["noise=own_recipe:Own", "noise.start=2ep"]).build(torch.full((4, 2), 3.0))
    assert select.start == 190 and torch.equal(select(torch.zeros(2, 2)), torch.full((2, 2), 3.0))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda x: x[:1], r"noise=lab:Mine returned \(1, 16, 2\) torch.float32 for samples \(8, 16, 2\) torch.float32"),
        (lambda x: x.double(), "torch.float64"),
        (lambda x: x.numpy(), "returned ndarray"),
        (lambda x: x / 0, "not finite"),
    ],
)
def test_a_selector_from_elsewhere_that_returns_no_noise_is_refused(returned, message):
    def select(x, **others):
        return returned(x)

    with pytest.raises(ValueError, match=message):
        require_noise(select, "lab:Mine", (16, 2))
    require_noise(lambda x, **others: x.flip(0), "lab:Mine", (16, 2))


def test_potentials_are_fitted_where_they_save_time():
    assert noise(["noise=linear"]).fit and not noise(["noise=linear"], steps=999).fit
    assert noise(["noise=linear", "potentials=true"], steps=10).fit
    assert not noise(["noise=linear", "potentials=false"]).fit
    assert not noise(["noise=linear", "start=4500"]).fit
    assert noise(["noise=linear"], steps=250, batch_size=1024).fit
    assert not noise(["noise=linear"], steps=3000, batch_size=64).fit


@pytest.mark.parametrize("name", ["linear", "idp26"])
def test_fitted_potentials_reach_the_selector_and_change_no_pair(store, name):
    plain = objective(store, noise_options({"name": name}, steps=10, batch_size=16, steps_per_epoch=1).select)
    actions = plain.policy.clean(plain.windows.action)
    options = noise_options({"name": name, "potentials": True}, steps=10, batch_size=16, steps_per_epoch=1)
    select = options.build(actions)
    assert isinstance(select, Assignment) and select.potentials is not None
    warm = objective(store, select)
    for step in range(5):
        assert torch.equal(plain.batches(step)[0].path.target, warm.batches(step)[0].path.target)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["noise=idp26"], "start=50ep: noise=idp26 would first select at step 4,750 of steps=3000"),
        (["noise=knn", "start=3000"], "start=3000: noise=knn would first select at step 3,000"),
        (["noise=knn", "ramp=1000000"], "ramp=1000000: noise=knn would never select, its strength reaches 0.003"),
        (["noise=linear", "stop=10", "ramp=5000"], "stop=10 ramp=5000: noise=linear would never select"),
        (["noise=linear", "ramp=600000"], "ramp=600000: noise=linear would never select"),  # 1 of 256 moves nothing
        (["noise=c2ot", "weight=.inf"], "weight=.inf: needs a number"),
        (["noise=c2ot", "weight=abc"], "weight=abc"),
        (["noise=c2ot", "ratio=null"], "ratio=None"),
        (["noise=knn", "start=3days"], r"start=3days: needs training steps \(500\), or on the command line epochs"),
        (["noise=knn", "stop=0"], "stop=0: must come after start=0"),
        (["noise=linear", "potentials=maybe"], "potentials=maybe: use auto, true or false"),
        (["noise=c2ot", "ratio=7"], "ratio=7"),
    ],
)
def test_unusable_options_are_refused_in_one_line(words, message):
    with pytest.raises(ValueError, match=message):
        noise(words, steps=3000)


def test_padding_or_what_is_never_executed_is_excluded(store):
    layout = Layout(16, 2, 8)
    task = find_task("pusht")
    windows = task_windows(task, open_demonstrations(task, store), "keypoints", layout)
    assert actions_compared(windows, "none", layout) is None
    padding, unexecuted = (actions_compared(windows, exclude, layout) for exclude in ("padding", "unexecuted"))
    assert torch.equal(padding, windows.real)
    assert not unexecuted[:, 0].any() and not unexecuted[:, 9:].any()
    assert torch.equal(unexecuted[:, 1:9], windows.real[:, 1:9])


def test_the_mask_of_each_window_enters_the_selection(store):
    windows = objective(store, make_selector("vanilla")).windows
    mask = actions_compared(windows, "unexecuted", Layout(16, 2, 8))
    seen = {}

    def spy(x, *, condition=None, mask=None, step=None, generator=None):
        seen.update(mask=mask, step=step, condition=condition)
        return torch.randn(x.shape, generator=generator)

    trained = objective(store, spy, compared=mask)
    trained.batches(3)
    assert torch.equal(seen["mask"][..., 0], mask[trained.order.rows(3)])
    assert seen["step"] == 3 and seen["condition"].shape == (16, 40)


def test_schedules_reach_the_selector():
    select = noise(["noise=linear", "start=10", "stop=20", "ramp=3"]).build(torch.zeros(2, 2))
    assert select.schedule == Schedule(10, 20, 3)


def test_a_conditional_assignment_trains_and_logs_its_audit(tmp_path, store):
    out = tmp_path / "run"
    words = ("noise=c2ot", "weight=0.1", "exclude=unexecuted", "device=cpu")
    result = here("train_policy.py", "experiment=debug", f"data={store}", f"out={out}", *words)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (out / "seed_0" / "metrics.jsonl").read_text().splitlines()]
    audits = [row for row in rows if "noise/distance_percent" in row]
    assert len(audits) == 2
    assert all(row["noise/distance_percent"] < -1 and row["noise/selection_ms"] > 0 for row in audits)


def test_an_exclusion_that_nothing_measures_is_refused_before_anything_is_written(tmp_path, store):
    out = tmp_path / "run"
    message = refused(here("train_policy.py", "exclude=padding", f"data={store}", f"out={out}", "device=cpu"))
    assert "exclude=padding: noise=vanilla" in message and not out.exists()


def test_noise_is_assigned_within_all_batches_that_choose_together(store):
    """Three batches of 16 are one batch of 48 in parts, in whatever order they are prepared."""
    linear = make_selector("linear")
    together = objective(store, linear, select_over=3)
    whole = replace(objective(store, linear), batch_size=48).batches(2)[0]
    pieces = {step: together.batches(step)[0] for step in (7, 6, 8)}
    assert torch.equal(whole.path.noisy, torch.cat([pieces[step].path.noisy for step in (6, 7, 8)]))
    plain = objective(store, linear)
    rows = torch.cat([plain.order.rows(step) for step in (6, 7, 8)])
    assert torch.equal(together.order.rows(2), rows), "the same windows in the same batches"


def test_the_audit_measures_what_is_chosen_together(store):
    """Assignment within more samples comes nearer, and says so."""
    linear = make_selector("linear")
    alone, together = (noise_audit(objective(store, linear, select_over=over), 0, batches=8) for over in (1, 4))
    assert (alone.batch_size, together.batch_size) == (16, 64)
    assert together.distance.percent < alone.distance.percent - 1


@pytest.mark.parametrize("name", ["vanilla", "knn", "sign"])
def test_choosing_together_is_refused_where_other_samples_do_not_matter(name):
    with pytest.raises(ValueError, match=f"select_over=8: noise={name} chooses for each sample alone"):
        compose_config([f"noise={name}", "select_over=8"])


def test_batches_of_mirrored_pairs_do_not_choose_together():
    with pytest.raises(ValueError, match="mirror_batches=true needs select_over=1"):
        compose_config(["noise=linear", "select_over=8", "mirror=true", "mirror_batches=true"])
