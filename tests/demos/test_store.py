"""What is written is what is read, whatever the format; what is broken is refused in one line."""

import dataclasses
import os
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from immiscible_policy.demos import (
    Column,
    Demonstrations,
    StoreError,
    content_hash,
    join,
    open_store,
    store,
    write_store,
)
from tests.demos.stores import LENGTHS, PUSHT, changed, opened, small_arrays, write_plain


def files_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def assert_same(a: Demonstrations, b: Demonstrations) -> None:
    assert list(a.arrays) == list(b.arrays)
    for one, other in [(a.episode_ends, b.episode_ends), *((a[key], b[key]) for key in a.arrays)]:
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def refusal(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        opened(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def test_round_trip(tmp_path):
    arrays, ends = small_arrays(image=6)
    demos = open_store(write_store(tmp_path / "a.zarr", arrays, ends, {"made by": "test"}))
    for name in ("state", "action", "keypoint", "n_contacts"):
        np.testing.assert_array_equal(demos[name], arrays[name])
    np.testing.assert_array_equal(demos.frames["img"][:], arrays["img"])
    np.testing.assert_array_equal(demos.episode_ends, ends)
    assert demos.lengths.tolist() == list(LENGTHS) and demos.episodes[1] == slice(12, 42)
    assert zarr.open_group(tmp_path / "a.zarr", mode="r").attrs["made by"] == "test"
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_as_many_episodes_as_steps_are_selected_in_linear_time(tmp_path):
    """24,799 episodes of one step, which took a minute when each was looked up in all."""
    count = 24_799
    demos = Demonstrations(tmp_path, {"action": np.arange(count)[:, None]}, np.arange(1, count + 1))
    started = time.process_time()
    chosen = demos.select(np.arange(count)[::-1])
    assert time.process_time() - started < 2 and chosen["action"][:3, 0].tolist() == [count - 1, count - 2, count - 3]


def test_optional_arrays_may_be_absent_and_are_missed_when_asked_for(tmp_path):
    arrays, ends = small_arrays()
    del arrays["n_contacts"]
    demos = opened(write_store(tmp_path / "a.zarr", arrays, ends))
    assert list(demos.select([0]).arrays) == ["state", "action", "keypoint"] and not demos.frames
    with pytest.raises(StoreError, match="data/n_contacts is missing, it has data/state, data/action, data/keypoint"):
        demos["n_contacts"]


def test_a_store_of_any_keys_and_shapes(tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        "qpos": random.normal(size=(51, 7)),
        "gripper": random.integers(0, 2, 51).astype(bool),
        "action": random.normal(size=(51, 7)).astype(np.float32),
        "wrench": random.normal(size=(51, 2, 3)),
        "front": random.integers(0, 256, (51, 4, 6, 3)).astype(np.uint8),
    }
    ends = small_arrays()[1]
    demos = open_store(write_store(tmp_path / "a.zarr", arrays, ends))
    assert set(demos.arrays) == {"qpos", "gripper", "action", "wrench"} and set(demos.frames) == {"front"}
    for key, values in demos.arrays.items():
        np.testing.assert_array_equal(values, arrays[key])
    np.testing.assert_array_equal(demos.frames["front"][:], arrays["front"])
    some = open_store(tmp_path / "a.zarr", {"qpos": Column((7,)), "action": Column()})
    assert list(some.arrays) == ["qpos", "action"]
    with pytest.raises(StoreError, match=r"data/qpos has shape \(51, 7\); it should be \(T, 6\)"):
        open_store(tmp_path / "a.zarr", {"qpos": Column((6,))})


def test_joined_selections_are_a_selection(tmp_path):
    demos = opened(write_store(tmp_path / "a.zarr", *small_arrays(image=4)))
    both = join(demos.select([2]), demos.select([0, 1]))
    assert_same(both, demos.select([2, 0, 1]))
    assert content_hash(both, images=True) == content_hash(demos.select([2, 0, 1]), images=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
def test_formats_2_and_3_read_the_same(tmp_path, dtype):
    arrays, ends = small_arrays(image=4)
    arrays = {name: values.astype(dtype) for name, values in arrays.items()}
    two = open_store(write_plain(tmp_path / "two.zarr", arrays, ends, zarr_format=2))
    three = open_store(write_plain(tmp_path / "three.zarr", arrays, ends, zarr_format=3, rows=5))
    assert_same(two, three)
    assert two["state"].dtype.isnative and three.frames["img"][:1].dtype.isnative
    np.testing.assert_array_equal(two.frames["img"][:], three.frames["img"][:])
    assert content_hash(two, images=True) == content_hash(three, images=True)


def test_sharded_chunks_are_looked_for_by_shard(tmp_path):
    arrays, ends = small_arrays()
    path = write_plain(tmp_path / "a.zarr", arrays, ends, zarr_format=3)
    group = zarr.open_group(path)["data"]
    del group["state"]
    array = group.create_array("state", shape=(51, 5), dtype="f4", chunks=(4, 5), shards=(12, 5))
    array[:] = arrays["state"]
    np.testing.assert_array_equal(open_store(path)["state"], arrays["state"])
    (path / "data/state/c/2/0").unlink()
    assert "chunk file data/state/c/2/0 (steps 24 to 35) is missing, 1 of 5" in refusal(path)


def test_equal_arrays_give_equal_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK_BYTES", 4096)
    arrays, ends = small_arrays(image=16)
    first = write_store(tmp_path / "a.zarr", arrays, ends, {"b": 1, "a": 2})
    again = write_store(tmp_path / "b.zarr", dict(reversed(arrays.items())), list(ends), {"a": 2, "b": 1})
    assert files_of(first) == files_of(again)
    assert len(list((first / "data" / "img").iterdir())) > 10


def test_chunks_of_zeros_are_written(tmp_path):
    arrays, ends = small_arrays()
    arrays["n_contacts"][:] = 0
    assert not open_store(write_store(tmp_path / "a.zarr", arrays, ends))["n_contacts"].any()


def test_the_hash_sees_names_types_shapes_and_values_only(tmp_path):
    arrays, ends = small_arrays(image=4)
    reference = open_store(write_store(tmp_path / "a.zarr", arrays, ends))
    same = open_store(write_plain(tmp_path / "b.zarr", arrays, ends, rows=3))
    assert content_hash(reference) == content_hash(same) == content_hash(tmp_path / "b.zarr")
    others = [
        changed(reference, state=reference["state"].astype(np.float64)),
        changed(reference, state=reference["action"], action=reference["state"]),
        changed(reference, keypoint=reference["keypoint"].reshape(-1, 18)),
        changed(reference, action=np.nextafter(reference["action"], np.float32(0))),
        dataclasses.replace(reference, episode_ends=np.array([51])),
        changed(reference, n_contacts=None),
    ]
    hashes = {content_hash(demos) for demos in (reference, *others)} | {content_hash(reference, images=True)}
    assert len(hashes) == len(others) + 2


def test_the_hash_is_what_its_docstring_says(tmp_path):
    import hashlib

    arrays, ends = small_arrays((4,))
    del arrays["n_contacts"]
    path = write_store(tmp_path / "a.zarr", arrays, ends)
    digest = hashlib.sha256(
        b"action <f4 (4, 2)\n" + arrays["action"].tobytes()
        + b"episode_ends <i8 (1,)\n" + np.array([4], "<i8").tobytes()
        + b"keypoint <f4 (4, 9, 2)\n" + arrays["keypoint"].tobytes()
        + b"state <f4 (4, 5)\n" + arrays["state"].tobytes()
    )  # fmt: skip
    assert content_hash(path) == content_hash(path, images=True) == digest.hexdigest()


def test_select_keeps_whole_episodes_in_the_order_asked_for(tmp_path):
    arrays, ends = small_arrays(image=4)
    demos = open_store(write_plain(tmp_path / "a.zarr", arrays, ends))
    some = demos.select([2, 0])
    steps = [*range(42, 51), *range(12)]
    np.testing.assert_array_equal(some["state"], demos["state"][steps])
    np.testing.assert_array_equal(some.frames["img"][:], arrays["img"][steps])
    np.testing.assert_array_equal(some.frames["img"].as_bytes().numpy(), arrays["img"][steps].astype(np.uint8))
    np.testing.assert_array_equal(some.frames["img"][np.array([3, 20, 3])], arrays["img"][[45, 11, 45]])
    assert some.lengths.tolist() == [9, 12]
    assert_same(demos.select(range(3)), demos)


@pytest.mark.parametrize(
    ("ids", "says"),
    [([], "at least one"), ([3], "no episode 3"), ([-1], "no episode -1"), ([0.5], "at least one")],
)
def test_select_refuses(tmp_path, ids, says):
    demos = open_store(write_store(tmp_path / "a.zarr", *small_arrays()))
    with pytest.raises(ValueError, match=says):
        demos.select(ids)


def corrupt_nan(arrays, ends):
    arrays["action"][20, 1] = np.nan
    return arrays, ends


def corrupt_inf(arrays, ends):
    arrays["keypoint"][50, 8, 0] = np.inf
    return arrays, ends


def drop_keypoint(arrays, ends):
    del arrays["keypoint"]
    return arrays, ends


def shorten_action(arrays, ends):
    arrays["action"] = arrays["action"][:-1]
    return arrays, ends


def flat_keypoint(arrays, ends):
    arrays["keypoint"] = arrays["keypoint"].reshape(-1, 18)
    return arrays, ends


def integer_state(arrays, ends):
    arrays["state"] = arrays["state"].astype(np.int32)
    return arrays, ends


CORRUPTIONS = {
    "nan": (corrupt_nan, "data/action[1] is nan at step 20 (episode 1, its step 8)"),
    "inf": (corrupt_inf, "data/keypoint[8, 0] is inf at step 50 (episode 2, its step 8)"),
    "no keypoint": (drop_keypoint, "data/keypoint is missing; a store needs data/state"),
    "short action": (shorten_action, "differ in length: data/state 51, data/action 50"),
    "flat keypoint": (flat_keypoint, "data/keypoint has shape (51, 18); it should be (T, 9, 2)"),
    "integer state": (integer_state, "data/state has dtype int32; it should hold floating point numbers"),
    "empty episode": (
        lambda a, e: (a, np.array([12, 12, 51])),
        "does not increase at episode 1: it ends at 12 and begins at 12",
    ),
    "falling": (lambda a, e: (a, np.array([30, 12, 51])), "does not increase at episode 1"),
    "zero": (lambda a, e: (a, np.array([0, 12, 51])), "does not increase at episode 0"),
    "open end": (lambda a, e: (a, np.array([12, 42])), "closes at 42, but the arrays hold 51 steps"),
    "beyond": (lambda a, e: (a, np.array([12, 42, 60])), "closes at 60, but the arrays hold 51 steps"),
    "float ends": (lambda a, e: (a, np.array([12.0, 51.0])), "at least one whole number; got float64"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_is_refused_on_reading_and_on_writing(tmp_path, name):
    corrupt, says = CORRUPTIONS[name]
    arrays, ends = corrupt(*small_arrays())
    assert says in refusal(write_plain(tmp_path / "a.zarr", arrays, ends))
    with pytest.raises(StoreError) as caught:
        write_store(tmp_path / "new" / "b.zarr", arrays, ends, columns=PUSHT.columns)
    assert says in str(caught.value)
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_every_single_missing_chunk_file_is_noticed(tmp_path):
    arrays, ends = small_arrays(image=4)
    path = write_plain(tmp_path / "a.zarr", arrays, ends, rows=20)
    chunks = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    assert len(chunks) == 5 * 3 + 1
    for chunk in chunks:
        content = chunk.read_bytes()
        chunk.unlink()
        assert f"chunk file {chunk.relative_to(path)} (steps" in refusal(path)
        chunk.write_bytes(content)
    assert len(open_store(path)) == 51


@pytest.mark.parametrize("content", [b"", b"\x02\x01\x33", b"nonsense" * 9])
def test_an_undecodable_chunk_is_named(tmp_path, content):
    path = write_plain(tmp_path / "a.zarr", *small_arrays())
    (path / "data/action/2.0").write_bytes(content)
    assert "chunk file data/action/2.0 (steps 14 to 20) cannot be decoded" in refusal(path)


def test_an_undecodable_image_is_named_when_it_is_read(tmp_path):
    path = write_plain(tmp_path / "a.zarr", *small_arrays(image=4))
    (path / "data/img/3.0.0.0").write_bytes(b"")
    demos = open_store(path)
    assert len(demos.frames["img"][:21]) == 21
    with pytest.raises(StoreError, match=r"a\.zarr: chunk file data/img/3\.0\.0\.0 \(steps 21 to 27\)"):
        demos.frames["img"][20:22]


def test_what_is_no_store_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere.zarr")
    (tmp_path / "file.zip").write_bytes(b"PK")
    assert "not a zip archive" in refusal(tmp_path / "file.zip")
    (tmp_path / "empty").mkdir()
    assert "not a zarr store" in refusal(tmp_path / "empty")
    path = write_plain(tmp_path / "a.zarr", *small_arrays())
    (path / "data/state/.zarray").write_text("{")
    assert "not a zarr store" in refusal(path)
    zarr.create_group(tmp_path / "bare.zarr", zarr_format=2)
    assert "meta/episode_ends is missing" in refusal(tmp_path / "bare.zarr")


def test_writing_never_overwrites(tmp_path):
    arrays, ends = small_arrays()
    path = write_store(tmp_path / "a.zarr", arrays, ends)
    before = files_of(path)
    with pytest.raises(StoreError, match="exists already"):
        write_store(path, arrays, ends)
    assert files_of(path) == before and os.listdir(tmp_path) == ["a.zarr"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    class Failing:
        shape, dtype = (51, 4, 4, 3), np.dtype(np.uint8)

        def __len__(self):
            return 51

        def __getitem__(self, index):
            raise RuntimeError("the camera fell over")

    arrays, ends = small_arrays()
    with pytest.raises(RuntimeError, match="fell over"):
        write_store(tmp_path / "a.zarr", arrays | {"img": Failing()}, ends)
    assert os.listdir(tmp_path) == []


def test_stored_images_can_be_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK_BYTES", 2000)
    arrays, ends = small_arrays(image=4)
    demos = open_store(write_plain(tmp_path / "a.zarr", arrays, ends))
    again = open_store(write_store(tmp_path / "b.zarr", {**demos.arrays, **demos.frames}, ends))
    assert content_hash(demos, images=True) == content_hash(again, images=True)


def test_the_embedded_store_lies_in_the_checkout():
    assert PUSHT.demonstrations() == Path(__file__).resolve().parents[2] / "data" / "pusht_expert.zarr"


def test_human_store(human_store):
    demos = open_store(human_store)
    assert demos.n_episodes == 206 and len(demos) == 25650
    assert (demos.lengths.min(), demos.lengths.max()) == (49, 246)
    assert demos["keypoint"].shape == (25650, 9, 2) and demos["n_contacts"].shape == (25650, 1)
    assert demos.frames["img"].shape == (25650, 96, 96, 3)
    assert content_hash(demos) == "2b639404c122f24ded6ba12005d92429dfc5e916d5e956089db55fffcaa7fb6c"
