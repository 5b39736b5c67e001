"""Other solvers, and those that follow the law of training: against hand-made denoisers, and on small policies."""

import numpy as np
import pytest
import torch
import yaml

from immiscible_policy.evaluation.agent import Agent, spec_metadata
from immiscible_policy.lab import solvers
from immiscible_policy.lab.solvers import Scheme, TrainingLawPolicy, read_schemes, summarise
from immiscible_policy.noise import make_selector
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.solver import Solver
from immiscible_policy.store.checkpoint import save_checkpoint
from immiscible_policy.store.run import RunDirectory, named_runs
from immiscible_policy.tasks import Observed
from immiscible_policy.training.driver import train_run
from tests.lab.small import SPEC, AlwaysThere, small_policy
from tests.training.helpers import write_small_store

OPTIONS = {key: option.default for key, option in solvers.OPTIONS.items()}


def generators(rows, seed=0):
    return [torch.Generator().manual_seed(seed + row) for row in range(rows)]


@pytest.fixture
def policy():
    return small_policy()


def recording(chosen):
    """A selector that always chooses the same number, and the samples it was shown."""
    shown = []

    def select(x, *, generator):
        shown.append(x.clone())
        return torch.full_like(x, chosen)

    return select, shown


def law_agent(policy, select, law, calls):
    return Agent(TrainingLawPolicy(policy, select, law), SPEC, Scheme(law, calls).solver)


def act(agent, rows=3):
    observations = np.tile(512 * np.random.default_rng(0).random((1, 2, 20)), (rows, 1, 1))
    return agent.act(Observed(observations, {}), generators(rows))


def test_drafted_starts_from_noise_chosen_for_the_draft(policy):
    policy.network = AlwaysThere(policy, place=0.5)
    select, shown = recording(7.0)
    acted = act(law_agent(policy, select, "drafted", 4))
    assert acted.shape == (3, 8, 2) and acted == pytest.approx(0.75 * 512, abs=0.1)
    torch.testing.assert_close(torch.cat(shown), torch.full((3, 16, 2), 0.5), rtol=1e-4, atol=1e-4)
    seen = policy.network.seen
    assert [t for _, t in seen] == [99, 74, 49, 24] * 2
    assert float(seen[0][0].std()) == pytest.approx(1, abs=0.2) and (seen[4][0] == 7).all()


def test_renoised_meets_what_training_would_mix_at_every_step(policy):
    policy.network = AlwaysThere(policy, place=0.5)
    select, shown = recording(7.0)
    acted = act(law_agent(policy, select, "renoised", 4))
    assert acted == pytest.approx(0.75 * 512, abs=0.1) and len(shown) == 9  # 3 rows after each step but the last
    for x, t in policy.network.seen[1:]:
        a = policy.path.alphas_cumprod[t]
        torch.testing.assert_close(x, torch.full_like(x, float(a.sqrt() * 0.5 + (1 - a).sqrt() * 7)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("law", ["drafted", "renoised"])
def test_a_row_depends_on_its_own_source_alone(policy, law):
    agent = law_agent(policy, make_selector("knn", k=4), law, 3)
    together, alone = act(agent, rows=3), act(agent, rows=1)
    assert together[:1] == pytest.approx(alone, abs=1e-2)
    assert np.abs(together[1] - together[0]).max() > 1


def test_plain_noise_makes_a_draft_a_sampling_like_any_other(policy):
    """With vanilla noise the second pass starts from each source's next noise."""
    agent = Agent(policy, SPEC, Solver("ddim", 3))
    drafted = act(law_agent(policy, make_selector("vanilla"), "drafted", 3), rows=2)
    observations = np.tile(512 * np.random.default_rng(0).random((1, 2, 20)), (2, 1, 1))
    sources = generators(2)
    for source in sources:
        torch.randn(16, 2, generator=source)
    assert drafted == pytest.approx(agent.act(Observed(observations, {}), sources), abs=1e-2)


def test_plain_noise_makes_renoising_the_solver_of_that_name(policy):
    renoised = law_agent(policy, make_selector("vanilla"), "renoised", 4)
    assert act(renoised) == pytest.approx(act(Agent(policy, SPEC, Solver("renoise", 4))), abs=1e-2)


def test_schemes_are_read_and_refused():
    words = ["ddim10", "ddim10-leading", "renoised5", "dpmpp5-eta1", "ddim5-shifted-eta0.5"]
    read = read_schemes(",".join(words))
    assert read[:3] == [Scheme("ddim", 10), Scheme("ddim", 10, "leading"), Scheme("renoised", 5)]
    assert [scheme.text for scheme in read] == words
    assert [scheme.solver for scheme in read] == [
        Solver("ddim", 10), Solver("ddim", 10, "leading"), Solver("renoise", 5), Solver("dpmpp", 5, eta=1.0),
        Solver("ddim", 5, "shifted", 0.5),
    ]  # fmt: skip
    for text in ("ddim", "rk10", "ddim0", "10", "", "ddim10-trailing", "dpmpp5-eta2"):
        with pytest.raises(ValueError, match="write a solver and its network calls, such as ddim10"):
            read_schemes(text)
    with pytest.raises(ValueError, match="given twice"):
        read_schemes("ddim10,ddpm5,ddim10")


def test_differences_by_hand():
    ten, five = Scheme("ddim", 10), Scheme("ddim", 5)
    base, other = np.array([[0.2, 0.4], [0.4, 0.6]]), np.array([[0.3, 0.5], [0.5, 0.7]])
    scores = {("a", ten): base, ("b", ten): other}
    paired = summarise(scores, {"a": [0, 1], "b": [0, 1]}, [ten])["runs"]
    assert paired["a"]["ddim10"]["score"]["mean"] == pytest.approx(0.4) and list(paired["a"]["ddim10"]) == ["score"]
    difference = paired["b"]["ddim10"]["from_run"]
    assert [difference[key] for key in ("mean", "low", "high")] == pytest.approx([0.1, 0.1, 0.1])
    of_solver = summarise({("a", ten): base, ("a", five): other}, {"a": [0, 1]}, [ten, five])["runs"]
    assert of_solver["a"]["ddim5"]["from_solver"]["mean"] == pytest.approx(0.1)
    unpaired = summarise(scores, {"a": [0, 1], "b": [2, 3]}, [ten])["runs"]["b"]["ddim10"]["from_run"]
    assert unpaired["mean"] == pytest.approx(0.1) and unpaired["low"] < 0 < unpaired["high"]


def write_run(directory, policy, noise, **config):
    config = {"seed": "0", "noise": noise, **config}
    metadata = spec_metadata(SPEC) | {"step": 7, "seed": 0, "config": config}
    weights = policy.state_dict()
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    save_checkpoint(directory / "seed_0" / "checkpoints" / "step_000007", metadata, {"model": weights, "ema": weights})
    return str(directory)


def test_the_experiment_rolls_out_every_run_under_every_solver_it_takes(tmp_path, policy):
    runs = [write_run(tmp_path / "vanilla", policy, {"name": "vanilla"}),
            write_run(tmp_path / "linear", policy, {"name": "linear"})]  # fmt: skip
    options = {"runs": named_runs(",".join(runs)), "solvers": "ddim1,renoised1", "episodes": 2}
    outcome = solvers.measure(OPTIONS | options)
    results = outcome.figures["runs"]
    assert list(results["vanilla"]) == ["ddim1", "renoised1"] and list(results["linear"]) == ["ddim1"]
    same = results["linear"]["ddim1"]["from_run"]  # the same weights, starts and noises
    assert same["mean"] == same["low"] == same["high"] == 0
    assert "| linear | +0.000 [+0.000, +0.000] |  |" in outcome.text


def test_a_residual_run_takes_no_solver_of_its_law(tmp_path, policy):
    run = write_run(tmp_path / "residual", policy, {"name": "knn", "k": 2}, select_for="residual")
    result = solvers.measure(OPTIONS | {"runs": named_runs(str(run)), "solvers": "ddim1,drafted1", "episodes": 1})
    assert list(result.figures["runs"]["residual"]) == ["ddim1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "needs runs="),
        ({"runs": {"absent": RunDirectory("absent")}}, "absent"),
        ({"runs": {"x": RunDirectory("x")}, "solvers": "rk10"}, "solvers=rk10"),
    ],
)
def test_bad_options_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message):
        solvers.measure(OPTIONS | change)


def test_unknown_starts_are_refused_before_anything_is_rolled_out(tmp_path, policy, monkeypatch):
    monkeypatch.setattr(solvers, "rolled_out", lambda *_: pytest.fail("a policy was rolled out"))
    run = write_run(tmp_path / "vanilla", policy, {"name": "vanilla"})
    with pytest.raises(ValueError, match="starts=first"):
        solvers.measure(OPTIONS | {"runs": named_runs(str(run)), "starts": "first"})


def test_held_out_episodes_score_as_in_training(tmp_path):
    store = write_small_store(tmp_path / "store.zarr", steps=60)
    words = {
        "experiment": "debug", "task": "none", "data": store, "obs": "state", "method": "flow", "solver": "euler",
        "sampling_steps": 2, "steps": 2, "validation": 0.4, "precision": "fp32", "device": "cpu", "wandb": "disabled",
        "out": tmp_path / "run",
    }  # fmt: skip
    train_run(RobotRecipe, compose_config([f"{key}={value}" for key, value in words.items()]))
    run = RunDirectory(tmp_path / "run")
    recorded = [row.metrics["energy_score"] for row in run.episodes()[0] if row.checkpoint == 2]
    options = OPTIONS | {"runs": {"run": run}, "solvers": "euler1,euler2-shifted", "on": "held_out"}
    figures = solvers.measure(options).figures
    assert figures["unit"] == "held-out episodes" and figures["starts"] == len(recorded)
    assert figures["runs"]["run"]["euler2-shifted"]["score"]["mean"] == pytest.approx(np.mean(recorded), rel=1e-5)
