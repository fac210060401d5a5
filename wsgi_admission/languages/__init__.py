"""The languages of our pages: what stands in them, and which one a client reads.

The texts are in English where they are used; ``de.json`` and the like in this folder give the same in another language,
by the English text.  Parts such as ``{number}`` are filled in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

_TAG = re.compile(r"[a-z]{2,3}(?:-[a-z0-9]{2,8})*")
_QUALITY = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")
_PART = re.compile(r"\{\w*\}")


@dataclass(frozen=True)
class Language:
    """One language.

    :param tag: names it (BCP 47), in lower case.
    :param texts: English text -> the same in this language.
    """

    tag: str = "en"
    texts: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, text: str, **parts: object) -> str:
        """Return an English text in this language, with its parts filled in; as it is where it is not known."""
        text = self.texts.get(text, text)
        return _PART.sub(lambda found: str(parts.get(found[0][1:-1], found[0])), text) if parts else text

    def of(self, text: str) -> str:
        """Return the tag of the language in which this text is shown."""
        return self.tag if text in self.texts else "en"


ENGLISH = Language()


def preferred(accept_language: str, known: Mapping[str, Language]) -> Language:
    """Return the language that a client likes best, by its Accept-Language (RFC 9110, 12.5.4); else English.

    A client that wants ``de-AT`` gets ``de``.
    """
    best, most = known["en"], 0.0
    for wanted, quality in qualities(accept_language):
        parts = wanted.split("-")
        tags = ("-".join(parts[:length]) for length in range(len(parts), 0, -1))
        found = next((known[tag] for tag in tags if tag in known), None)
        if found is not None and quality > most:
            best, most = found, quality
    return best


def qualities(header: str) -> list[tuple[str, float]]:
    """Return the values of a header such as Accept with their quality, 0 to 1, in lower case and in order.

    Parameters but ``q`` are left out; what has a quality that is none is not wanted.
    """
    found = []
    for part in header[:1000].split(","):
        value, *parameters = (piece.strip() for piece in part.lower().split(";"))
        given = next((text[2:].strip() for text in parameters if text.startswith("q=")), "1")
        if value:
            found.append((value, float(given) if _QUALITY.fullmatch(given) else 0.0))
    return found


@cache
def shipped() -> Mapping[str, Language]:
    """Return the languages of this package by their tags."""
    found = {"en": ENGLISH}
    for file in files(__name__).iterdir():
        if file.name.endswith(".json"):
            tag = file.name.removesuffix(".json")
            found[tag] = Language(tag, MappingProxyType(json.loads(file.read_text("utf-8"))))
    return MappingProxyType(found)


def with_texts(folder: str) -> Mapping[str, Language]:
    """Return the shipped languages with the texts of a folder before them, which may add languages.

    :param folder: has files such as ``fr.json``; an empty string stands for none.
    :raises ValueError: when a file is not what it should be.
    """
    languages = dict(shipped())
    for file in sorted(Path(folder).glob("*.json")) if folder else ():
        tag = file.stem.lower()
        if not _TAG.fullmatch(tag):
            raise ValueError(f"has a file {file.name!r}, which is not named for a language, such as fr.json")
        own = _read(file)
        languages[tag] = Language(tag, MappingProxyType({**languages.get(tag, ENGLISH).texts, **own}))
    return MappingProxyType(languages)


def _read(file: Path) -> dict[str, str]:
    try:
        texts = json.loads(file.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from error
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{file.name} is no JSON object of texts")
    known = shipped()["de"].texts
    for english, text in texts.items():
        if english not in known:
            raise ValueError(f"{file.name}: there is no text {english!r}")
        if not set(_PART.findall(text)) <= set(_PART.findall(english)):
            raise ValueError(f"{file.name}: {text!r} has parts that {english!r} has not")
    return texts
