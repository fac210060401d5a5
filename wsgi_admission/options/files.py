"""Options that name files, and the looks of our pages.  Paths are relative to the working directory."""

from __future__ import annotations

from pathlib import Path

import jinja2

from wsgi_admission.languages import with_texts
from wsgi_admission.options import Kind
from wsgi_admission.options.texts import matching, string


def template() -> Kind[str]:
    """Return the kind of the path of a jinja2 template, or an empty text."""

    def check(value: str) -> None:
        if not value:
            return
        try:
            jinja2.Environment(autoescape=True).parse(Path(value).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot be read ({getattr(error, 'strerror', '') or error})") from error
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"line {error.lineno}: {error.message}") from error

    return string("the path of a jinja2 template, relative to the working directory", check)


def texts() -> Kind[str]:
    """Return the kind of a folder with texts of our pages, or an empty text."""

    def check(value: str) -> None:
        if value and not Path(value).is_dir():
            raise ValueError("is no folder")
        with_texts(value)

    return string("a folder with files such as fr.json: English text -> the same in that language", check)


def colour() -> Kind[str]:
    """Return the kind of a colour."""
    return matching(r"#[0-9A-Fa-f]{6}", "a colour such as #2f6f4f", "is not '#' and six hexadecimal digits")


def site_path() -> Kind[str]:
    """Return the kind of an address on the same host, or an empty text."""
    return matching(
        r"(?:/(?!/)[!#-&(-;=?-\[\]^_a-z|~-]*)?",
        "a path on this host, such as /static/logo.svg",
        "must begin with one '/': our pages load nothing from elsewhere",
    )
