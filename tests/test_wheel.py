"""The wheel is whole: code, configuration files and the embedded demonstrations."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_ships_configs_and_demonstrations(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        str(path.relative_to(ROOT)) for room in ("envs", "immiscible_policy") for path in (ROOT / room).rglob("*.py")
    }
    configs = {f"immiscible_policy/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    store = {f"immiscible_policy/{path.relative_to(ROOT)}" for path in (ROOT / "data").rglob("*") if path.is_file()}
    assert sources <= names and configs <= names and store <= names
    pages = {f"immiscible_policy/evaluation/report/page.{kind}" for kind in ("html", "css", "js")}
    assert pages <= names
    assert len(configs) >= 9 and len(store) >= 10 and "envs/published_starts.json" in names
    assert not any(name.startswith(("tests/", "benchmarks/", "runs/")) for name in names)
