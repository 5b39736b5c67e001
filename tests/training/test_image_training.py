"""Training from pictures, through the objective and through the real command line."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import zarr

from immiscible_policy.demos import Layout
from immiscible_policy.network.encoder import EncoderSpec
from immiscible_policy.noise import make_selector
from immiscible_policy.policy import Normalizer
from immiscible_policy.policy.build import PolicySpec, build_policy
from immiscible_policy.recipes.robot import RobotRecipe
from immiscible_policy.recipes.robot_config import compose_config
from immiscible_policy.recipes.robot_objective import RobotObjective
from immiscible_policy.store.rows import read_rows
from immiscible_policy.tasks import find_task, open_demonstrations, task_windows
from immiscible_policy.tasks.pusht import PushT
from immiscible_policy.training.batches import tensors
from immiscible_policy.training.engine import Gradients
from tests.training.helpers import ROOT, here, refused, tree, write_small_store

SMALL = ("experiment=debug", "obs=image", "threads=1", "precision=fp32", "episodes=1", "batch_size=8", "steps=6",
         "checkpoint_every=3", "eval_every=6", "crop=40")  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_small_store(tmp_path_factory.mktemp("store") / "small.zarr", images=True)


@pytest.fixture(scope="module")
def blind_store(tmp_path_factory):
    return write_small_store(tmp_path_factory.mktemp("store") / "blind.zarr")


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """One uninterrupted run of one seed."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    result = here("train_policy.py", *SMALL, f"data={store}", f"out={out}")
    assert result.returncode == 0, result.stderr
    return out


def results(run):
    """Weights, optimizer and episodes of a run's seed 0."""
    files = tree(run / "seed_0")
    return {name: files[name] for name in files if name.endswith((".safetensors", ".csv"))}


def objective(windows, cameras=("img",), crop=84, seed=0):
    spec = PolicySpec("image", 2, 2, 16, 2, 8, 1.0, (16, 32), 16, 5, 8, "diffusion", "epsilon", 100,
                      EncoderSpec(cameras, 84, 16))  # fmt: skip
    torch.manual_seed(0)
    policy = build_policy(spec, Normalizer.fit(windows.obs), Normalizer.fit(windows.action))
    choice = make_selector("knn", k=2)
    return RobotObjective(policy, windows, choice, batch_size=6, accumulate=1, seed=seed, crop=crop)


def pictures(batch):
    """Frames (B, O, K, H, W, 3) of a batch."""
    return batch.observed[1]


@pytest.fixture(scope="module")
def windows(blind_store):
    task = find_task("pusht")
    return task_windows(task, open_demonstrations(task, blind_store), "image", Layout(16, 2, 8), images="rendered")


def test_a_batch_shows_its_windows_frames_cropped_at_random(windows):
    ours = objective(windows)
    (batch,) = ours.batches(3)
    frames = windows.footage.frames["img"][windows.footage.step[ours.order.rows(3)]]
    places = frames.unfold(2, 84, 1).unfold(3, 84, 1)  # (B, O, 13, 13, 3, 84, 84)
    actual = (places == pictures(batch)[:, :, 0].permute(0, 1, 4, 2, 3)[:, :, None, None]).flatten(4).all(-1)
    assert pictures(batch).dtype == torch.uint8 and actual.flatten(2).any(-1).all()


def test_batches_are_functions_of_seed_and_step_and_micro_batches_cut_them(windows):
    first, again, other = (objective(windows, seed=seed).batches(2)[0] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(again), strict=True))
    assert not torch.equal(pictures(first), pictures(other))
    cut = objective(windows)
    cut.accumulate = 3
    parts = [tensors(part) for part in cut.batches(2)]
    assert all(torch.equal(torch.cat(rows), whole) for *rows, whole in zip(*parts, tensors(first), strict=True))


def test_without_a_crop_frames_stay_whole_and_the_policy_sees_their_middle(windows):
    whole, random = objective(windows, crop=None), objective(windows)
    (batch,), (cropped,) = whole.batches(0), random.batches(0)
    assert pictures(batch).shape[3:5] == (96, 96) and pictures(cropped).shape[3:5] == (84, 84)
    assert all(torch.equal(a, b) for a, b in zip(batch.path, cropped.path, strict=True))
    middle = batch._replace(observed=(batch.observed[0], pictures(batch)[:, :, :, 6:90, 6:90]))
    assert torch.equal(whole.loss(batch), whole.loss(middle))


@pytest.mark.slow
def test_the_loss_is_one_graph(windows):
    """`torch.compile` finds nothing in it that would fall back to Python: it can be captured."""
    ours = objective(windows)
    (batch,) = ours.batches(0)
    compiled = torch.compile(ours.loss, fullgraph=True, dynamic=False, backend="aot_eager")
    parameters = list(ours.policy.parameters())
    plain = torch.autograd.grad(ours.loss(batch), parameters)
    for one, other in zip(torch.autograd.grad(compiled(batch), parameters), plain, strict=True):
        torch.testing.assert_close(one, other)


def test_several_cameras_train(windows):
    footage = windows.footage
    wrist = footage.frames["img"].flip(1)[:, :90, :90]
    both = type(windows)(windows.obs, windows.action, windows.real, windows.episode,
                         type(footage)({"img": footage.frames["img"], "wrist": wrist}, footage.step))  # fmt: skip
    ours = objective(both, cameras=("img", "wrist"))
    (batch,) = ours.batches(0)
    assert pictures(batch).shape == (6, 2, 2, 84, 84, 3)
    Gradients(ours, list(ours.policy.parameters()), "fp32")([batch])
    networks = ours.policy.observer.encoder.obs_nets
    assert all(networks[name].linear.weight.grad.abs().sum() > 0 for name in ("img", "wrist"))


def test_stored_and_rendered_frames_of_the_same_states_give_the_same_policy(finished, store, tmp_path):
    result = here("train_policy.py", *SMALL, f"data={store}", "images=rendered", f"out={tmp_path / 'run'}")
    assert result.returncode == 0, result.stderr
    ours, theirs = results(tmp_path / "run"), results(finished)
    assert ours == theirs and len(ours) == 2 * 3 + 1  # two checkpoints of model, EMA and optimizer; the episodes


def test_both_engines_write_the_same_checkpoints(finished, store, tmp_path):
    words = (*SMALL, f"data={store}", "engine=eager", "sampler=ddim", f"out={tmp_path / 'run'}")
    assert here("train_policy.py", *words).returncode == 0
    weights = {name: content for name, content in results(finished).items() if name.endswith("safetensors")}
    assert weights.items() <= results(tmp_path / "run").items()


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(finished, store, tmp_path):
    out, words = tmp_path / "run", (*SMALL, f"data={store}", f"out={tmp_path / 'run'}")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train_policy.py"), *words], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    while not (out / "seed_0" / "checkpoints" / "step_000003").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was to be killed before its end"
    result = here("train_policy.py", *words, "resume=true")
    assert result.returncode == 0 and "resume seed 0 at step 3" in result.stdout, result.stderr + result.stdout
    assert results(out) == results(finished)


def test_evaluation_repeats_what_training_recorded(finished, tmp_path):
    words = (f"run={finished}", "checkpoints=last", "episodes=1", "sampling_steps=2", f"out={tmp_path / 'a.csv'}")
    result = here("eval_policy.py", *words)
    assert result.returncode == 0, result.stderr
    assert read_rows(tmp_path / "a.csv", PushT.metrics) == read_rows(
        finished / "seed_0" / "episodes.csv", PushT.metrics
    )


def test_an_embedded_store_without_images_trains_from_drawn_ones(blind_store, tmp_path):
    words = (*SMALL, f"data={blind_store}", "images=rendered", "validation=0.3", "noise=c2ot", f"out={tmp_path / 'r'}")
    result = here("train_policy.py", *words)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "r" / "seed_0" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["validation/loss"] > 0 for row in rows if "coverage" in row)


def test_pictures_enter_the_hash_of_the_data(store, tmp_path):
    def build(path, *words):
        return RobotRecipe.prepare(compose_config(["experiment=debug", f"data={path}", *words])).data["content_hash"]

    path = write_small_store(tmp_path / "a.zarr", images=True)
    assert build(path, "obs=image") == build(store, "obs=image") != build(store)
    zarr.open_group(path, mode="r+")["data/img"][5, 4, 3, 2] = 77
    assert build(path, "obs=image") != build(store, "obs=image")
    assert build(path) == build(store) == build(path, "obs=image", "images=rendered")


def test_weights_of_pictures_begin_as_a_function_of_the_seed(store):
    config = compose_config(["experiment=debug", "obs=image", f"data={store}"])
    recipe = RobotRecipe.prepare(config)
    first, again, other = (recipe.policy(seed).state_dict() for seed in (0, 0, 1))
    name = "observer.encoder.obs_nets.img.backbone.conv1.weight"
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


def scaled_store(path):
    write_small_store(path, images=True)
    root = zarr.open_group(path, mode="r+")
    root["data/img"][:] = np.asarray(root["data/img"][:]) / 255
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["obs=image", "data=BLIND"], "data/img is missing; images=rendered draws it from the states"),
        (["obs=image", "data=SCALED"], "they should be 0..255, multiply by 255"),
        (["obs=image", "crop=97"], "crop=97: the frames have 96 pixels; use crop=96 or less"),
        (["obs=image", "crop=0"], "crop=0: needs 1 to 4,096"),
        (["obs=image", "encoder_width=20"], "encoder_width=20: needs a multiple of 16"),
        (["obs=image", "images=drawn"], "known: stored, rendered"),
        (["crop=76"], "crop=76: obs=keypoints sees no images; use obs=image"),
        (["encoder_width=16"], "encoder_width=16: obs=keypoints sees no images"),
    ],
)
def test_mistakes_are_one_line_and_create_nothing(words, message, store, blind_store, tmp_path):
    places = {"data=BLIND": blind_store, "data=SCALED": tmp_path / "scaled.zarr"}
    if "data=SCALED" in words:
        scaled_store(places["data=SCALED"])
    words = [f"data={places[word]}" if word in places else word for word in words]
    data = [] if any(word.startswith("data=") for word in words) else [f"data={store}"]
    line = refused(here("train_policy.py", "experiment=debug", *data, f"out={tmp_path / 'run'}", *words))
    assert message in line and not (tmp_path / "run").exists()
