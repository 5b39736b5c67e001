"""Pickled checkpoints are read, and nothing that is pickled in them is executed."""

import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from immiscible_policy.plugins.inert_pickle import Inert, plain, read_bytes, read_pickled
from immiscible_policy.store.checkpoint import CheckpointError
from tests.plugins.peers import needs, peers


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def saved(tmp_path):
    def save(value):
        torch.save(value, tmp_path / "file.ckpt")
        return tmp_path / "file.ckpt"

    return save


def test_tensors_and_containers_come_back(saved):
    shared = torch.randn(6)
    value = {
        "state": OrderedDict(a=torch.arange(3), b=torch.ones(2, dtype=torch.bfloat16), c=shared[2:], d=shared),
        "parameter": nn.Parameter(torch.zeros(2)),
        "plain": [1, 2.5, "text", None, True, (1, b"bytes"), {3}],
        "size": torch.Size([2]),
    }
    result = read_pickled(saved(value))
    assert result["plain"] == value["plain"] and result["size"] == value["size"]
    assert isinstance(result["parameter"], nn.Parameter) and type(result["state"]) is OrderedDict
    for name, tensor in value["state"].items():
        assert torch.equal(result["state"][name], tensor) and result["state"][name].dtype == tensor.dtype


@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"state_dicts": {"model": [1, bomb]}}])
def test_a_payload_is_refused_and_nothing_executed(saved, tmp_path, wrap):
    victim = tmp_path / "victim"
    path = saved(wrap(Calls(os.system, f"touch {victim}")))
    with pytest.raises(CheckpointError, match=r"is refused: it would call posix\.system"):
        read_pickled(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists(), "the payload was alive"


@pytest.mark.parametrize(
    "function", [eval, exec, getattr, __import__, open, subprocess.Popen, os.remove, pickle.loads, os._exit]
)
def test_every_function_of_python_is_refused(saved, function):
    with pytest.raises(CheckpointError, match="do not trust this file"):
        read_pickled(saved(Calls(function, "1")))


def test_a_function_of_another_package_is_neither_imported_nor_called(tmp_path):
    (tmp_path / "canary.py").write_text(f"open({str(tmp_path / 'sang')!r}, 'w')\ndef sing(): pass\n")
    content = b"\x80\x02ccanary\nsing\n)R."  # protocol 2, GLOBAL, empty tuple, REDUCE
    code = (
        "import sys; from immiscible_policy.plugins.inert_pickle import read_bytes; "
        f"value = read_bytes({content!r}); print(type(value).__name__, 'canary' in sys.modules)"
    )
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.stdout == "sing False\n", done.stderr
    assert not (tmp_path / "sang").exists()


def test_what_is_rebuilt_cannot_be_changed_from_within():
    """GLOBAL f, then BUILD with (None, {"__defaults__": (1,)}), which sets that attribute of f."""
    function = torch._utils._rebuild_parameter
    before = function.__defaults__
    content = b"\x80\x02ctorch._utils\n_rebuild_parameter\nN}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b."
    result = read_bytes(content)
    assert result.__defaults__ == (1,) and function.__defaults__ == before


def test_what_is_inert_takes_everything():
    class_ = read_bytes(b"\x80\x02cmade.up\nThing\n.")
    assert issubclass(class_, Inert) and class_.origin == "made.up.Thing"
    thing = class_(1, key=2)
    thing.append(1), thing.extend([2]), thing.add(3)
    thing["key"] = 4
    assert type(thing("anything")) is Inert


def test_configurations_of_omegaconf_become_plain(saved):
    config = {"policy": {"horizon": 16, "down_dims": [256, 512], "name": None, "clip": True, "lr": 1e-4}}
    result = read_pickled(saved({"cfg": OmegaConf.create(config)}))
    assert plain(result["cfg"]) == config


DILL = """
import dill, sys, torch
class Config: pass
config = Config()
config.__dict__.update(_content={"horizon": 16}, _metadata=Config())
payload = {"cfg": config, "state_dicts": {"model": {"w": torch.arange(4.)}}, "pickles": {"global_step": dill.dumps(7)}}
torch.save(payload, sys.argv[1], pickle_module=dill)
"""


def test_files_of_dill_are_read(tmp_path):
    needs("dill")
    peers(
        "-c", DILL.replace("class Config: pass", "from argparse import Namespace as Config"), str(tmp_path / "a.ckpt")
    )
    with pytest.raises(CheckpointError, match="argparse.Namespace"):
        read_pickled(tmp_path / "a.ckpt")
    peers(
        "-c", DILL.replace("class Config: pass", "from einops import EinopsError as Config"), str(tmp_path / "b.ckpt")
    )
    result = read_pickled(tmp_path / "b.ckpt")
    assert torch.equal(result["state_dicts"]["model"]["w"], torch.arange(4.0))
    assert plain(result["cfg"]) == {"horizon": 16} and read_bytes(result["pickles"]["global_step"]) == 7


def test_files_of_another_kind_are_refused_in_one_line(tmp_path):
    def message(path):
        with pytest.raises(CheckpointError) as error:
            read_pickled(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    torch.save({"a": 1}, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    torch.jit.script(nn.Linear(1, 1)).save(str(tmp_path / "script"))
    torch.save({"a": torch.ones(9)}, tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole") as whole, zipfile.ZipFile(tmp_path / "damaged", "w") as damaged:
        for name in whole.namelist():
            damaged.writestr(name, whole.read(name)[:20] if name.endswith("data.pkl") else whole.read(name))
    assert "does not exist" in message(tmp_path / "absent")
    assert "PyTorch 1.6" in message(tmp_path / "legacy")
    assert "TorchScript program" in message(tmp_path / "script")
    assert "cannot be read" in message(tmp_path / "damaged")
