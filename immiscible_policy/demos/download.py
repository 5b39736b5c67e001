"""Fetch published demonstrations: resumable, safely unpacked, verified by their values."""

from __future__ import annotations

import re
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TransferSpeedColumn

from immiscible_policy.cli import CommandError, require_new
from immiscible_policy.demos.chunks import StoreError
from immiscible_policy.demos.store import content_hash

MAX_FILES, MAX_BYTES = 10_000, 2**30
"""More than an archive of demonstrations can hold unpacked (published ones have 819 files, 32 MB)."""
TIMEOUT, BLOCK = 30.0, 2**20
"""Seconds without an answer, and bytes read at a time."""


@dataclass(frozen=True)
class Archive:
    """Published demonstrations: a zip archive that holds one zarr store, called `name` here."""

    url: str  # http or https address
    name: str
    content_hash: str  # of the store, images included, however it is packed
    about: str  # what it holds, with its source and licence


def download(archive: Archive, out: Path) -> Path:
    """Fetch, unpack and verify a store below `out`; it appears whole and verified, or not at all.

    pooch cannot continue a partial file, so the transfer is done here. What is verified is the arrays'
    content, which repacking an archive does not change.

    Raises:
        CommandError: If the address is not one of http, or the store exists already.
        StoreError: If the archive is unsafe, damaged, or holds something else; it is discarded.
        OSError: If the server cannot be reached, or the connection breaks; what arrived is kept.
    """
    parts, target = urlsplit(archive.url), out / archive.name
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise CommandError(f"url={archive.url}: should begin with http:// or https://")
    require_new("out", target)
    made = [directory for directory in (out, *out.parents) if not directory.exists()]
    out.mkdir(parents=True, exist_ok=True)
    file = out / f".{archive.name}.zip.part"
    try:
        fetch(archive.url, file)
        with tempfile.TemporaryDirectory(dir=out, prefix=f".{archive.name}.") as scratch:
            store = unpack(file, Path(scratch))
            content = content_hash(store, images=True)
            if content != archive.content_hash:
                expected = f"content hash {content}, expected {archive.content_hash}"
                raise StoreError(f"not the expected demonstrations: {expected}")
            store.rename(target)
        file.unlink()
    except (StoreError, zipfile.BadZipFile) as error:
        file.unlink(missing_ok=True)
        raise StoreError(f"{archive.url}: {error}; the archive was discarded") from error
    finally:
        for directory in made:
            if not any(directory.iterdir()):
                directory.rmdir()
    return target


def fetch(url: str, archive: Path) -> None:
    """Download to `archive`, continuing what it holds already.

    A connection that breaks is followed by another as long as each brings something new.

    Raises:
        OSError: If a connection brings nothing new; `archive` keeps what arrived.
        StoreError: If what arrived before does not fit what the server offers.
    """
    columns, console = (BarColumn(), DownloadColumn(), TransferSpeedColumn()), Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as progress:
        bar, before = progress.add_task("download"), -1
        while (total := _transfer(url, archive, progress, bar)) != (have := archive.stat().st_size):
            if have <= before:
                raise OSError(f"{url}: the connection broke at {have:,} of {total:,} bytes; run it again to continue")
            before = have


def unpack(archive: Path, into: Path) -> Path:
    """Unpack an archive that holds one zarr store, after looking at every name in it, and return the store's path.

    Raises:
        StoreError: If a member would land outside `into`, is a link or encrypted, if there are too many of
            them, or not exactly one store.
        zipfile.BadZipFile: If the archive is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            for member in members:
                _refuse_unsafe(member)
            size = sum(member.file_size for member in members)
            if len(members) > MAX_FILES or size > MAX_BYTES:
                raise StoreError(
                    f"holds {len(members):,} files of {size:,} bytes; the demonstrations have fewer than "
                    f"{MAX_FILES:,} files of {MAX_BYTES:,} bytes"
                )
            file.extractall(into)
    except (zlib.error, EOFError, NotImplementedError) as error:
        raise zipfile.BadZipFile(str(error)) from error
    stores = sorted(path for path in into.rglob("*.zarr") if path.is_dir() and "__MACOSX" not in path.parts)
    if len(stores) != 1:
        raise StoreError(f"holds {len(stores)} directories named *.zarr; one is expected")
    return stores[0]


def _transfer(url: str, archive: Path, progress: Progress, bar: TaskID) -> int:
    """Make one connection, append what it brings, and return the size that the whole archive has."""
    have = archive.stat().st_size if archive.exists() else 0
    with _connect(url, have) as response:
        content_range = response.headers.get("Content-Range", "")
        if isinstance(response, HTTPError):  # nothing is left to send: what is kept should be the whole archive
            if not (content_range == f"bytes */{have}" if content_range else zipfile.is_zipfile(archive)):
                raise StoreError(f"the archive there has no more than the {have:,} bytes kept")
            return have
        start, total = 0, response.length  # a server that knows no ranges begins again
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range)
            if match is None or int(match[1]) != have:
                raise StoreError(f"asked for bytes from {have:,} on, the server sent another part")
            start, total = have, int(match[2])
        progress.update(bar, total=total)
        with archive.open("ab" if start else "wb") as file:
            for block in _blocks(response):
                file.write(block)
                progress.update(bar, completed=file.tell())
                if file.tell() > MAX_BYTES:
                    raise StoreError(f"offers more than {MAX_BYTES:,} bytes; the demonstrations take less")
            return file.tell() if total is None else total


def _connect(url: str, have: int) -> HTTPResponse | HTTPError:
    """Ask for the archive from byte `have` on; an HTTPError says that it has no such byte."""
    try:
        return urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return error
        raise OSError(f"{url}: the server answered {error.code} {error.reason}") from error
    except URLError as error:
        raise OSError(f"{url}: cannot be reached ({error.reason})") from error
    except (HTTPException, OverflowError) as error:  # no address (OverflowError: its port), or no answer of HTTP
        raise OSError(f"{url}: cannot be fetched ({type(error).__name__}: {str(error).strip()})") from error


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    """Read an answer until it ends or its connection breaks; `fetch` tells the two apart by the size."""
    with suppress(HTTPException, OSError):
        while block := response.read1(BLOCK):
            yield block


def _refuse_unsafe(member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename:
        raise StoreError(f"holds '{member.filename}', which would land outside the target directory")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise StoreError(f"holds '{member.filename}', which is a link or a device, not a file")
    if member.header_offset < 0:
        raise zipfile.BadZipFile(f"'{member.filename}' lies before the archive's first byte")
    if member.flag_bits & 1:
        raise StoreError(f"holds '{member.filename}', which is encrypted")
