"""At `add_noise` the chosen noise takes the place of the drawn one, in the mixture and in the target."""

import copy

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from immiscible_policy.noise import make_selector
from immiscible_policy.plugins.scheduler import chosen_noise

CLEAN = torch.linspace(-1, 1, 12).reshape(3, 4)
T = torch.tensor([0, 50, 99])


def recorded(noise):
    """A choice that hands out known noise, and remembers what it was asked for."""

    def choose(clean):
        choose.calls.append(clean.clone())
        return noise

    choose.calls = []
    return choose


def test_mixture_and_target_hold_the_chosen_noise():
    """x_t = sqrt(a) x + sqrt(1 - a) eps with the chosen eps, which the caller's own tensor now holds."""
    scheduler, chosen, drawn = DDPMScheduler(), torch.randn(3, 4), torch.randn(3, 4)
    choose = recorded(chosen)
    with chosen_noise(scheduler, choose):
        noisy = scheduler.add_noise(CLEAN, drawn, T)
    a = scheduler.alphas_cumprod[T, None]
    torch.testing.assert_close(noisy, a.sqrt() * CLEAN + (1 - a).sqrt() * chosen)
    assert torch.equal(drawn, chosen) and len(choose.calls) == 1 and torch.equal(choose.calls[0], CLEAN)


def test_the_velocity_target_is_that_of_the_chosen_noise():
    scheduler, chosen, drawn = DDPMScheduler(prediction_type="v_prediction"), torch.randn(3, 4), torch.randn(3, 4)
    with chosen_noise(scheduler, recorded(chosen)):
        scheduler.add_noise(CLEAN, drawn, T)
        velocity = scheduler.get_velocity(CLEAN, drawn, T)
    torch.testing.assert_close(velocity, DDPMScheduler().get_velocity(CLEAN, chosen, T))


def test_outside_the_context_the_scheduler_is_as_before():
    scheduler, drawn = DDPMScheduler(), torch.randn(3, 4)
    with pytest.raises(KeyError), chosen_noise(scheduler, recorded(torch.zeros(3, 4))):
        raise KeyError("whatever happens in training")
    before = drawn.clone()
    torch.testing.assert_close(scheduler.add_noise(CLEAN, drawn, T), DDPMScheduler().add_noise(CLEAN, before, T))
    assert torch.equal(drawn, before)


def test_contexts_nest_and_the_inner_choice_holds_last():
    scheduler, inner, outer = DDPMScheduler(), torch.full((3, 4), 2.0), torch.full((3, 4), 3.0)
    with chosen_noise(scheduler, recorded(outer)):
        with chosen_noise(scheduler, recorded(inner)):
            scheduler.add_noise(CLEAN, drawn := torch.zeros(3, 4), T)
        assert torch.equal(drawn, outer), "the outer context's add_noise is the one that adds"
        scheduler.add_noise(CLEAN, drawn := torch.zeros(3, 4), T)
    assert torch.equal(drawn, outer)


def test_a_selector_draws_as_it_does_alone():
    scheduler, drawn = DDPMScheduler(), torch.zeros(3, 4)
    select = make_selector("knn", k=8)
    torch.manual_seed(5)
    expected = select(CLEAN)
    torch.manual_seed(5)
    with chosen_noise(scheduler, select):
        scheduler.add_noise(CLEAN, drawn, T)
    assert torch.equal(drawn, expected)


def test_the_caller_s_type_is_kept():
    scheduler, drawn = DDPMScheduler(), torch.zeros(3, 4, dtype=torch.float64)
    with chosen_noise(scheduler, recorded(torch.ones(3, 4))):
        scheduler.add_noise(CLEAN.double(), drawn, T)
    assert drawn.dtype == torch.float64 and (drawn == 1).all()


def test_gradients_reach_the_samples_but_not_through_the_choice():
    scheduler, clean = DDPMScheduler(), CLEAN.clone().requires_grad_()
    with chosen_noise(scheduler, make_selector("linear")):
        scheduler.add_noise(clean, torch.zeros(3, 4), T).sum().backward()
    torch.testing.assert_close(clean.grad, scheduler.alphas_cumprod[T, None].sqrt().expand(3, 4))


def test_a_copy_made_meanwhile_noises_with_its_own_numbers():
    scheduler = DDPMScheduler()
    with chosen_noise(scheduler, recorded(torch.zeros(3, 4))):
        twin = copy.deepcopy(scheduler)
        twin.alphas_cumprod = torch.ones(1000)
        assert torch.equal(twin.add_noise(CLEAN, torch.randn(3, 4), T), CLEAN)


@pytest.mark.parametrize("scheduler", [None, object(), FlowMatchEulerDiscreteScheduler()])
def test_what_adds_no_noise_is_refused(scheduler):
    with pytest.raises(ValueError, match="has no add_noise"), chosen_noise(scheduler, make_selector("knn")):
        pass


def test_noise_of_another_shape_is_refused():
    scheduler = DDPMScheduler()
    with pytest.raises(ValueError, match=r"noise has shape \(4,\)"), chosen_noise(scheduler, make_selector("knn")):
        scheduler.add_noise(CLEAN, torch.randn(4), T)
