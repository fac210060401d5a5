"""The header of a SQLite file of ours, put in its place where there is none that SQLite would open, or write to.

It stands at the begin of the file (https://www.sqlite.org/fileformat.html, 1.3).  While the log is in use its newest
first page is the one that counts, and gets a header likewise (https://www.sqlite.org/walformat.html).
"""

from __future__ import annotations

import os
import struct
from array import array
from contextlib import closing
from pathlib import Path

from wsgi_admission.stores.beside import content, descriptor
from wsgi_admission.stores.opening import APPLICATION_ID, SCHEMA_VERSION, empty, mismatch

# The size of the pages of every database that we make, and what follows the header in one that has no tables.
_PAGE = 4096
_EMPTY = struct.pack(">BHHHB", 13, 0, 0, _PAGE, 0)
# Of the header: what is the same in all of ours, and where what follows the size, the free pages and the cookie is so.
_CONSTANT, _CONSTANT_TOO = slice(0, 24), slice(56, 72)
# Where our own numbers are: the version but for its last byte, and whose the file is; and where that byte is.
_VERSION, _LAST, _APPLICATION = slice(60, 63), 63, slice(68, 72)
# Where the version is that SQLite must know to write.
_WRITE_VERSION = 18
# Sizes in the log and its index.
_LOG_HEADER, _FRAME_HEADER, _INDEX_HEADER, _INDEX_BLOCK = 32, 24, 136, 32 << 10
# Where in the log's header the salts are that each frame of it repeats.
_LOG_SALTS = 16


def give(path: Path, *, anew: bool = False) -> None:
    """Put the header of a database of ours where there is none.

    :param anew: whether the page that it stands on is to be that of an empty database.
    """
    ours = _header()
    for opened, place, found in _first_pages(path):
        if anew or len(found) < _PAGE:
            os.pwrite(opened, (ours + _EMPTY).ljust(_PAGE, b"\0"), place)
        elif found[_CONSTANT] != ours[_CONSTANT]:
            hardly = found[_CONSTANT_TOO] == ours[_CONSTANT_TOO]
            os.pwrite(opened, ours[_CONSTANT] if hardly else ours, place)
        os.fsync(opened)


def refuse_other_version(path: Path) -> None:
    """Raise `StoreMismatch` if what is left of the header says that the database is one of another version of ours."""
    ours = _header()
    for _, _, found in _first_pages(path):
        same = [found[part] == ours[part] for part in (_VERSION, _APPLICATION)]
        if all(same) and found[_LAST : _LAST + 1] != ours[_LAST : _LAST + 1]:
            raise mismatch(path, int.from_bytes(found[_LAST - 3 : _LAST + 1], "big"))


def forbids_writing(path: Path) -> bool:
    """Whether SQLite does not write to a file of ours because a byte of its header is wrong.

    :raises OSError: when that cannot be told.
    """
    right = _header()[_CONSTANT]
    for _, _, found in _first_pages(path):
        wrong = [place for place, pair in enumerate(zip(found, right, strict=False)) if pair[0] != pair[1]]
        if wrong == [_WRITE_VERSION] and found[_WRITE_VERSION] > right[_WRITE_VERSION]:
            return True
    return False


def _first_pages(path: Path) -> list[tuple[int, int, bytes]]:
    """Return the descriptor, the place and the content of each first page that counts."""
    files = [(descriptor(file), place) for file, place in [(path, 0), *_first_page_in_log(path)]]
    return [(opened, place, os.pread(opened, _PAGE, place)) for opened, place in files]


def _first_page_in_log(path: Path) -> list[tuple[Path, int]]:
    """Return the log, and where in it the newest first page stands, if it has one for those who have it open."""
    try:
        index = content(Path(f"{path}-shm"))
    except FileNotFoundError:
        return []
    if len(index) < _INDEX_BLOCK:
        return []
    (frames,) = struct.unpack_from("=I", index, 16)
    pages = array("I", index[_INDEX_HEADER : _INDEX_BLOCK // 2])
    for block in range(_INDEX_BLOCK, len(index), _INDEX_BLOCK):
        pages.frombytes(index[block : block + _INDEX_BLOCK // 2])
    log = Path(f"{path}-wal")
    newest = [frame for frame, page in enumerate(pages[:frames]) if page == 1][-1:]
    places = [_LOG_HEADER + frame * (_FRAME_HEADER + _PAGE) + _FRAME_HEADER for frame in newest]
    return [(log, place) for place in places if _is_first_page(log, place)]


def _is_first_page(log: Path, place: int) -> bool:
    """Whether a frame of the log, as it is now, has the first page; an index may be left over from another log."""
    opened = descriptor(log)
    frame = os.pread(opened, _FRAME_HEADER, place - _FRAME_HEADER)
    return frame[:4] == b"\0\0\0\1" and frame[8:16] == os.pread(opened, 8, _LOG_SALTS)


def _header() -> bytes:
    """Return the first 100 bytes of a database of ours that has no free pages."""
    with closing(empty()) as ours:
        ((largest_root,),) = ours.execute("SELECT MAX(rootpage) FROM sqlite_master").fetchall()
        ((cookie,),) = ours.execute("PRAGMA schema_version").fetchall()
    # The version that the size is valid for (the last but one) is not the current one: the size is that of the file.
    return struct.pack(
        ">16sHBBBBBB12I20xII",
        *(b"SQLite format 3\0", _PAGE, 2, 2, 0, 64, 32, 32),
        *(1, 0, 0, 0, cookie, 4, 0, largest_root, 1, SCHEMA_VERSION, 1, APPLICATION_ID),
        *(0, 0),
    )
