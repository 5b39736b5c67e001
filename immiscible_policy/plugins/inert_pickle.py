"""Read pickled checkpoints without executing what is pickled.

A pickle is a program: it names functions, and loading it imports and calls them. Here a name is one of three things:

    rebuilt    tensors, ordered dictionaries and plain containers: what weights are made of (`REBUILT`)
    refused    any other name of Python itself, such as `os.system` or `builtins.eval`: no weights need it
    inert      any other class or function, for example omegaconf's: an object that does nothing and keeps its state

Nothing is imported for the last two. The storages of tensors are read by torch, which asks this module for every name.
"""

from __future__ import annotations

import collections
import io
import pickle
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch._utils

from immiscible_policy.cli import one_line
from immiscible_policy.store.checkpoint import CheckpointError

_PLAIN = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, object, set, str, tuple)
REBUILT: dict[tuple[str, str], Any] = {
    **{("builtins", kind.__name__): kind for kind in _PLAIN},
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # how protocol 2 makes bytes
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
}
"""What a pickle may make; the storages that torch adds to it are bare numbers."""
HARMLESS = ("typing", "pathlib", "enum", "datetime", "uuid")
"""Modules of Python itself whose names stay inert instead of being refused: configurations are made of them."""


class Inert:
    """What stands for an object of a class that is not loaded: it takes everything and does nothing."""

    origin = ""  # the class's name
    state: Any = None  # what the object was made of, if the pickle says so

    def __new__(cls, *args: Any, **options: Any) -> Inert:
        """Make one, whatever the arguments."""
        return object.__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __call__(self, *args: Any, **options: Any) -> Inert:
        """What a call of something inert returns is inert."""
        return Inert()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, values: Any) -> None:
        """Take an item, or several."""

    add = extend = append


class Unpickler(pickle.Unpickler):
    """An unpickler that imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle stands for; a CheckpointError if it is of Python itself and no weights need it."""
        module, name = NAME_MAPPING.get((module, name), (module, name))  # protocol 2 has the names of Python 2
        module = IMPORT_MAPPING.get(module, module)
        if (module, name) in REBUILT:
            named = REBUILT[module, name]
            # A pickle can set attributes of the function that it names: here of a wrapper alone.
            return named if isinstance(named, type) else lambda *args: named(*args)
        room = module.partition(".")[0]
        if room in {"__main__"} | sys.stdlib_module_names and room not in HARMLESS:
            raise CheckpointError(f"it would call {module}.{name}, which no checkpoint needs; do not trust this file")
        return type(name, (Inert,), {"origin": f"{module}.{name}"})


def read_pickled(path: Path) -> Any:
    """Read what `torch.save` wrote, with whatever pickle module; tensors on the CPU, unknown objects `Inert`.

    Raises:
        CheckpointError: If the file is missing, is not a checkpoint of PyTorch 1.6 or later, is damaged, or names what
            would execute code; nothing is executed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is not a checkpoint of PyTorch 1.6 or later; save it anew with torch.save")
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("constants.pkl") for name in archive.namelist()):
            raise CheckpointError(f"{path} is a TorchScript program, not a checkpoint; give a file of weights")
    module = ModuleType("inert_pickle")  # the shape in which torch takes an unpickler
    module.Unpickler = Unpickler  # type: ignore[attr-defined]
    try:
        return torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)
    except CheckpointError as error:
        raise CheckpointError(f"{path} is refused: {error}") from None
    except Exception as error:  # a damaged pickle raises whatever its opcodes lead to
        raise CheckpointError(f"{path} cannot be read ({one_line(error)}); use another checkpoint") from None


def read_bytes(content: bytes) -> Any:
    """Read a pickle that lies in memory, as `read_pickled` does, with its CheckpointError."""
    try:
        return Unpickler(io.BytesIO(content)).load()
    except CheckpointError:
        raise
    except Exception as error:  # as above
        raise CheckpointError(f"a pickle inside the checkpoint cannot be read ({one_line(error)})") from None


def plain(value: Any) -> Any:
    """Configurations of omegaconf, inert in what `read_pickled` returns, as dictionaries, lists and values."""
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, dict) else {}
        return plain(state["_content"]) if "_content" in state else state.get("_val")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
