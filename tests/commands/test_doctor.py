"""The doctor finds what is wrong, names the cure, and the cure cures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
import zarr

from immiscible_policy.__main__ import main
from immiscible_policy.cli import CommandError
from immiscible_policy.commands import doctor
from immiscible_policy.demos.store import open_store, write_store
from immiscible_policy.evaluation.agent import spec_metadata
from immiscible_policy.plugins.bridge import convert
from immiscible_policy.policy.build import build_policy
from immiscible_policy.policy.normalizer import Normalizer
from immiscible_policy.store.checkpoint import save_checkpoint
from tests.demos.stores import PUSHT
from tests.demos.stores import changed as arrays_changed
from tests.small_policy import SPEC
from tests.training.helpers import here, refused, write_small_store


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_small_store(tmp_path_factory.mktemp("sound") / "sound.zarr", steps=40)


def changed(sound, path, change):
    """A copy of the sound store in which each episode's arrays were changed; the change sees and returns them."""
    demos = open_store(sound)
    episodes = [
        change({name: demos[name][item] for name in ("state", "action", "keypoint")}) for item in demos.episodes
    ]
    arrays = {name: np.concatenate([episode[name] for episode in episodes]) for name in episodes[0]}
    return write_store(path, arrays, np.cumsum([len(episode["state"]) for episode in episodes]))


def moved_by(path):
    """A store's episodes, the agent's positions, and the actions."""
    demos = open_store(path)
    return demos, PUSHT.commanded(demos), demos["action"]


def wrong(actual):
    return [finding for finding in actual if finding.cure]


def shift(arrays, steps):
    """Store the action of step t as that of step t + steps."""
    return arrays | {"action": np.roll(arrays["action"], steps, axis=0)}


def test_nothing_is_wrong_with_a_sound_store(sound):
    actual = list(doctor.store_findings(sound, PUSHT))
    assert len(actual) == 2 and not wrong(actual)
    assert "4 episodes of 40 to 40 steps" in actual[0].result and "from t to t + 1" in actual[1].result


@pytest.mark.parametrize("steps", [-2, -1, 1, 2])
def test_actions_that_are_offset_are_found_and_the_cure_cures(sound, tmp_path, steps):
    path = changed(sound, tmp_path / "offset.zarr", lambda arrays: shift(arrays, steps))
    (finding,) = wrong(doctor.offset_findings(*moved_by(path)))
    amount = "1 step" if abs(steps) == 1 else "2 steps"
    assert f"the actions come {amount} too {'late' if steps > 0 else 'early'}" in finding.result
    assert f"store action[t{steps:+d}] as action[t]" in finding.cure

    def apply(arrays):
        kept = slice(max(0, -steps), len(arrays["state"]) - max(0, steps))
        moved = np.roll(arrays["action"], -steps, axis=0)
        return {name: (moved if name == "action" else values)[kept] for name, values in arrays.items()}

    assert not wrong(doctor.offset_findings(*moved_by(changed(path, tmp_path / "cured.zarr", apply))))


def test_offsets_are_found_whatever_the_noise_of_the_positions(sound, tmp_path):
    random = np.random.default_rng(0)

    def noisy(arrays):
        state = arrays["state"] + random.normal(0, 0.5, arrays["state"].shape) * [1, 1, 0, 0, 0]
        return arrays | {"state": state}

    errors = doctor.offset_errors(*moved_by(changed(sound, tmp_path / "noisy.zarr", noisy)))
    assert min(errors, key=lambda item: errors[item]) == 0
    late = changed(sound, tmp_path / "late.zarr", lambda arrays: shift(noisy(arrays), 2))
    assert "2 steps too late" in wrong(doctor.offset_findings(*moved_by(late)))[0].result


def test_short_episodes_say_nothing_about_offsets(tmp_path):
    path = write_small_store(tmp_path / "short.zarr", steps=6)
    findings = list(doctor.store_findings(path, PUSHT))
    assert "too short to tell" in findings[-1].result
    assert "4 of 4 episodes are shorter than a window" in wrong(findings)[0].result


def test_repeated_steps_by_hand():
    state, action = np.zeros((6, 5)), np.zeros((6, 2))
    assert doctor.repeated_steps(state, action) == 5
    state[2] = 1
    assert doctor.repeated_steps(state, action) == 2
    action[5] = 1
    assert doctor.repeated_steps(state, action) == 0


def test_stored_padding_is_found(sound, tmp_path):
    path = changed(
        sound,
        tmp_path / "padded.zarr",
        lambda arrays: {name: np.concatenate([v, np.repeat(v[-1:], 12, axis=0)]) for name, v in arrays.items()},
    )
    message = wrong(doctor.store_findings(path, PUSHT))[0].result
    assert "4 of 4 episodes end in 8 or more equal steps (up to 12)" in message


def test_values_that_are_no_numbers_are_found(sound, tmp_path):
    path = changed(sound, tmp_path / "nan.zarr", lambda arrays: arrays)
    zarr.open_group(path, mode="r+")["data/action"][7, 1] = np.nan
    (finding,) = wrong(doctor.store_findings(path, PUSHT))
    assert "data/action[1] is nan at step 7 (episode 0, its step 7)" in finding.result and "repair" in finding.cure


def test_normalised_positions_are_found(sound, tmp_path):
    path = changed(sound, tmp_path / "n.zarr", lambda arrays: arrays | {"action": arrays["action"] / 512})
    assert any("does not span pixels" in finding.result for finding in wrong(doctor.store_findings(path, PUSHT)))


def test_dark_images_are_found(tmp_path):
    path = write_small_store(tmp_path / "seen.zarr", episodes=1, steps=24, images=True)
    assert not wrong(doctor.store_findings(path, PUSHT))
    images = zarr.open_group(path, mode="r+")["data/img"]
    images[:] = images[:] / 255
    (finding,) = wrong(doctor.store_findings(path, PUSHT))
    assert "pixels of 0..1" in finding.result and finding.cure == "multiply the pixels by 255"


@pytest.mark.parametrize("place", ["absent.zarr", "__init__.py"])
def test_what_is_no_store_is_one_finding(tmp_path, place):
    (tmp_path / "__init__.py").touch()
    (finding,) = list(doctor.store_findings(tmp_path / place, PUSHT))
    assert finding.cure and "\n" not in finding.result


def checkpoint(run, sound, spec=SPEC, damage=None, config=None):
    """A checkpoint in a run directory, its normaliser fitted to the sound store."""
    demos = open_store(sound)
    table = torch.from_numpy(PUSHT.observation(demos, "keypoints"))
    policy = build_policy(spec, Normalizer.fit(table), Normalizer.fit(torch.from_numpy(demos["action"]).float()))
    state = {name: value.clone() for name, value in policy.state_dict().items()}
    if damage:
        state[damage][...] = float("nan")
    settings = {"horizon": 16, "steps": 100, "data": str(sound), "threads": 1} | (config or {})
    path = run / "seed_0" / "checkpoints" / "step_000100"
    save_checkpoint(
        path, spec_metadata(spec) | {"step": 100, "seed": 0, "config": settings}, {"model": state, "ema": state}
    )
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return path


def test_nothing_is_wrong_with_a_sound_checkpoint(sound, tmp_path):
    actual = list(doctor.examine(None, checkpoint(tmp_path / "run", sound)))
    assert not wrong(actual)
    assert [finding.subject for finding in actual] == ["versions", "GPU", "checkpoint", "data", "offset", "normaliser"]
    assert str(sound) in actual[3].result, "the data that the checkpoint records"


def test_data_in_other_units_does_not_fit_the_normaliser(sound, tmp_path):
    path = checkpoint(tmp_path / "run", sound)
    demos = open_store(sound)
    _, (_, policy, spec) = doctor.open_policy(path)

    def message(**arrays):
        return wrong(doctor.normaliser_findings(arrays_changed(demos, **arrays), PUSHT, policy, spec))[0].result

    assert "action[" in message(action=demos["action"] * 2) and "reaches" in message(action=demos["action"] * 2)
    middle = (demos["action"].min(axis=0) + demos["action"].max(axis=0)) / 2
    assert "stays within" in message(action=middle + (demos["action"] - middle) / 10)
    assert not wrong(doctor.normaliser_findings(demos, PUSHT, policy, spec))


def test_what_no_training_window_observes_is_not_held_against_the_normaliser(sound, tmp_path):
    """The last steps of an episode are targets at most; one that is observed counts."""
    _, (_, policy, spec) = doctor.open_policy(checkpoint(tmp_path / "run", sound))
    demos = open_store(sound)

    def actual(step):
        keypoint = demos["keypoint"].copy()
        keypoint[demos.episode_ends[0] + step] += 400
        return wrong(doctor.normaliser_findings(arrays_changed(demos, keypoint=keypoint), PUSHT, policy, spec))

    assert not actual(-1) and "reaches" in actual(-30)[0].result
    short = replace(demos, episode_ends=np.arange(4, len(demos) + 1, 4))
    (finding,) = doctor.normaliser_findings(short, PUSHT, policy, spec)
    assert "no episode is as long as a window" in finding.result and not wrong([finding])


def test_a_checkpoint_whose_weights_are_no_numbers_is_found(sound, tmp_path):
    path = checkpoint(tmp_path / "run", sound, damage="network.final_conv.1.bias")
    actual, opened = doctor.open_policy(path)
    assert "final_conv.1.bias first" in wrong(actual)[0].result and opened is not None


def test_a_configuration_that_the_checkpoint_contradicts_is_found(sound, tmp_path):
    path = checkpoint(tmp_path / "run", sound)
    file = tmp_path / "run" / "config.yaml"
    settings = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(settings | {"horizon": 32, "steps": 50, "threads": 4}))
    message = sorted(finding.result for finding in wrong(doctor.open_policy(path)[0]))
    assert len(message) == 2  # a run may be made longer: its steps alone do not contradict the checkpoint
    assert "step 100 lies beyond steps=50" in message[0]
    assert "says horizon=32, the checkpoint has 16" in message[1]


def test_a_record_that_contradicts_itself_is_found(sound, tmp_path):
    path = checkpoint(tmp_path / "run", sound, config={"down_dims": [16, 64]})
    message = wrong(doctor.open_policy(path)[0])[0].result
    assert message == "its metadata says down_dims=[16, 64], the checkpoint has (16, 32)"


def test_a_damaged_checkpoint_is_one_finding(sound, tmp_path):
    path = checkpoint(tmp_path / "run", sound)
    (path / "ema.safetensors").write_bytes(b"nothing")
    actual, opened = doctor.open_policy(path)
    assert opened is None and len(actual) == 1 and "is corrupt" in actual[0].result and actual[0].cure


def test_a_checkpoint_from_elsewhere_is_compared_with_the_data_that_is_named(sound, tmp_path):
    path = checkpoint(tmp_path / "run", sound)
    convert(path, "diffusion_policy", tmp_path / "a.ckpt")
    silent, named = (list(doctor.examine(data, tmp_path / "a.ckpt"))[-1] for data in (None, sound))
    assert "not compared" in silent.result and named.result == f"fits {sound}" and not wrong([silent, named])


def test_data_that_is_gone_is_said_and_not_replaced(sound, tmp_path):
    path = checkpoint(tmp_path / "run", sound, config={"data": "gone.zarr"})
    actual = list(doctor.examine(None, path))
    assert "gone.zarr, which the checkpoint was trained on, is not here" in actual[-1].result and not wrong(actual)


@pytest.mark.parametrize(
    ("needed", "message", "cure"),
    [
        ("torch>=99", "does not fit >=99", "pip install 'torch>=99'"),
        ("no-such-thing>=1", "no-such-thing is not installed", "pip install 'no-such-thing>=1'"),
    ],
)
def test_versions_that_do_not_fit_are_found(monkeypatch, needed, message, cure):
    lines = [needed, "wandb>=99; extra == 'wandb'", "numpy>=1"]
    monkeypatch.setattr(doctor, "requires", lambda name: lines)
    (finding,) = wrong(doctor.package_findings())
    assert message in finding.result and finding.cure == cure


def test_a_gpu_that_pytorch_does_not_compute_on_is_found(monkeypatch):
    def fails(*shape, device):
        raise RuntimeError("no kernel image is available\nmore of it")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "hardware", lambda: {"gpu": "a GPU"})
    monkeypatch.setattr(torch, "ones", fails)
    (finding,) = wrong(doctor.gpu_findings())
    assert finding.result == "a GPU does not compute (no kernel image is available)"


def test_the_command_exits_with_what_it_found(sound, tmp_path):
    done = here("-m", "immiscible_policy", "doctor", f"data={sound}")
    assert done.returncode == 0 and done.stdout.endswith("nothing is wrong\n"), done.stdout + done.stderr
    path = changed(sound, tmp_path / "late.zarr", lambda arrays: shift(arrays, 1))
    done = here("-m", "immiscible_policy", "doctor", f"data={path}")
    assert done.returncode == 1 and "WRONG" in done.stdout and "cure:  store action[t+1] as action[t]" in done.stdout


def test_the_commands_are_listed(capsys):
    assert main(["--help"]) is None
    printed = capsys.readouterr().out
    assert "doctor" in printed and "convert" in printed
    with pytest.raises(CommandError, match="a command is missing; known: doctor, convert"):
        main([])


def test_mistakes_are_one_line():
    assert "did you mean 'doctor'" in refused(here("-m", "immiscible_policy", "docter"))
    assert "unknown option 'date'" in refused(here("-m", "immiscible_policy", "doctor", "date=x"))
    assert "did you mean 'pusht'" in refused(here("-m", "immiscible_policy", "doctor", "task=puhst"))
