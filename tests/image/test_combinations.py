"""Every model trains and samples with every solver, selector and data scale that go with it; others are refused."""

from dataclasses import replace

import pytest
import torch

from immiscible_policy.image.build import build_image_model
from immiscible_policy.noise import SELECTORS, make_selector
from immiscible_policy.path import PREDICTIONS
from tests.image.specs import tiny_spec
from tests.random_numbers import generator

SMALL = {"size": 4, "channels": (8,), "attention": (False,)}
SPECS = {
    **{f"ddim {prediction}": tiny_spec(prediction=prediction, **SMALL) for prediction in PREDICTIONS},
    "flow": tiny_spec("flow", **SMALL),
    "consistency": tiny_spec("consistency", **SMALL),
}
ANY = ("ddim", "ddpm", "dpmpp", "euler", "heun", "renoise")
ALLOWED = [(name, solver) for name in SPECS for solver in (("renoise",) if name == "consistency" else ANY)]
PAIRED = tuple(name for name in SELECTORS if name != "c2ot")
"""Selectors that need no condition; unconditional models have none."""


def trained(spec, selector, steps=3):
    """A model after some steps of gradient descent, and its losses."""
    torch.manual_seed(0)
    model, select, losses = build_image_model(spec), make_selector(selector), []
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    pixels = torch.rand(8, 3, spec.size, spec.size, generator=generator(1)) * 2 - 1
    for step in range(steps):
        loss = model.loss(model.noised(pixels, select, step=step, generator=generator(2)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model.eval(), losses


@pytest.mark.parametrize("data_scale", [1.0, 2.0])
@pytest.mark.parametrize("selector", PAIRED)
@pytest.mark.parametrize("name", SPECS)
def test_allowed_combinations_train_and_sample(name, selector, data_scale):
    """The same noise and times at three steps, so that the loss falls; then every solver of the path samples."""
    model, losses = trained(replace(SPECS[name], data_scale=data_scale), selector)
    assert losses[2] < losses[0]
    solvers = [solver for of, solver in ALLOWED if of == name]
    assert set(model.path.solvers) == set(solvers)
    noise, drawn = torch.randn(2, 3, 4, 4, generator=generator(3)), []
    for solver in solvers:
        sample = model.sample(noise, model.choose(solver, 3), generator=generator(4))
        assert sample.images.shape == (2, 3, 4, 4) and sample.predicted.shape == (3, 2, 3, 4, 4)
        assert sample.images.isfinite().all() and float(sample.images.abs().max()) <= 1
        drawn.append(sample.images)
    if name == "flow" and selector == "vanilla":  # the adaptive solver takes seconds
        drawn.append(model.sample(noise).images)
        assert torch.equal(drawn[ANY.index("ddim")], drawn[ANY.index("euler")])
    assert len({tuple(images.flatten().tolist()) for images in drawn}) >= len(drawn) - 1  # euler is ddim


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        *(("consistency", (solver, 1), f"solver={solver}: ") for solver in ANY if solver != "renoise"),
        ("consistency", (None, 0), "sampling_steps=0"),
        ("consistency", (None, 2, "leading"), "spacing=leading"),
        ("flow", (None, 3, "leading"), "spacing=leading"),
        ("flow", ("heun", 2), "sampling_steps=2: solver=heun"),
        ("flow", ("euler", 2, "trailing", 0.5), "eta=0.5: solver=euler has no eta"),
        ("flow", ("direct", 1), "solver=direct"),
        ("ddim epsilon", ("rk4", 4), "solver=rk4: choose from"),
        ("ddim epsilon", ("ddim", 1001), "sampling_steps=1001"),
        ("ddim epsilon", ("ddim", 2, "even"), "spacing=even"),
        ("ddim epsilon", ("ddim", 2, "trailing", 2.0), "eta=2.0"),
    ],
)
def test_other_solvers_are_refused_in_one_line(name, words, message):
    with pytest.raises(ValueError, match=message) as refused:
        build_image_model(SPECS[name]).choose(*words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", SPECS)
def test_a_selector_that_compares_conditions_is_refused_where_there_are_none(name):
    with pytest.raises(ValueError, match="condition is missing"):
        trained(SPECS[name], "c2ot", steps=1)
