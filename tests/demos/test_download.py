"""Downloads from a server on this machine: resumed, refused, verified."""

import os
import socketserver
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from immiscible_policy.demos import StoreError, content_hash, open_store, write_store
from immiscible_policy.demos import download as module
from immiscible_policy.demos.download import Archive
from immiscible_policy.tasks.pusht import PushT
from tests.demos.commands import mistake
from tests.demos.stores import small_arrays

HUMAN_HASH, STORE_NAME = PushT.archive.content_hash, PushT.archive.name
PART = f".{STORE_NAME}.zip.part"


def download(url, out, expected):
    return module.download(Archive(url, STORE_NAME, expected, ""), out)


class Server(ThreadingHTTPServer):
    """Serves `content`, in part if asked; breaks off after `limit` bytes of each answer.

    Attributes:
        ranges: Whether it knows ranges.
        tells_size: Whether it tells the archive's size when asked for a part beyond its end.
        requests: The Range header of each request.
        shift: How far a partial answer starts from where it should.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.shift = b"", True, 0
        self.tells_size = True
        self.limit: int | None = None
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        """Where the archive is."""
        return f"http://127.0.0.1:{self.server_port}/pusht.zip"


class Handler(BaseHTTPRequestHandler):
    """Answers GET."""

    server: Server

    def do_GET(self):
        """Send what was asked for, or as much of it as the server is told to."""
        wanted, content = self.headers["Range"], self.server.content
        self.server.requests.append(wanted)
        if self.path != "/pusht.zip":
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            if self.server.tells_size:
                self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            begin = start + self.server.shift
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:][: self.server.limit])

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def source(tmp_path):
    """A store, which is not the human one."""
    return write_store(tmp_path / "source" / "any name.zarr", *small_arrays(image=4))


@pytest.fixture
def packed(source):
    """That store as the published archive is packed: inside a folder, among other things."""
    return pack(source, {"pusht/": b"", "pusht/readme.txt": b"hello", "__MACOSX/pusht/x.zarr/._a": b""})


def pack(store: Path, extra: dict[str, bytes]) -> bytes:
    file = store.parent / "packed.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in extra.items():
            archive.writestr(name, content)
        for path in sorted(store.rglob("*")):
            if path.is_file():
                archive.write(path, f"pusht/{store.name}/{path.relative_to(store)}")
    return file.read_bytes()


def test_fetches_verifies_and_places(server, source, packed, tmp_path):
    server.content = packed
    target = download(server.url, tmp_path / "new" / "data", content_hash(source, images=True))
    assert target == tmp_path / "new" / "data" / STORE_NAME
    assert content_hash(target, images=True) == content_hash(source, images=True)
    assert os.listdir(target.parent) == [STORE_NAME] and server.requests == [None]
    assert open_store(target).n_episodes == 3


def test_a_connection_that_breaks_is_continued_at_once(server, source, packed, tmp_path):
    server.content, server.limit = packed, len(packed) // 3
    target = download(server.url, tmp_path / "out", content_hash(source, images=True))
    third = len(packed) // 3
    assert server.requests == [None, f"bytes={third}-", f"bytes={2 * third}-", f"bytes={3 * third}-"]
    assert os.listdir(target.parent) == [STORE_NAME]


def test_a_download_that_stopped_is_continued_by_the_next_command(server, source, packed, tmp_path):
    out, expected = tmp_path / "out", content_hash(source, images=True)
    out.mkdir()
    (out / PART).write_bytes(packed[:1000])
    server.content, server.limit = packed, 0
    with pytest.raises(OSError, match=f"broke at 1,000 of {len(packed):,} bytes; run it again to continue"):
        download(server.url, out, expected)
    assert (out / PART).read_bytes() == packed[:1000] and os.listdir(out) == [PART]
    server.limit = None
    assert content_hash(download(server.url, out, expected), images=True) == expected
    assert set(server.requests) == {"bytes=1000-"}


def test_a_server_without_ranges_begins_again(server, source, packed, tmp_path):
    out, expected = tmp_path / "out", content_hash(source, images=True)
    out.mkdir()
    (out / PART).write_bytes(b"something else entirely")
    server.content, server.ranges = packed, False
    assert content_hash(download(server.url, out, expected), images=True) == expected


@pytest.mark.parametrize("tells_size", [True, False])
def test_a_complete_archive_is_not_fetched_twice(server, source, packed, tmp_path, tells_size):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PART).write_bytes(packed)
    server.content, server.tells_size = packed, tells_size
    download(server.url, tmp_path / "out", content_hash(source, images=True))
    assert server.requests == [f"bytes={len(packed)}-"]
    assert os.listdir(tmp_path / "out") == [STORE_NAME]


def refused(server, tmp_path, expected=HUMAN_HASH) -> str:
    with pytest.raises(StoreError) as caught:
        download(server.url, tmp_path / "out", expected)
    assert not (tmp_path / "out").exists() and not (tmp_path / "evil").exists()
    return str(caught.value)


def test_other_content_is_refused(server, source, packed, tmp_path):
    server.content = packed
    line = refused(server, tmp_path)
    assert f"content hash {content_hash(source, images=True)}, expected {HUMAN_HASH}" in line
    assert line.endswith("; the archive was discarded")


def test_one_changed_pixel_is_refused(server, source, tmp_path):
    arrays, ends = small_arrays(image=4)
    arrays["img"][7, 1, 1, 1] = (arrays["img"][7, 1, 1, 1] + 1) % 256
    changed = write_store(tmp_path / "other" / "a.zarr", arrays, ends)
    assert content_hash(changed) == content_hash(source)
    server.content = pack(changed, {})
    assert "not the expected demonstrations" in refused(server, tmp_path, content_hash(source, images=True))


def test_a_damaged_archive_is_refused(server, source, packed, tmp_path):
    expected = content_hash(source, images=True)
    for position in np.linspace(50, len(packed) - 50, 20).astype(int):
        server.content = packed[:position] + bytes([packed[position] ^ 0xFF]) + packed[position + 1 :]
        try:
            download(server.url, tmp_path / "out", expected)
        except StoreError:
            assert not (tmp_path / "out").exists()
        else:  # a byte that says nothing about the content, a date for instance
            assert content_hash(tmp_path / "out" / STORE_NAME, images=True) == expected
            os.rename(tmp_path / "out", tmp_path / f"same {position}")
    server.content = packed[: len(packed) // 2]
    assert "not a zip file" in refused(server, tmp_path, expected)


def test_a_truncated_store_is_refused(server, source, tmp_path):
    expected = content_hash(source, images=True)
    (source / "data/action/0.0").unlink()
    server.content = pack(source, {})
    assert "chunk file data/action/0.0 (steps 0 to 50) is missing" in refused(server, tmp_path, expected)


def link() -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("pusht/link")
    member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return member


UNSAFE = {
    "parent": ("../evil", "'../evil', which would land outside"),
    "deep parent": ("pusht/../../../evil", "which would land outside"),
    "absolute": ("/tmp/evil", "which would land outside"),
    "backslash": ("..\\evil", "which would land outside"),
    "drive": ("C:/evil", "which would land outside"),
    "link": (link(), "'pusht/link', which is a link or a device"),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_archives_are_refused(server, source, tmp_path, name):
    member, says = UNSAFE[name]
    file = tmp_path / "unsafe.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(member, "../../evil")
    server.content = file.read_bytes()
    assert says in refused(server, tmp_path)


def test_archives_too_large_are_refused(server, packed, tmp_path, monkeypatch):
    server.content = packed
    monkeypatch.setattr(module, "MAX_FILES", 5)
    assert "the demonstrations have fewer than 5 files" in refused(server, tmp_path)
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    assert "offers more than 1,000 bytes" in refused(server, tmp_path)


def test_archives_without_one_store_are_refused(server, source, tmp_path):
    server.content = pack(source, {"second.zarr/.zgroup": b"{}"})
    assert "holds 2 directories named *.zarr; one is expected" in refused(server, tmp_path)


def test_a_part_that_does_not_fit_is_discarded(server, source, packed, tmp_path):
    (tmp_path / "out").mkdir()
    server.content, part = packed, tmp_path / "out" / PART
    part.write_bytes(packed + b"too much")
    with pytest.raises(StoreError, match="has no more than"):
        download(server.url, tmp_path / "out", content_hash(source, images=True))
    server.tells_size = False
    part.write_bytes(bytes(len(packed)))
    with pytest.raises(StoreError, match="has no more than"):
        download(server.url, tmp_path / "out", content_hash(source, images=True))
    part.write_bytes(packed[:10])
    server.shift = 5
    with pytest.raises(StoreError, match="the server sent another part"):
        download(server.url, tmp_path / "out", content_hash(source, images=True))
    assert not part.exists()


def test_mistakes_on_the_command_line(server, packed, tmp_path):
    server.content = packed
    out = tmp_path / "new" / "out"
    for url in ("pusht.zip", "file:///etc/passwd", "http://"):
        line = mistake("download", f"out={out}", f"url={url}")
        assert line == f"error: url={url}: should begin with http:// or https://"
    line = mistake("download", f"out={out}", f"url={server.url}2")
    assert line == f"error: {server.url}2: the server answered 404 Not Found"
    line = mistake("download", f"out={out}", "url=http://127.0.0.1:1/pusht.zip")
    assert "cannot be reached (" in line
    assert "not the expected" in mistake("download", f"out={out}", f"url={server.url}")
    assert not out.parent.exists()
    (out / STORE_NAME).mkdir(parents=True)
    assert "exists already" in mistake("download", f"out={out}", f"url={server.url}")
    assert os.listdir(out) == [STORE_NAME] and not os.listdir(out / STORE_NAME)


class Stranger(socketserver.StreamRequestHandler):
    """Answers like a server of something else."""

    def handle(self):
        """Read the request, then greet."""
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


def test_a_url_that_cannot_be_fetched_is_one_line(tmp_path):
    out = tmp_path / "new" / "out"
    for url in (
        "http://localhost:9/a b.zip",
        "http://localhost:port/a.zip",
        "http://localhost:99999999999999999999/a.zip",
    ):
        assert mistake("download", f"out={out}", f"url={url}").startswith(f"error: {url}: cannot be fetched (")
    with socketserver.TCPServer(("127.0.0.1", 0), Stranger) as stranger:
        thread = threading.Thread(target=stranger.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{stranger.server_address[1]}/a.zip"
        line = mistake("download", f"out={out}", f"url={url}")
        thread.join()
    assert line == f"error: {url}: cannot be fetched (BadStatusLine: SSH-2.0-OpenSSH_9.6)"
    assert not out.parent.exists()


@pytest.mark.slow
def test_the_constant_is_the_hash_of_the_human_demonstrations(human_store):
    assert content_hash(human_store, images=True) == HUMAN_HASH
