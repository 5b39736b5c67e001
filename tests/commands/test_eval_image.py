"""`eval_image.py` on tiny runs: every checkpoint once, runs against each other, editing, and one line for mistakes."""

import csv
import json

import pytest
import torch

from immiscible_policy.cli import CommandError
from immiscible_policy.commands.eval_image import main
from immiscible_policy.image.build import build_image_model
from immiscible_policy.image.spec import spec_metadata
from immiscible_policy.image.tiny import tiny_stable_diffusion
from immiscible_policy.store.checkpoint import CheckpointError, save_checkpoint
from tests.image.folders import write_images
from tests.image.specs import tiny_spec, tiny_stable_diffusion_spec

SPEC = tiny_spec()
QUICK = ["samples=97", "sampling_steps=2"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def cifar(tmp_path):
    for split, count in (("train", 100), ("test", 10)):
        write_images(tmp_path / "cifar", split, count)
    return tmp_path / "cifar"


@pytest.fixture
def run(tmp_path, cifar):
    return write_run(tmp_path / "vanilla", cifar, first=0)


def write_run(directory, cifar, *, first, seeds=(0, 1), steps=(10, 20)):
    """A run whose weights are drawn anew for every checkpoint."""
    for seed in seeds:
        for step in steps:
            torch.manual_seed(1000 * first + 100 * seed + step)
            model = build_image_model(SPEC)
            path = directory / f"seed_{seed}" / "checkpoints" / f"step_{step:06d}"
            save_checkpoint(path, spec_metadata(SPEC) | {"step": step, "seed": seed}, {"ema": model.state_dict()})
    (directory / "config.yaml").write_text(f"data: {cifar}\ndataset: cifar10\n")
    return directory


def rows(run, seed=0):
    with open(run / f"seed_{seed}" / "frechet.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_checkpoint_is_measured_once_with_its_settings(run, capsys):
    main([f"run={run}", *QUICK])
    assert [row["checkpoint"] for row in rows(run)] == ["10", "20"]
    row = rows(run, 1)[0]
    assert (row["seed"], row["n"], row["features"], row["dims"]) == ("1", "97", "classifier", "96")
    assert (row["reference"], row["split"], row["reference_n"], row["size"]) == ("cifar10", "train", "200", "8")
    assert (row["sampling_steps"], row["noise_seed"], row["edit"]) == ("2", "0", "none")
    assert len(row["weights"]) == len(row["reference_hash"]) == 16
    record = json.loads((run / "frechet.json").read_text())
    assert record["distance"].startswith("classifier Fréchet distance")
    assert [row["distance"] for row in record["runs"]["vanilla"]["rows"]] == [
        float(row["distance"]) for seed in (0, 1) for row in rows(run, seed)
    ]
    assert (run / "frechet.png").exists() and (run / "seed_0" / "samples" / "measured_step_000010.png").exists()

    before = rows(run)
    assert "measured before" not in capsys.readouterr().out
    main([f"run={run}", *QUICK])
    assert capsys.readouterr().out.count("measured before") == 4 and rows(run) == before
    main([f"run={run}", *QUICK, "noise_seed=1"])
    assert len(rows(run)) == 4 and rows(run)[:2] == before
    main([f"run={run}", *QUICK, "sampler=ddpm", "spacing=leading"])
    assert len(rows(run)) == 6 and rows(run)[4]["sampling_steps"] == "2 leading ddpm"
    assert rows(run)[4]["distance"] != before[0]["distance"]


def test_a_checkpoint_alone_gives_the_value_that_its_run_gives(run):
    main([f"checkpoint={run / 'seed_1' / 'checkpoints' / 'step_000020'}", *QUICK])
    alone = rows(run, 1)
    main([f"run={run}", *QUICK])
    assert [row["checkpoint"] for row in alone] == ["20"]
    assert alone[0] in rows(run, 1)


def test_runs_are_compared_with_the_first(run, tmp_path, cifar, capsys):
    other = write_run(tmp_path / "other", cifar, first=1)
    out = tmp_path / "report"
    main([f"runs=vanilla={run},knn={other},again={run}", *QUICK, f"out={out}"])
    record = json.loads((out / "frechet.json").read_text())
    assert list(record["runs"]) == ["vanilla", "knn", "again"]
    again = record["against_first"]["again"]
    assert again["difference"]["estimate"] == again["difference"]["low"] == 0
    assert again["speedup"]["estimate"] == 1 and all(each["ratio"] == 1 for each in again["reached"])
    found = record["against_first"]["knn"]["difference"]
    last = [float(rows(each, seed)[1]["distance"]) for each in (other, run) for seed in (0, 1)]
    assert found["estimate"] == pytest.approx((last[0] + last[1] - last[2] - last[3]) / 2)
    assert record["reference"]["plain_noise"] > 0
    text = (out / "frechet.md").read_text()
    assert "## Against vanilla" in text and text in capsys.readouterr().out
    assert str(tmp_path) not in json.dumps(record)


def test_how_many_seeds_get_as_good_is_said(run, tmp_path, cifar, capsys):
    """No run gets as good as one that is measured as perfect: both are held to the other run's best."""
    other = write_run(tmp_path / "other", cifar, first=1)
    main([f"runs=a={run},b={other}", *QUICK, f"out={tmp_path / 'report'}"])
    for seed in (0, 1):
        path = run / f"seed_{seed}" / "frechet.csv"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text(
            lines[0] + "".join(",".join([*line.split(",")[:2], "0.0", *line.split(",")[3:]]) for line in lines[1:])
        )
    main([f"runs=a={run},b={other}", *QUICK, f"out={tmp_path / 'report'}"])
    said = capsys.readouterr().out
    assert "b: speed-up to the best distance that both reach" in said
    assert "It gets as good as a ever was in 0 of 2 seeds." in said
    found = json.loads((tmp_path / "report" / "frechet.json").read_text())["against_first"]["b"]
    assert [each["first"] for each in found["reached"]] == [10, 10] and found["speedup"]["estimate"] <= 1


@pytest.mark.parametrize("edit", ["inpaint", "outpaint"])
def test_editing_has_rows_and_a_picture_of_its_own(run, edit):
    main([f"run={run}", *QUICK])
    main([f"run={run}", *QUICK, f"edit={edit}"])
    plain, edited = rows(run)[0], rows(run)[2]
    assert (edited["edit"], edited["originals"], plain["originals"]) == (edit, "test", "none")
    assert edited["distance"] != plain["distance"]
    for name in (f"{edit}.json", f"{edit}_images.png", f"seed_0/samples/{edit}_step_000010.png", "frechet.json"):
        assert (run / name).exists(), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=RUN", "runs=a=RUN"], "one of them"),
        (["run=RUN", "samples=96"], "samples=96: the 96 features of classifier need 97"),
        (["run=RUN", "reference_samples=50"], "reference images=50"),
        (["run=RUN", "sampling_steps=1001"], "sampling_steps=1001"),
        (["run=RUN", "sampling_steps=0"], "sampling_steps=0: needs 1 to 1,000,000"),
        (["run=RUN", "data=nowhere"], "nowhere is missing"),
        (["run=RUN", "features=vgg"], "unknown features 'vgg'"),
        (["run=RUN", "edit=crop"], "unknown edit 'crop'"),
        (["run=RUN", "edit=inpaint", "originals=val"], "split=val"),
        (["run=RUN", "classifier=nowhere.safetensors"], "nowhere.safetensors is missing"),
        (["run=nowhere"], "nowhere is not a directory; give a run's directory"),
        (["run=RUN", "sampler=rk4"], "solver=rk4: choose from"),
        (["run=RUN", "sampling_steps=2", "solver=heun"], "sampling_steps=2: solver=heun"),
        (["run=RUN", "solver=ddpm", "eta=0.5"], "eta=0.5: solver=ddpm has no eta"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(run, words, message):
    with pytest.raises(ValueError, match=message) as error:
        main([*[word.replace("RUN", str(run)) for word in words]])
    assert "\n" not in str(error.value)
    assert not (run / "seed_0" / "frechet.csv").exists()


def test_checkpoints_of_other_models_and_empty_runs_are_refused(run, tmp_path):
    save_checkpoint(tmp_path / "policy" / "step_000001", {"policy": {}, "step": 1}, {"ema": {}})
    with pytest.raises(CheckpointError, match="does not describe an image model"):
        main([f"checkpoint={tmp_path / 'policy' / 'step_000001'}"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("{}")
    with pytest.raises(CommandError, match="has no checkpoint"):
        main([f"run={tmp_path / 'empty'}"])
    (run / "config.yaml").write_text("{}")
    with pytest.raises(CommandError, match="does not say where its data lie; give data=PATH"):
        main([f"run={run}"])


def test_models_that_take_no_prompts_are_measured_on_images_that_have_none(run, tmp_path):
    """`prompts` of the configuration is Stable Diffusion's alone."""
    write_images(tmp_path / "plain", "", 100, classes=("",))
    (run / "config.yaml").write_text(f"data: {tmp_path / 'plain'}\ndataset: folder\nprompts: own\n")
    main([f"run={run}", *QUICK])
    assert {row["prompts"] for row in rows(run)} == {"none"}


@pytest.fixture
def prompted(tmp_path, cifar):
    """A run of a small Stable Diffusion that was trained with a file of prompts for the first 98 images."""
    spec = tiny_stable_diffusion_spec(tiny_stable_diffusion(tmp_path / "tiny", ["cat", "bird"]))
    model = build_image_model(spec)
    path = tmp_path / "sd" / "seed_0" / "checkpoints" / "step_000010"
    save_checkpoint(path, spec_metadata(spec) | {"step": 10, "seed": 0}, {"ema": model.state_dict()})
    prompts = tmp_path / "words.txt"
    prompts.write_text("cat\n" * 98)
    options = f"data: {cifar}\ndataset: cifar10\nlimit: 98\nprompts: {prompts}\npretrained: {tmp_path / 'tiny'}\n"
    (tmp_path / "sd" / "config.yaml").write_text(options)
    return tmp_path / "sd", prompts


def test_a_runs_prompts_are_for_the_images_of_its_training_and_count_as_they_are(prompted, capsys):
    run, prompts = prompted
    words = [f"run={run}", "samples=97", "sampling_steps=1", "reference_samples=150"]
    main(words)
    main(words)
    (row,) = rows(run)
    assert "measured before" in capsys.readouterr().out and row["reference_n"] == "150"
    assert row["prompts"].startswith("words.txt (content ")
    prompts.write_text("bird\n" * 98)
    main(words)
    assert "measured before" not in capsys.readouterr().out and len(rows(run)) == 2


def test_prompts_that_a_model_would_ignore_are_refused(run):
    with pytest.raises(CommandError, match="prompts=own: .* is of model=ddim and has none; leave it out"):
        main([f"run={run}", *QUICK, "prompts=own"])
    assert not (run / "seed_0" / "frechet.csv").exists()


def test_ready_made_parts_are_refused_for_models_that_have_none(run):
    with pytest.raises(CheckpointError, match="pretrained=parts: .*holds model=ddim, which needs none"):
        main([f"run={run}", *QUICK, "pretrained=parts"])


def test_runs_on_other_data_cannot_be_compared(run, tmp_path):
    write_images(tmp_path / "more", "train", 110)
    other = write_run(tmp_path / "other", tmp_path / "more", first=1)
    with pytest.raises(ValueError, match="other cannot be compared with vanilla: reference_hash"):
        main([f"runs=vanilla={run},other={other}", *QUICK, f"out={tmp_path / 'report'}"])
