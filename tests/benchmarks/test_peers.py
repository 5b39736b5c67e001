"""Peers: who takes part, and the pipe between a peer and us."""

import sys
from pathlib import Path

import pytest

from benchmarks import peers
from benchmarks.__main__ import main
from benchmarks.peers import NAMES, Peer, PeerFailed, chosen_peers, peer_names
from tests.training.helpers import ROOT, here, refused

FAKE = """
import sys
from benchmarks.peers.serve import serve

class Fake:
    def double(self, *, number):
        print("what libraries print is not an answer")
        return {"twice": 2 * number}

    def fail(self):
        raise RuntimeError("no such thing")

serve(Fake())
"""


@pytest.fixture
def fake_peer(tmp_path, monkeypatch):
    """A peer whose process runs FAKE with this Python."""
    (tmp_path / "fake.py").write_text(FAKE)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" "{tmp_path}/fake.py"\n')
    program.chmod(0o755)
    monkeypatch.setattr(peers, "PYTHON", program)


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setattr(peers, "INSTALLED", Path("/nowhere/.installed"))


def test_a_peer_answers_what_it_is_asked(fake_peer):
    with Peer("torchcfm") as peer:
        assert peer.ask("double", {"number": 21}) == {"twice": 42}
        assert peer.ask("double", {"number": 0.5}) == {"twice": 1.0}


def test_a_peer_that_fails_says_why(fake_peer):
    with Peer("torchcfm") as peer:
        with pytest.raises(PeerFailed, match="peer torchcfm failed: RuntimeError: no such thing"):
            peer.ask("fail")
        with pytest.raises(PeerFailed, match="no such thing"):
            peer.ask("double", {"number": 1})


def test_who_takes_part(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "INSTALLED", tmp_path)
    assert peer_names("none") == () and peer_names("all") == NAMES
    assert peer_names("torchcfm,lerobot") == ("torchcfm", "lerobot")
    assert chosen_peers(None) == NAMES and chosen_peers(()) == ()


def test_without_their_environment_one_line_says_how_to_make_it(missing, capsys):
    assert chosen_peers(None) == ()
    message = capsys.readouterr()
    assert message.out == "" and message.err.count("\n") == 1 and "make peers" in message.err


@pytest.mark.parametrize("words", ["all", "lerobot", "gym-pusht,torchcfm"])
def test_peers_that_are_asked_for_but_not_installed_are_refused(missing, tmp_path, words):
    with pytest.raises(ValueError, match="make peers"):
        main(["selection", f"peers={words}", f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_nobody_is_asked_for_when_none_take_part(missing):
    assert peer_names("none") == ()


def test_unknown_peers_are_refused_in_one_line(tmp_path):
    result = here("-m", "benchmarks", "step", "peers=lerobt", f"out={tmp_path / 'out'}")
    assert "unknown peer 'lerobt'; did you mean 'lerobot'?" in refused(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["step", "sampling", "env", "selection"])
def test_every_benchmark_knows_its_peers(tmp_path, name):
    with pytest.raises(ValueError, match="unknown peer 'lerobt'"):
        main([name, "peers=lerobt", f"out={tmp_path / 'out'}"])
