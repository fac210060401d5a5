"""The machinery of options: each is one dataclass field that knows its meaning, how it is read and how it is shown.

A `Section` is a frozen dataclass whose options are made by `option`.  Everything else is derived from those
fields: reading a file (`build`), checking values that were given in Python, the wording of every problem, and what
``wsgi-admission check`` and ``wsgi-admission options`` print.

A kind raises ValueError about the value alone, in words that can follow it ("must be 1 or more"); the section adds
where the value stands, what the option means and what was expected.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from wsgi_admission.errors import ConfigError

T = TypeVar("T")
S = TypeVar("S", bound="Section")


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[T]):
    """What the value of an option may be.

    :param expected: completes "Expected: ".
    :param read: makes the value from a text without spaces at its ends; raises ValueError.
    :param check: raises ValueError for a value that is not allowed, whatever its type.
    :param show: the text that reads back as the value.
    :param mask: replaces what nobody should see of such a text.
    :param empty: what an empty text means, where that is more than the empty value itself.
    """

    expected: str
    read: Callable[[str], T]
    check: Callable[[Any], None]
    show: Callable[[T], str] = str
    mask: Callable[[str], str] = str
    empty: str = ""

    def parse(self, text: str) -> T:
        """Return the value that a text stands for.

        :raises ValueError: when it stands for none, or for one that is not allowed.
        """
        value = self.read(text)
        self.check(value)
        return value


def optional(kind: Kind[T], empty: str) -> Kind[T | None]:
    """Return the kind that takes an empty text, None, too; ``empty`` says what that means."""

    def check(value: object) -> None:
        if value is not None:
            kind.check(value)

    return Kind(
        expected=kind.expected,
        read=lambda text: kind.read(text) if text else None,
        check=check,
        show=lambda value: "" if value is None else kind.show(value),
        empty=empty,
    )


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name and its default.

    :param meaning: what it is, in words that can follow its name and a colon.
    :param env: the environment variable that overrides the file, or an empty string.
    """

    meaning: str
    kind: Kind[Any]
    env: str = ""


def option(default: T, meaning: str, kind: Kind[T], *, env: str = "") -> T:
    """Return a dataclass field that is an option; see `Option` for the parameters."""
    # What is masked has no place in a log either.
    return field(default=default, repr=kind.mask is str, metadata={"option": Option(meaning, kind, env)})


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the configuration.  Constructing one with bad values raises ConfigError with all problems."""

    SECTION: ClassVar[str]

    def __post_init__(self) -> None:
        problems = [self.problem(name, reason) for name, reason in self._faults()] or list(self.conflicts())
        if problems:
            raise ConfigError(*problems)

    def _faults(self) -> Iterable[tuple[str, str]]:
        for name, about in options_of(type(self)).items():
            try:
                about.kind.check(getattr(self, name))
            except ValueError as error:
                yield name, str(error)

    def conflicts(self) -> Iterable[str]:
        """Return the problems of values that are allowed by themselves but not together."""
        return ()

    @property
    def title(self) -> str:
        """What stands between the brackets in the file."""
        return self.SECTION

    def text(self, name: str) -> str:
        """Return the value of an option as people may see it in a file."""
        kind = options_of(type(self))[name].kind
        value = getattr(self, name)
        try:
            return kind.mask(kind.show(value))
        except (TypeError, ValueError, AttributeError, ArithmeticError):
            return repr(value)  # given in Python, and of a type that the option does not take

    def problem(self, name: str, reason: str, text: str | None = None) -> str:
        """Word a problem of one option; ``text`` is the part of its value that is at fault, if not all of it."""
        about = options_of(type(self))[name]
        return wording(f"[{self.title}] {name}", name, about, self.text(name) if text is None else text, reason)


@dataclass(frozen=True, kw_only=True)
class NamedSection(Section):
    """A section of which there may be several: ``[route:video]``."""

    name: str = ""

    @property
    def title(self) -> str:
        """What stands between the brackets in the file."""
        return f"{self.SECTION}:{self.name}"

    def conflicts(self) -> Iterable[str]:
        """Return the problem of a name that cannot be used."""
        if not self.name:
            yield nameless(self.title, self.SECTION)
        elif self.name != self.name.strip() or not self.name.isprintable():
            yield f"[{self.title}]: the name must be printable, without spaces at its ends."


@dataclass(frozen=True)
class Built(Generic[S]):
    """What `build` made of the texts of one section.

    :param section: None when there are problems.
    :param origins: option -> ``file``, ``default`` or ``env NAME``.
    """

    section: S | None
    origins: Mapping[str, str]
    problems: tuple[str, ...]


def build(
    cls: type[S], title: str, texts: Mapping[str, str], environ: Mapping[str, str], /, *, source: str, **base: object
) -> Built[S]:
    """Make a section from the texts of its options and the environment, which overrides them.

    :param title: what stands between the brackets in the file.
    :param source: names the file.
    :param base: what is not in the texts: fields that are no options, and other defaults.
    """
    known = options_of(cls)
    where = f"{source} [{title}]"
    problems = [_unknown_option(where, name, known) for name in texts if name not in known]
    values, origins = dict(base), {}
    for name, about in known.items():
        origins[name] = "default"
        given = [("file", f"{where} {name}", texts[name])] if name in texts else []
        if about.env and environ.get(about.env, "").strip():
            given.append((f"env {about.env}", f"environment {about.env}", environ[about.env].strip()))
        # A bad value in the file is a problem even while the environment overrides it.
        for origin, place, text in given:
            try:
                values[name], origins[name] = about.kind.parse(text), origin
            except ValueError as error:
                problems.append(wording(place, name, about, about.kind.mask(text), str(error)))
    if problems:
        return Built(None, origins, tuple(problems))
    try:
        return Built(cls(**values), origins, ())
    except ConfigError as error:
        return Built(None, origins, tuple(f"{source} {problem}" for problem in error.problems))


def options_of(cls: type[Section]) -> dict[str, Option]:
    """Return name -> option, in the order in which they are declared."""
    return {f.name: f.metadata["option"] for f in dataclasses.fields(cls) if "option" in f.metadata}


def wording(place: str, name: str, about: Option, text: str, reason: str) -> str:
    """Word the problem of a value: where, which, what is wrong, what the option means, what was expected."""
    if " #" in text or "\t#" in text:
        reason += " ('#' begins a comment only at the start of a line; within a line it is ';')"
    text = text.replace("\n", " ")
    end = "" if reason.endswith("?") else "."
    return f"{place} = {text!r}: {reason}{end}\n  {name}: {about.meaning}. Expected: {about.kind.expected}."


def nameless(title: str, section: str) -> str:
    """Word the problem of a section that lacks its name."""
    return f"[{title}]: has no name. Expected: [{section}:NAME]."


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant."""
    return next(iter(difflib.get_close_matches(word.lower(), list(known), n=1)), None)


def _unknown_option(where: str, name: str, known: Iterable[str]) -> str:
    meant = closest(name, known)
    advice = f"; did you mean {meant!r}?" if meant else f". Expected one of {', '.join(known)}."
    return f"{where}: unknown option {name!r}{advice}"
