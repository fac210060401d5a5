"""What stands for a store that cannot be opened, so that whatever needs none of it goes on."""

from __future__ import annotations

from typing import NoReturn, cast

from wsgi_admission.errors import StoreUnavailable
from wsgi_admission.stores import Store


class _Absent:
    def __getattr__(self, _name: str) -> object:
        return _refuse


def _refuse(*_arguments: object, **_keys: object) -> NoReturn:
    raise StoreUnavailable("The store could not be opened.")


def absent() -> Store:
    """Return a store each call of which raises `StoreUnavailable`."""
    return cast("Store", _Absent())
