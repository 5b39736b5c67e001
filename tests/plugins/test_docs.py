"""Every Python block of docs/plugins.md runs, in the order in which it stands there."""

import re

from tests.plugins.miniature import MiniaturePolicy, batch_of
from tests.plugins.peers import ROOT, needs, peers

TEXT = (ROOT / "docs" / "plugins.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)


class Workspace:
    """Trains the miniature for a step."""

    def __init__(self):
        self.model, self.global_step, self.losses = MiniaturePolicy(), 3, []

    def run(self):
        self.losses.append(self.model.compute_loss(batch_of(self.model)).item())


def test_the_page_shows_six_blocks():
    assert len(BLOCKS) == 6


def test_the_blocks_run():
    names = {"workspace": Workspace()}
    for block in BLOCKS[:5]:
        exec(compile(block, "docs/plugins.md", "exec"), names)
    assert names["clean"].shape == names["noisy"].shape
    assert (names["drawn"] == names["noise"].chosen).all() and not (names["drawn"] == names["noise"].plain).all()
    assert names["workspace"].losses and type(names["workspace"].model.compute_loss).__name__ == "ImmiscibleLoss"


def test_the_block_on_torchcfm_runs():
    needs("torchcfm")
    assert peers("-c", BLOCKS[0] + BLOCKS[5] + "print(tuple(x_t.shape))").stdout == "(64, 16, 2)\n"


def test_every_file_that_the_page_names_is_there():
    links = re.findall(r"\]\(((?:\.\./)?[\w/.]+)\)", TEXT)
    assert len(links) == 7 and all((ROOT / "docs" / link).exists() for link in links)
