r"""What the site shows from outside docs/: the README as its first page, and every file of the project that is linked.

A link from a page to a file of the repository (`../benchmarks/results/step.json`) is followed: the file is copied into
the site, and a Markdown file becomes a page of its own. A link to a directory becomes a page that lists its files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
SHIM, OURS = "https://unpkg.com/iframe-worker/shim", DOCS / "_site/worker.js"
"""What the theme loads from elsewhere for search in a site opened as files, and what takes its place."""
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README and whatever the pages link to, and what those link to in turn."""
    waiting = [README, *(Path(file.abs_src_path) for file in files.documentation_pages())]
    done: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        if files.get_file_from_path(place(path)) is None:
            files.append(site_file(path, config))
        if path.suffix == ".md":
            waiting.extend(linked(path))
        elif path.is_dir():
            waiting.extend(below(path))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    r"""Rewrite links to files of the repository into links within the site, and `\|` in tables into `|`.

    GitHub wants a bar within code escaped in a table; this Markdown shows the backslash.
    """
    source = Path(page.file.abs_src_path or DOCS / page.file.src_uri)

    def rewritten(match: re.Match[str]) -> str:
        target = resolved(source, match[2])
        if target is None:
            return match[0]
        return match[1] + os.path.relpath(place(target), Path(page.file.src_uri).parent) + match[3]

    return re.sub(r"^\|.*", lambda row: row[0].replace(r"\|", "|"), LINK.sub(rewritten, markdown), flags=re.M)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Load our script where the theme would load one from elsewhere."""
    return output.replace(SHIM, os.path.relpath(place(OURS), Path(page.file.dest_uri).parent))


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """Load our script in the theme's own pages too, such as 404.html."""
    return output_content.replace(SHIM, place(OURS))


def linked(path: Path) -> list[Path]:
    """What the links of a Markdown file lead to in the repository."""
    targets = (resolved(path, match[2]) for match in LINK.finditer(path.read_text()))
    return [target for target in targets if target is not None]


def resolved(source: Path, link: str) -> Path | None:
    """The path that a link of the file `source` leads to, None where it leads out of the repository."""
    target = Path(os.path.normpath(source.parent / link))
    return target if ROOT in target.parents and target.exists() else None


def place(path: Path) -> str:
    """The name of a file or directory of the repository within the site's sources."""
    if path == README:
        return "index.md"
    if DOCS in path.parents:
        return path.relative_to(DOCS).as_posix()
    name = f"files/{path.relative_to(ROOT).as_posix()}"
    return f"{name}/index.md" if path.is_dir() else re.sub("README.md$", "index.md", name)


def site_file(path: Path, config: MkDocsConfig) -> File:
    """A file of the repository as one of the site."""
    if path.is_dir():
        return File.generated(config, place(path), content=listing(path))
    return File.generated(config, place(path), abs_src_path=str(path))


def below(directory: Path) -> list[Path]:
    """The files below a directory."""
    return sorted(path for path in directory.rglob("*") if path.is_file())


def listing(directory: Path) -> str:
    """A page with a link to every file below a directory."""
    names = [path.relative_to(directory).as_posix() for path in below(directory)]
    rows = "\n".join(f"- [{name}]({name})" for name in names)
    return f"# {directory.relative_to(ROOT).as_posix()}\n\n{rows}\n"
