"""Training state, checkpoints, batches: laws in memory."""

from functools import partial

import pytest
import torch

from immiscible_policy.randomness import derive_seed
from immiscible_policy.training.batches import ShuffledOrder
from immiscible_policy.training.loop import Cadence, TrainingDiverged, train
from immiscible_policy.training.state import Teacher, TrainState
from tests.training.regression import Regression, make_state


def run(state, steps, parts=1, every=100, save=lambda state: None, evaluate=lambda state: {}):
    rows = []
    objective = Regression(state.model, parts)
    schedule = Cadence(steps, log_every=3, eval_every=every, checkpoint_every=every)
    train(state, objective, schedule, precision="fp32", record=rows.append, evaluate=evaluate, save=save)
    return rows


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_learning_rate_warms_up_and_falls_to_zero():
    state = make_state(steps=12, warmup=4, lr=1.0)
    rates = []
    for _ in range(12):
        rates.append(state.lr)
        state.advance()
    assert rates[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert rates == pytest.approx(rates[:4] + [0.5 * (1 + torch.cos(torch.tensor(i / 8 * torch.pi)).item())
                                               for i in range(8)], abs=1e-6)  # fmt: skip
    assert state.lr == pytest.approx(0, abs=1e-12)


def test_a_teacher_follows_its_own_law_and_is_saved_with_the_model():
    """After each update: keep * teacher + (1 - keep) * weights."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"own": torch.nn.Linear(3, 1), "averaged": torch.nn.Linear(3, 1).requires_grad_(False)})
    state = TrainState(
        model, lr=1e-2, betas=(0.9, 0.999), weight_decay=0, warmup_steps=0, steps=9, ema_power=0.75, ema_max=0.99,
        optimizer="radam", teacher=Teacher(model["averaged"], lambda step: 0.5 + step / 10),
    )  # fmt: skip
    expected = model["averaged"].weight.clone()
    for step in range(3):
        model["own"](torch.ones(2, 3)).square().mean().backward()
        state.advance()
        expected = expected.lerp(model["own"].weight.detach(), 0.5 - step / 10)
        torch.testing.assert_close(model["averaged"].weight, expected)
    assert torch.equal(state.tensors()["model"]["averaged.weight"], model["averaged"].weight)
    assert state.names == ["own.weight", "own.bias"] and isinstance(state.optimizers[0], torch.optim.RAdam)


def test_ema_follows_the_published_decay():
    """After update n (from 1) the decay is 1 - n ** -0.75, capped; the shadow is their running blend."""
    state = make_state(ema_max=0.6)
    shadow = state.model[0].weight.detach().clone()
    for n in range(1, 8):
        with torch.no_grad():
            state.model[0].weight += 1.0
        state.set_rates()
        state.update()
        state.step += 1
        decay = min(1 - n**-0.75, 0.6)
        shadow = decay * shadow + (1 - decay) * state.model[0].weight.detach()
    torch.testing.assert_close(state.ema_state()["0.weight"], shadow)


def test_evaluation_sees_ema_weights_and_leaves_the_trained_ones():
    state = make_state()
    run(state, 6)
    trained = {name: tensor.clone() for name, tensor in state.weights().items()}
    with state.ema_weights() as model:
        assert same(dict(model.state_dict()), state.ema_state()) and not model.training
    assert same(state.weights(), trained) and state.model.training
    assert not same(state.ema_state(), trained)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulated_micro_batches_equal_the_whole_batch(parts):
    whole, cut = make_state(), make_state()
    run(whole, 6)
    run(cut, 6, parts)
    for name, tensor in whole.weights().items():
        torch.testing.assert_close(cut.weights()[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stop", [1, 5, 11])
@pytest.mark.parametrize("optimizer", ["adamw", "radam", "muon"])
def test_restored_state_continues_bit_for_bit(optimizer, stop):
    make = partial(make_state, optimizer=optimizer)
    straight, first = make(), make()
    run(straight, 12)
    objective = Regression(first.model)
    for step in range(stop):
        objective.loss(objective.batches(step)[0]).backward()
        first.advance()
    second = make()
    second.restore(first.step, first.tensors().__getitem__)
    assert second.lr == first.lr
    run(second, 12)
    assert same(second.weights(), straight.weights()) and same(second.ema_state(), straight.ema_state())
    assert same(second.optimizer_state(), straight.optimizer_state())


def test_the_checkpoint_comes_before_the_evaluation_and_both_at_the_end():
    events = []
    state = make_state()
    run(state, 10, every=4, save=lambda s: events.append(("save", s.step)),
        evaluate=lambda s: events.append(("evaluate", s.step)) or {})  # fmt: skip
    assert events == [(what, step) for step in (4, 8, 10) for what in ("save", "evaluate")]


def test_logged_loss_is_the_mean_since_the_last_row():
    state = make_state(lr=1e-12)
    rows = [row for row in run(state, 6) if "loss" in row]
    objective = Regression(state.model)
    losses = [objective.loss(objective.batches(step)[0]).item() for step in range(6)]
    assert [row["step"] for row in rows] == [3, 6]
    assert [row["loss"] for row in rows] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3], rel=1e-4)


def test_a_loss_that_is_no_number_stops_the_training_before_a_checkpoint():
    state, saved = make_state(), []
    with torch.no_grad():
        state.model[0].weight[:] = float("nan")
    with pytest.raises(TrainingDiverged, match="nan at step 3"):
        run(state, 6, every=3, save=saved.append)
    assert saved == []


def test_every_epoch_visits_every_row_once_and_is_a_function_of_the_step():
    order = ShuffledOrder(size=10, batch_size=4, seed=3)
    rows = torch.cat([order.rows(step) for step in range(5)])
    assert sorted(rows[:10].tolist()) == list(range(10)) == sorted(rows[10:].tolist())
    assert rows[:10].tolist() != rows[10:].tolist()
    fresh = ShuffledOrder(size=10, batch_size=4, seed=3)
    assert torch.equal(fresh.rows(2), order.rows(2))
    assert not torch.equal(ShuffledOrder(size=10, batch_size=4, seed=4).rows(0), order.rows(0))


def test_a_batch_of_halves_holds_the_partner_of_every_row():
    """Row i of the first half and row i + 6 of the second, once an epoch each."""
    order = ShuffledOrder(size=12, batch_size=4, seed=3, halves=True)
    batches = [order.rows(step) for step in range(3)]
    assert all(torch.equal(rows[2:], rows[:2] + 6) for rows in batches)
    assert sorted(torch.cat(batches).tolist()) == list(range(12))


def test_a_batch_may_be_larger_than_the_data():
    rows = ShuffledOrder(size=3, batch_size=7, seed=0).rows(1)
    assert len(rows) == 7 and set(rows.tolist()) == {0, 1, 2}


def test_seeds_differ_by_purpose_and_number():
    seeds = {derive_seed(purpose, a, b) for purpose in ("noise", "order") for a in range(20) for b in range(20)}
    assert len(seeds) == 800 and all(0 <= seed < 2**63 for seed in seeds)
