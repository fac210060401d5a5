"""Record a WSGI call, run it later, and record the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class Recording:
    """A request or a response in the form in which it is stored.

    :param head: JSON text: what is not the body .
    :param body: a binary file, open for reading at its beginning; whoever receives a recording closes it.
    :param length: the number of bytes in ``body``.
    """

    head: str
    body: BinaryIO
    length: int
