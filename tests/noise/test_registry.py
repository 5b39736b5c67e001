"""Selectors by name, by entry point and by dotted path, and the refusals of each."""

import pytest
import torch

from immiscible_policy.cli import CommandError
from immiscible_policy.extensions import describe
from immiscible_policy.noise import SELECTORS, find_selector, make_selector, selector_options
from immiscible_policy.recipes.robot_config import compose_config

OWN = '''
import torch

class Cold:
    """Noise of another length.

    Attributes:
        temperature: Factor on the noise.
        shift: Added to it;
            on every number.
    """

    def __init__(self, temperature, shift=0.0):
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: needs a number above 0")
        self.temperature, self.shift = temperature, shift

    def __call__(self, x, *, condition=None, mask=None, step=None, generator=None):
        return self.temperature * torch.randn(x.shape, generator=generator) + self.shift

class Deaf:
    def __call__(self, x):
        return x

class Mute:
    pass
'''


@pytest.fixture
def own_module(write_module):
    write_module("own_noise", OWN)


def test_a_dotted_path_with_options(own_module):
    x = torch.zeros(3, 2)
    select = make_selector("own_noise:Cold", temperature=2.0)
    plain = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(select(x, step=4, generator=torch.Generator().manual_seed(1)), 2 * plain)
    assert selector_options("own_noise:Cold") == ("temperature", "shift")


@pytest.fixture
def registers(tmp_path, monkeypatch):
    """Another package that registers a selector."""

    def register(name, value):
        info = tmp_path / "site" / "own-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[immiscible_policy.selectors]\n{name} = {value}\n")
        monkeypatch.syspath_prepend(info.parent)

    return register


def test_an_entry_point_is_known_by_its_name(own_module, registers):
    registers("cold", "own_noise:Cold")
    assert make_selector("cold", temperature=1.0).shift == 0
    assert compose_config(["noise=cold", "temperature=2"]).noise["temperature"] == 2
    with pytest.raises(CommandError, match="known: cold, vanilla, knn"):
        find_selector("colt3")


def test_a_builtin_name_cannot_be_registered_over(registers):
    registers("knn", "nowhere:Other")
    assert make_selector("knn").k == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nowhere_at_all:Selector", {}, "noise=nowhere_at_all:Selector: No module named 'nowhere_at_all'; install it"),
        ("own_noise:Warm", {}, "noise=own_noise:Warm: cannot be imported"),
        ("os:path", {}, "noise=os:path: os:path is a module, neither a class nor a function"),
        ("own_noise:Cold", {}, "noise=own_noise:Cold needs temperature; it takes temperature, shift"),
        ("own_noise:Cold", {"temperature": 1, "k": 2}, "k=2: noise=own_noise:Cold has no k; it takes temperature"),
        ("own_noise:Cold", {"temperature": "hot"}, "noise=own_noise:Cold cannot be built with temperature=hot"),
        ("own_noise:Cold", {"temperature": -1}, "temperature=-1: needs a number above 0"),
        ("own_noise:Deaf", {}, "noise=own_noise:Deaf: Deaf is not a selector; it must be called as select(x, "),
        ("own_noise:Mute", {}, "Mute is not a selector"),
        ("kn", {}, "unknown noise 'kn'; did you mean 'knn'? known: vanilla, knn, sign, linear, idp26, c2ot, or noise="),
        ("vanilla", {"k": 2}, "k=2: noise=vanilla has no k; it takes no options"),
        (7, {}, "noise 7 is not a name; known: vanilla"),
    ],
)
def test_what_is_no_selector_is_refused_in_one_line(own_module, name, options, message):
    with pytest.raises(ValueError) as refused:
        make_selector(name, **options)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_every_option_of_a_selector_is_described(own_module):
    for name in SELECTORS:
        assert list(describe(find_selector(name))) == list(selector_options(name))
    described = describe(find_selector("own_noise:Cold"))
    assert described == {"temperature": "Factor on the noise.", "shift": "Added to it; on every number."}
