"""Every allowed combination of method, prediction, solver, selector and observation trains and samples."""

from functools import cache
from itertools import product

import pytest
import torch

from immiscible_policy.noise import SELECTORS
from immiscible_policy.path import PREDICTIONS
from immiscible_policy.recipes.robot import RobotRecipe, load_data
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.recipes.robot_objective import observed
from immiscible_policy.solver import Solver
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.training.loop import Cadence, train
from immiscible_policy.training.state import TrainState

OBSERVATIONS = ("keypoints", "state", "image")
LEARNED = [*(["method=diffusion", f"prediction={name}"] for name in PREDICTIONS), ["method=flow"],
           ["method=flow", "prediction=sample", "times=logit_normal"]]  # fmt: skip
CONTROLS = [["method=regression"], ["method=mip"]]
COMBINATIONS = [
    *((words, noise, obs) for words, noise, obs in product(LEARNED, SELECTORS, OBSERVATIONS)),
    *((words, "vanilla", obs) for words, obs in product(CONTROLS, OBSERVATIONS)),
]
SMALL = ("experiment=debug", "steps=3", "device=cpu", "precision=fp32", "batch_size=8", "crop=40", "encoder_width=16")


@pytest.fixture(scope="module")
def load():
    """Reads the data of each observation once."""
    return cache(load_data)


def words_of(method, noise, obs, store):
    images = ["images=rendered"] if obs == "image" else []
    small = [word for word in SMALL if obs == "image" or not word.startswith(("crop", "encoder"))]
    start = ["start=0"] if noise == "idp26" else []  # its published start comes after three steps
    return [*small, *method, f"noise={noise}", *start, f"obs={obs}", *images, f"data={store}"]


@pytest.mark.parametrize(
    ("method", "noise", "obs"), COMBINATIONS, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_it_trains_three_steps_and_samples_with_every_solver(method, noise, obs, store, load, tmp_path):
    recipe = RobotRecipe.prepare(compose_config(words_of(method, noise, obs, store)), load)
    work = recipe.build(RunDirectory(tmp_path).seed(0))
    before = {name: value.clone() for name, value in work.model.state_dict().items()}
    state = TrainState(
        work.model, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, warmup_steps=1, steps=3, ema_power=0.75, ema_max=0.99
    )
    losses = []
    train(
        state, work.objective, Cadence(3, 1, 3, 3), precision="fp32", record=losses.append,
        evaluate=lambda state: {}, save=lambda state: None, engine="eager",
    )  # fmt: skip
    assert state.step == 3 and all(row["loss"] > 0 for row in losses if "loss" in row)
    changed = [name for name, value in work.model.state_dict().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("network") for name in changed)
    assert any(name.startswith("observer.encoder") for name in changed) == (obs == "image")
    windows = work.objective.windows[torch.arange(2)]
    policy, seen = work.model.eval(), observed(windows, work.objective.crop, torch.Generator())
    low, high = policy.action.unnormalize(torch.tensor([[-1.0], [1.0]]))
    for solver in policy.path.solvers:
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        chunk = policy.predict(seen, Solver(solver, 3), generators)
        assert chunk.shape == (2, 16, 2) and (chunk >= low - 1e-3).all() and (chunk <= high + 1e-3).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=regression", "noise=knn"], "noise=knn: method=regression does not diffuse"),
        (["method=mip", "noise=linear"], "noise=linear: method=mip does not diffuse"),
        (["method=flow", "prediction=epsilon"], "method=flow predicts velocity or sample"),
        (["method=flow", "select_at=0..9", "noise=knn"], "select_at=0..9: method=flow"),
        (["method=flow", "spacing=leading"], "spacing=leading"),
        (["method=regression", "solver=ddim"], "solver=ddim: what this model learned is solved with direct"),
        (["method=diffusion", "solver=direct"], "solver=direct"),
        (["solver=heun", "sampling_steps=4"], "sampling_steps=4: solver=heun"),
        (["solver=ddpm", "eta=0.5"], "eta=0.5: solver=ddpm"),
        (["method=diffusion", "sampling_steps=101"], "sampling_steps=101"),
        (["method=drifting"], "method"),
        (["prediction=noise"], "prediction"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(words, message, store):
    small = [word for word in SMALL if not word.startswith(("crop", "encoder"))]
    with pytest.raises(ValueError) as error:
        RobotRecipe.prepare(compose_config([*small, *words, f"data={store}"]))
    assert message in str(error.value) and "\n" not in str(error.value)
