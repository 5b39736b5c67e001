"""The wheel is whole: alone with what it says it needs, outside the repository, it imports, simulates and trains."""

import os
import re
import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent

USE = """
import site
import sys
from importlib.metadata import distributions
from pathlib import Path

site.addsitedir(sys.argv[1])  # reads the wheel's start-up file, as the start of an interpreter does
import gymnasium
import torch

gymnasium.spec("immiscible/PushT-v0")

import immiscible_envs
import immiscible_policy.noise

site = Path(sys.argv[1])
assert all(Path(each.__file__).is_relative_to(site) for each in (gymnasium, immiscible_envs, immiscible_policy))
select = immiscible_policy.noise.make_selector("knn", k=2)
assert select(torch.zeros(4, 16, 2)).shape == (4, 16, 2)

for seen in ("state", "keypoints", "image"):
    env = gymnasium.make("immiscible/PushT-v0", obs_type=seen)
    env.reset(seed=0)
    for _ in range(5):
        env.step(env.action_space.sample())

(own,) = (each for each in distributions(path=[str(site)]) if each.name == "immiscible-policy")
commands = {each.name: each for each in own.entry_points if each.group == "console_scripts"}
for name, *words in (["immiscible-train", "dry_run=true"], ["immiscible", "doctor"]):
    sys.argv = [name, *words]
    try:
        commands.pop(name).load()()
    except SystemExit as left:
        assert not left.code, (name, left.code)
for command in commands.values():
    command.load()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = place.glob("*.whl")
    return built


def test_the_wheel_ships_configs_and_demonstrations(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        str(path.relative_to(base))
        for base, room in ((ROOT / "envs", "immiscible_envs"), (ROOT, "immiscible_policy"))
        for path in (base / room).rglob("*.py")
    }
    configs = {f"immiscible_policy/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    store = {f"immiscible_policy/{path.relative_to(ROOT)}" for path in (ROOT / "data").rglob("*") if path.is_file()}
    assert sources <= names and configs <= names and store <= names
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "immiscible_policy").rglob("templates/*")}
    assert templates <= names and len(templates) >= 6
    assert len(configs) >= 9 and len(store) >= 10
    typed = {f"{package}/py.typed" for package in ("immiscible_envs", "immiscible_policy")}
    assert {"immiscible_envs/published_starts.json", "immiscible_envs.pth"} | typed <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "runs/")) for name in names)


def test_one_version_everywhere():
    """Of the two packages, in the code, for citations, and first in the changelog."""
    told = {
        "pyproject.toml": r'^version = "(.*)"',
        "lerobot_policy_immiscible/pyproject.toml": r'^version = "(.*)"',
        "immiscible_policy/__init__.py": r'^__version__ = "(.*)"',
        "CITATION.cff": r"^version: (.*)",
        "CHANGELOG.md": r"^## (\S+)",
    }
    found = {name: re.search(pattern, (ROOT / name).read_text(), flags=re.M)[1] for name, pattern in told.items()}
    assert set(found.values()) == {distribution("immiscible-policy").version}, found


def test_what_a_package_index_shows_has_no_link_into_the_repository(wheel):
    """Pictures are left out, links to files are their text, links to elsewhere stay."""
    files = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in files.namelist() if name.endswith("dist-info/METADATA"))
    shown = message_from_bytes(files.read(metadata)).get_payload()
    readme = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)]*)\)", readme)
    outside = [link for link in links if link.startswith("https://")]
    assert re.findall(r"\]\(([^)]*)\)", shown) == outside and 0 < len(outside) < len(links)
    assert "![" not in shown
    assert "| Start, options, statistics | train, evaluate, compare |" in shown


def needed(of: Distribution, result: dict[str, Distribution], extras: tuple[str, ...] = ("",)) -> None:
    """Collect by name what a distribution needs, and what that needs, of what is installed."""
    for requirement in map(Requirement, of.requires or []):
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if requirement.name not in result:
            result[requirement.name] = of if requirement.name == of.name else distribution(requirement.name)
            needed(result[requirement.name], result, ("", *requirement.extras))


@pytest.mark.slow
def test_with_what_it_needs_and_nothing_else_it_works_outside_the_repository(wheel, tmp_path):
    """As after `pip install 'immiscible-policy[train]'`: site-packages has the wheel and its requirements alone."""
    site = tmp_path / "site"
    install = ["pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)
    (own,) = distributions(path=[str(site)])
    light: dict[str, Distribution] = {}
    needed(own, light)
    assert {"torch", "scipy", "numpy"} <= light.keys() and not {"gymnasium", "diffusers", "zarr"} & light.keys()
    result: dict[str, Distribution] = {}
    needed(own, result, ("", "train"))
    result.pop(own.name, None)
    assert {"torch", "gymnasium", "pymunk"} <= result.keys() and not {"pytest", "transformers", "ray"} & result.keys()
    for item in result.values():
        for top in {file.parts[0] for file in item.files or []} - {"..", "__pycache__", *os.listdir(site)}:
            (site / top).symlink_to(item.locate_file(top))
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-S", "-c", USE, str(site)], cwd=tmp_path / "elsewhere", capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dry run: nothing was written" in done.stdout and "nothing is wrong" in done.stdout
    assert not list((tmp_path / "elsewhere").iterdir())
