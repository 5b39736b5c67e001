"""Rows are read as they were written, and tell settings from measurements."""

from dataclasses import replace

import pytest

from immiscible_policy.image.evaluation.rows import ImageRow, read_image_rows, settings, write_image_rows

ROW = ImageRow(
    checkpoint=500, seed=1, distance=0.1 + 0.2, clip_score=None, n=2000, features="classifier", weights="ab12", dims=96,
    resize="bilinear to 299x299, as TensorFlow 1 has it", reference="cifar10", split="train", reference_hash="cd34",
    reference_n=50000, size=16, sampling_steps="best", noise_seed=0, edit="none", originals="none", prompts="none",
    clip="none",
)  # fmt: skip


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [ROW, replace(ROW, checkpoint=1000, clip_score=28.5)]
    write_image_rows(tmp_path / "frechet.csv", rows)
    assert read_image_rows(tmp_path / "frechet.csv") == rows
    assert read_image_rows(tmp_path / "none.csv") == []


def test_a_row_without_what_was_measured_and_its_setting():
    measured = replace(ROW, distance=7.0, clip_score=1.0)
    assert measured.unmeasured == ROW.unmeasured != replace(ROW, n=5000).unmeasured
    assert replace(ROW, checkpoint=1, seed=2).setting == ROW.setting
    assert settings(ROW).keys() & {"checkpoint", "seed", "distance", "clip_score"} == set()


def test_damaged_files_are_refused_with_their_line(tmp_path):
    path = tmp_path / "frechet.csv"
    write_image_rows(path, [ROW])
    path.write_text(path.read_text() + "600,1,much\n")
    with pytest.raises(ValueError, match=r"frechet.csv, line 3 is damaged"):
        read_image_rows(path)
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match="the first line is 'a,b'"):
        read_image_rows(path)
