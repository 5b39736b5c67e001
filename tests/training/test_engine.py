"""Engines: whoever carries a step out, and whenever its batch is prepared, the result is the same."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers.training_utils import EMAModel

from immiscible_policy.recipes.noise import noise_options
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.recipes.robot_objective import RobotObjective
from immiscible_policy.store.run import RunDirectory
from immiscible_policy.training.ahead import Ahead
from immiscible_policy.training.batches import ShuffledOrder, tensors
from immiscible_policy.training.engine import Captured, Eager, Gradients, make_engine
from immiscible_policy.training.loop import Cadence, train
from immiscible_policy.training.seed import initial_state
from immiscible_policy.training.state import ALIGNMENT, TrainState
from tests.training.helpers import here, tree
from tests.training.regression import Regression, make_model, make_state

CPU = torch.device("cpu")
NOISES = ("vanilla", "knn", "linear", "idp26", "c2ot")


def same(a: TrainState, b: TrainState) -> bool:
    ours, theirs = a.tensors(), b.tensors()
    return all(torch.equal(ours[kind][name], theirs[kind][name]) for kind in theirs for name in theirs[kind])


def run(state, engine, steps=12, parts=1, slow=False):
    rows = []
    train(
        state, Regression(state.model, parts, slow), Cadence(steps, 3, 100, 100), precision="fp32",
        record=rows.append, evaluate=lambda state: {}, save=lambda state: None, engine=engine,
    )  # fmt: skip
    return [row for row in rows if "loss" in row]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_batches_come_in_order_however_long_each_takes(workers):
    def batches(step):
        time.sleep(random.uniform(0, 0.005))
        return [step]

    ahead = Ahead(batches, 5, 40, CPU, workers=workers)
    assert [ahead.next()[0] for _ in range(35)] == list(range(5, 40))
    ahead.close()


def test_only_wanted_batches_are_prepared_and_some_before_they_are_asked_for():
    begun = []
    ahead = Ahead(lambda step: begun.append(step) or [step], 3, 7, CPU)
    ahead.next()
    ahead.close()
    assert begun == [3, 4, 5][: len(begun)] and len(begun) >= 1
    whole = Ahead(lambda step: begun.append(step) or [step], 3, 7, CPU)
    begun.clear()
    for _ in range(4):
        whole.next()
    whole.close()
    assert sorted(begun)[-1] == 6


def test_what_preparing_a_batch_raises_reaches_the_training_at_its_step():
    def batches(step):
        if step == 4:
            raise ValueError("window 4 is broken")
        return [step]

    ahead = Ahead(batches, 0, 10, CPU, workers=3)
    assert [ahead.next() for _ in range(4)] == [[0], [1], [2], [3]]
    with pytest.raises(ValueError, match="window 4 is broken"):
        ahead.next()
    ahead.close()


def test_the_order_of_windows_is_the_same_from_many_threads():
    plain, shared = ShuffledOrder(50, 7, seed=1), ShuffledOrder(50, 7, seed=1)
    ahead = Ahead(lambda step: [shared.rows(step)], 0, 100, CPU, workers=4)
    assert all(torch.equal(ahead.next()[0], plain.rows(step)) for step in range(100))
    ahead.close()


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_engines_agree_bit_for_bit(parts):
    eager, fast = make_state(), make_state()
    rows = run(eager, "eager", parts=parts)
    assert [row["loss"] for row in run(fast, "fast", parts=parts, slow=True)] == [row["loss"] for row in rows]
    assert same(fast, eager)
    assert not same(eager, make_state())


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("before", [0, 5])
def test_the_captured_step_agrees_with_the_eager_one_and_its_rehearsal_leaves_no_trace(parts, before):
    """Uncaptured, as it runs on a CPU: the same buffers, rates and order of work; from the start and in the middle."""
    eager, captured = make_state(), make_state()
    for state in (eager, captured):
        run(state, "eager", before, parts)
    objective = Regression(captured.model, parts)
    engine = Captured(
        captured, lambda: objective.batches(captured.step), Gradients(objective, captured.parameters, "fp32")
    )
    plain = Eager(
        eager, lambda: objective.batches(eager.step), Gradients(Regression(eager.model), eager.parameters, "fp32")
    )
    for _ in range(before, 12):
        assert float(engine.step()) == float(plain.step())
    assert captured.step == eager.step == 12 and same(captured, eager)


def test_a_rehearsal_is_undone_in_place():
    state = make_state()
    places = [tensor.data_ptr() for tensor in state.weights().values()]
    before = {name: tensor.clone() for name, tensor in state.weights().items()}
    objective = Regression(state.model)
    with state.rehearsal():
        for step in range(3):
            Gradients(objective, state.parameters, "fp32")(objective.batches(step))
            state.set_rates()
            state.update()
            state.step += 1
        state.step = 0
        assert any(not torch.equal(tensor, before[name]) for name, tensor in state.weights().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.weights().items())
    assert [tensor.data_ptr() for tensor in state.weights().values()] == places
    assert all(not tensor.any() for tensor in state.optimizer_state().values())


def test_parameters_share_one_buffer_and_begin_where_kernels_like_it():
    state = make_state()
    pointers = [p.data_ptr() for p in state.parameters]
    assert len({p.untyped_storage().data_ptr() for p in state.parameters}) == 1
    assert all((pointer - pointers[0]) % (4 * ALIGNMENT) == 0 for pointer in pointers)
    plain = make_model().parameters()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state.parameters, plain, strict=True))


def test_the_ema_is_that_of_diffusers():
    state = make_state()
    reference = EMAModel(state.parameters, decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    objective = Regression(state.model)
    for step in range(12):
        Gradients(objective, state.parameters, "fp32")(objective.batches(step))
        state.advance()
        reference.step(state.parameters)
    for name, shadow in zip(state.names, reference.shadow_params, strict=True):
        torch.testing.assert_close(state.ema_state()[name], shadow, rtol=1e-6, atol=1e-7)


def test_an_unknown_engine_is_named():
    with pytest.raises(ValueError, match="engine=warp: choose from fast, eager"):
        make_engine("warp", make_state(), Regression(make_state().model), 1, "fp32")


def policy_objective(store, noise, device="cpu", accumulate=1):
    """A small policy's state and objective."""
    more = ["start=0"] if noise == "idp26" else []
    config = compose_config(["experiment=debug", f"data={store}", f"device={device}", f"noise={noise}", *more])
    recipe = RobotRecipe.prepare(config)
    policy = recipe.policy(0)
    state = initial_state(config, policy, 0)
    windows = recipe.loaded.training.to(device)
    options = noise_options(config.noise, steps=20, batch_size=16, steps_per_epoch=1)
    choice = options.build(policy.clean(windows.action))
    return state, RobotObjective(policy, windows, choice, batch_size=16, accumulate=accumulate, seed=0)


@pytest.mark.parametrize("noise", NOISES)
def test_batches_prepared_in_threads_are_those_of_the_main_thread(store, noise):
    _, objective = policy_objective(store, noise)
    ahead = Ahead(objective.batches, 3, 20, CPU, workers=3)
    for step in range(3, 20):
        prepared = ahead.next()[0]
        directly = objective.batches(step)[0]
        assert all(torch.equal(a, b) for a, b in zip(tensors(prepared), tensors(directly), strict=True))
    ahead.close()


@pytest.mark.slow
def test_the_loss_is_one_graph(store):
    """`torch.compile` finds nothing in it that would fall back to Python, and gradients agree."""
    state, objective = policy_objective(store, "vanilla")
    batch = objective.batches(0)[0]
    compiled = torch.compile(objective.loss, fullgraph=True, dynamic=False, backend="aot_eager")
    plain = torch.autograd.grad(objective.loss(batch), state.parameters)
    for ours, theirs in zip(torch.autograd.grad(compiled(batch), state.parameters), plain, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_both_engines_write_the_same_checkpoints(store, tmp_path):
    """Through the real command line, with assignment solved ahead; metrics differ in the clock alone."""
    kept = {}
    for engine in ("eager", "fast"):
        out = tmp_path / engine
        words = ("experiment=debug", "noise=linear", f"data={store}", f"engine={engine}", f"out={out}", "seed=3")
        result = here("train_policy.py", *words)
        assert result.returncode == 0, result.stderr
        kept[engine] = {
            name: content for name, content in tree(out / "seed_3").items() if name.endswith(("safetensors", ".csv"))
        }
    assert kept["fast"] == kept["eager"] and len(kept["fast"]) >= 3


def trained(store, noise, engine, precision="fp32", accumulate=1, steps=30):
    """Losses and EMA weights of a short training on the GPU."""
    state, objective = policy_objective(store, noise, "cuda", accumulate)
    rows = []
    train(state, objective, Cadence(steps, 1, 100, 100), precision=precision, record=rows.append,
          evaluate=lambda state: {}, save=lambda state: None, engine=engine)  # fmt: skip
    losses = torch.tensor([row["loss"] for row in rows if "loss" in row])
    return losses, torch.cat([tensor.flatten().cpu() for tensor in state.ema_state().values()])


@pytest.mark.gpu
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("noise", NOISES)
def test_a_captured_graph_trains_as_the_eager_steps_do(store, noise, accumulate):
    eager, fast = (trained(store, noise, engine, accumulate=accumulate) for engine in ("eager", "fast"))
    torch.testing.assert_close(fast[0], eager[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(fast[1], eager[1], rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
def test_a_captured_graph_trains_in_bf16(store):
    eager, fast = (trained(store, "knn", engine, "bf16") for engine in ("eager", "fast"))
    torch.testing.assert_close(fast[0], eager[0], rtol=5e-2, atol=1e-2)


@pytest.mark.gpu
def test_two_seeds_side_by_side_train_as_one_alone(store):
    """Threads of one process, each with a stream of its own; captures take turns."""

    def beside(_):
        with torch.cuda.stream(torch.cuda.Stream()):
            return trained(store, "knn", "fast")

    alone = trained(store, "knn", "fast")
    with ThreadPoolExecutor(2) as pool:
        for losses, weights in pool.map(beside, range(2)):
            torch.testing.assert_close(losses, alone[0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(weights, alone[1], rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("noise", ["vanilla", "knn"])
def test_a_captured_step_never_waits_for_the_device(store, noise):
    """Batches are made beforehand: the workers, whose order of windows comes from the CPU, may wait."""
    state, objective = policy_objective(store, noise, "cuda")
    batches = iter([objective.batches(step) for step in range(30)])
    engine = Captured(state, lambda: next(batches), Gradients(objective, state.parameters, "fp32"))
    for _ in range(10):  # rehearsal and capture may wait
        engine.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.step == 30


@pytest.mark.gpu
@pytest.mark.parametrize("words", [["method=diffusion", "min_snr=5"], ["method=flow", "teacher=TEACHER"]])
def test_what_reads_tables_and_teachers_is_captured_too(store, tmp_path, words):
    """Through the real command line, in bf16: both engines see the same losses."""
    common = ["experiment=debug", "steps=20", "log_every=1", f"data={store}", "device=cuda", "precision=bf16"]
    teacher = tmp_path / "teacher"
    if "teacher=TEACHER" in words:
        assert here("train_policy.py", *common, "method=flow", f"out={teacher}").returncode == 0
    losses = {}
    for engine in ("eager", "fast"):
        out, own = tmp_path / engine, [word.replace("TEACHER", str(teacher)) for word in words]
        result = here("train_policy.py", *common, *own, f"engine={engine}", f"out={out}")
        assert result.returncode == 0, result.stderr
        losses[engine] = torch.tensor([row["loss"] for row in RunDirectory(out).seed(0).metrics() if "loss" in row])
    assert len(losses["fast"]) == 20
    torch.testing.assert_close(losses["fast"], losses["eager"], rtol=5e-2, atol=1e-2)
