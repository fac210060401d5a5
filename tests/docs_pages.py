"""The pages of the documentation and their code blocks, for the tests that run them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import docutils.core
from docutils import nodes

from tests.support import ROOT

PAGES = (ROOT / "README.rst", ROOT / "CHANGELOG.rst", *sorted((ROOT / "docs").glob("*.rst")))
#: What takes the part of the reader's own app.
YOURSITE = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"a picture"]
"""


@dataclass(frozen=True)
class Block:
    """A code block.

    :param language: what stands behind ``code-block::``, or an empty string for a literal block.
    :param section: the text of the sections around it.
    """

    page: Path
    language: str
    text: str
    section: str

    @property
    def file(self) -> str:
        """The file's name that the first line gives in a comment, or an empty string."""
        found = re.match(r"(?:#|;) (\S+\.(?:py|ini))$", self.text.partition("\n")[0])
        return found[1] if found else ""

    @property
    def name(self) -> str:
        """Names the block in the output of the tests."""
        line = (self.text.splitlines() or [""])[0]
        return f"{self.page.name}:{self.language}:{re.sub(r'[^a-z0-9.]+', '-', line.lower())[:40]}"


@cache
def tree(page: Path) -> tuple[nodes.document, str]:
    """Return the page as docutils reads it, and what it complained of."""
    complaints = io.StringIO()
    settings = {"report_level": 1, "halt_level": 5, "warning_stream": complaints, "syntax_highlight": "none"}
    document = docutils.core.publish_doctree(
        page.read_text("utf-8"), str(page), settings_overrides={**settings, "input_encoding": "unicode"}
    )
    return document, complaints.getvalue()


def blocks(*languages: str, pages: tuple[Path, ...] = PAGES) -> list[Block]:
    """Return the code blocks in these languages; without one, all."""
    return [block for page in pages for block in _blocks(page) if not languages or block.language in languages]


def _blocks(page: Path) -> Iterator[Block]:
    for node in tree(page)[0].findall(nodes.literal_block):
        language = " ".join(name for name in node["classes"] if name != "code")
        parent = node.parent
        yield Block(page, language, node.astext(), parent.astext())


def literals(page: Path) -> set[str]:
    """Return everything that stands between double backquotes."""
    return {node.astext() for node in tree(page)[0].findall(nodes.literal)}


def write_files(folder: Path, page: Path) -> None:
    """Put the files into the folder that a reader of the page has."""
    (folder / "yoursite.py").write_text(YOURSITE)
    (folder / "conf").mkdir()
    (folder / "conf" / "admission.ini").write_bytes((ROOT / "conf" / "admission.ini").read_bytes())
    # What a page does not show itself stands in the README.
    for block in blocks("ini", "python", pages=(ROOT / "README.rst", page)):
        if block.file:
            (folder / block.file).write_text(block.text, "utf-8")
