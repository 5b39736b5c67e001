"""Files that are damaged or hostile are refused in one line that names them, at once."""

import json
from dataclasses import dataclass

import pytest

from immiscible_policy.store.reading import described, read_json, read_yaml, require_kinds

BOMB = "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


DAMAGED = (b"", b"[]", b"{", b"\xff\xfe", b'"text"', b"[" * 100_000, b'{"a": ' * 50_000, b"1" * 5000,
           b'{"a": 1' + b"0" * 5000 + b"}")  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_what_is_no_mapping_is_one_line(tmp_path, content, read):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="^.*/file is damaged .*; restore it, or delete it$") as caught:
        read(tmp_path / "file")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_bomb_of_aliases_and_a_file_of_gigabytes_are_not_read(tmp_path):
    (tmp_path / "bomb").write_text(BOMB)
    with pytest.raises(ValueError, match="bomb is damaged .it has aliases.; mend it"):
        read_yaml(tmp_path / "bomb", "mend it")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(10 * 2**30)  # without blocks on the disk
    with pytest.raises(ValueError, match="large is damaged .it has more than 64 MB."):
        read_json(tmp_path / "large")
    with pytest.raises(ValueError, match="absent cannot be read .No such file"):
        read_json(tmp_path / "absent")


def test_a_mapping_comes_back_and_its_kinds_are_checked(tmp_path):
    content = {"step": 3, "config": {"lr": 0.1}, "data_hash": None}
    (tmp_path / "file").write_text(json.dumps(content))
    assert read_json(tmp_path / "file") == read_yaml(tmp_path / "file") == content
    kinds = {"step": int, "config": dict, "data_hash": str | None, "absent": int}
    require_kinds(tmp_path / "file", content, kinds, "mend it")
    for change in ({"step": "3"}, {"step": True}, {"step": 10**30}, {"config": []}, {"data_hash": 1}):
        with pytest.raises(ValueError, match=f"file is damaged .{next(iter(change))} is .*; mend it"):
            require_kinds(tmp_path / "file", content | change, kinds, "mend it")


@dataclass(frozen=True)
class Part:
    name: str
    sizes: tuple[int, ...]
    scale: float = 1.0
    inner: int | None = None


def test_a_description_has_the_types_of_its_fields():
    assert described(Part, {"name": "a", "sizes": [1, 2], "scale": 2}) == Part("a", (1, 2), 2)
    for change in ({"name": 1}, {"sizes": ["1"]}, {"sizes": [10**10]}, {"sizes": 3}, {"scale": "1"}, {"inner": 0.5},
                   {"other": 1}):  # fmt: skip
        with pytest.raises(TypeError, match=next(iter(change))):
            described(Part, {"name": "a", "sizes": [1], "inner": 3} | change)
    with pytest.raises(TypeError, match="sizes"):
        described(Part, {"name": "a"})
