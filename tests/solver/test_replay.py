"""Recording a solution and replaying it: a function of its inputs that sees weights change in place."""

import copy

import pytest
import torch

from immiscible_policy.solver import Replay, Solver, draws, noise_rows
from tests.policy.test_policy import generators, observations, small_policy

SOLVERS = ("ddim", "ddpm", "dpmpp", "heun", "renoise")


class Recorder:
    """Stands in for a CUDA graph: running it again computes the function on the tensors it was recorded with."""

    def __init__(self):
        self.recordings = 0

    def __call__(self, function, inputs):
        self.recordings += 1
        output = function(*inputs)
        return lambda: output.copy_(function(*inputs)), output


def test_a_replay_computes_the_function_of_new_inputs():
    recorder = Recorder()
    replay = Replay(recorder)
    results = [replay("sum", torch.add, torch.full((2,), float(i)), torch.ones(2)) for i in range(3)]
    assert [r.tolist() for r in results] == [[1, 1], [2, 2], [3, 3]]
    assert recorder.recordings == 1


def test_a_replay_records_anew_for_another_key_shape_or_type():
    recorder = Recorder()
    replay, one = Replay(recorder), torch.ones(2)
    replay("sum", torch.add, one, one)
    for count, (key, function, x) in enumerate(
        [("product", torch.mul, one), ("product", torch.mul, torch.ones(3)), ("product", torch.mul, one.double())], 2
    ):
        assert torch.equal(replay(key, function, x, x), torch.ones_like(x))
        assert recorder.recordings == count
    assert copy.deepcopy(replay)("product", torch.mul, one, one).tolist() == [1, 1]
    assert recorder.recordings == 5


def test_sizes_that_alternate_are_recorded_once_and_the_oldest_makes_room():
    recorder = Recorder()
    replay = Replay(recorder)

    def used(*sizes):
        for size in sizes:
            assert torch.equal(
                replay("sum", torch.add, torch.full((size,), 2.0), torch.ones(size)), torch.full((size,), 3.0)
            )
        return recorder.recordings

    assert used(1, 2, 3, 1, 2, 3, 4, 1) == 4
    assert used(5, 3, 4, 1) == 5  # 2 was used longest ago
    assert used(2) == 6


@pytest.mark.parametrize("name", SOLVERS)
def test_a_replayed_solution_is_a_function_of_its_inputs_and_sees_new_weights(name):
    """Observations and noise enter as inputs, weights where they lie: what a captured graph needs."""
    policy, replay = small_policy(), Replay(Recorder())
    plan = Solver(name, 5).plan(policy.path)
    t = torch.tensor([step.t for step in plan])

    @torch.no_grad()
    def chunk(seed):
        features = policy.encode(observations(3)) + seed
        noise = noise_rows(generators(3, seed), draws(plan), (16, 2))
        return replay(plan, lambda *inputs: policy._solve(plan, *inputs), t, features, noise)

    first, second = chunk(0), chunk(1)
    assert not torch.equal(first, second)
    with torch.no_grad():
        torch.nn.init.normal_(policy.network.final_conv[1].weight)  # in place, as EMA weights are copied
    third = chunk(0)
    assert not torch.equal(first, third)
    assert replay.record.recordings == 1
    expected = policy.predict(observations(3), Solver(name, 5), generators(3, 0))
    torch.testing.assert_close(policy.action.unnormalize(third / policy.data_scale), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SOLVERS)
def test_a_captured_solution_equals_the_plain_one(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # its rounding would hide what is compared
    plain, solver = small_policy(), Solver(name, 9)
    captured = copy.deepcopy(plain).to("cuda")
    for seed in range(3):  # captures, replays, and replays after the weights have changed in place
        if seed == 2:
            with torch.no_grad():
                for policy in (plain, captured):
                    policy.network.final_conv[1].weight.fill_(0.1)
        chunks = [
            policy.predict(observations(5).to(policy.action.scale.device), solver, generators(5, seed)).cpu()
            for policy in (captured, plain)
        ]
        torch.testing.assert_close(*chunks, rtol=1e-3, atol=1e-3)
    assert captured.predict(observations(2).to("cuda"), solver, generators(2)).shape == (2, 16, 2)
