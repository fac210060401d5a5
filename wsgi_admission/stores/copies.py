"""Copies of damaged databases, put aside for whoever wants to save what can be read."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from wsgi_admission.stores.beside import descriptor, is_emptied

#: What the copies' names have behind that of the database ...
ASIDE = ".damaged-"
#: ... and behind that, instead of the time, while the database could not be mended yet.
UNFINISHED = "unfinished"
#: How many copies are kept: a disk that goes on damaging the database would fill itself with them.
KEPT = 8


def aside(path: Path) -> list[str]:
    """Return the names of the copies of damaged databases that stand beside this one, oldest first."""
    name = f"{glob.escape(path.name)}{ASIDE}"
    return sorted(copy.name for end in ("*[0-9]", UNFINISHED) for copy in path.parent.glob(f"{name}{end}"))


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}{ASIDE}{UNFINISHED}")


def _copied(path: Path) -> list[tuple[Path, Path]]:
    """Return the files of the database that are there, each with its place in the copy."""
    copy, log = _unfinished(path), Path(f"{path}-wal")
    # SQLite makes an empty log as soon as the database is opened.
    pairs = [(log, Path(f"{copy}-wal"))] if log.exists() and not is_emptied(log) else []
    return [*pairs, (path, copy)]


def begin(path: Path) -> None:
    """Copy the database and its log, unless that was done and nothing has changed."""
    if _is_copied(path):
        return
    _remove(_unfinished(path))
    pairs = _copied(path)
    if shutil.disk_usage(path.parent).free < sum(source.stat().st_size for source, _ in pairs):
        raise OSError(errno.ENOSPC, "No space left for a copy of the damaged database")
    try:
        for source, target in pairs:
            _copy_file(source, target)
    except BaseException:
        _remove(_unfinished(path))
        raise


def _copy_file(source: Path, target: Path) -> None:
    with (
        os.fdopen(descriptor(source), "rb", closefd=False) as content,
        os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as kept,
    ):
        status = os.fstat(content.fileno())
        content.seek(0)
        shutil.copyfileobj(content, kept, 1 << 20)
        kept.flush()
        os.fsync(kept.fileno())
        os.utime(kept.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


def stamp(path: Path) -> None:
    """Say in the times of the copy that it is one of the database as it is now."""
    for source, target in _copied(path):
        with suppress(FileNotFoundError):
            status = source.stat()
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _is_copied(path: Path) -> bool:
    with suppress(FileNotFoundError):
        return all(source.stat().st_mtime_ns == target.stat().st_mtime_ns for source, target in _copied(path))
    return False


def is_begun(path: Path) -> bool:
    """Whether there is one that has not its name for good."""
    return _unfinished(path).exists()


def finish(path: Path) -> Path | None:
    """Give the copy its name for good; return it, None if there was nothing to copy."""
    if not is_begun(path):
        return None
    unfinished = _unfinished(path)
    finished = [copy for copy in aside(path) if copy != unfinished.name]
    for old in finished[KEPT - 1 :]:  # the first ones have what was there when the trouble began
        _remove(path.with_name(old))
        shutil.rmtree(path.with_name(f"{old}.bodies"), ignore_errors=True)
    name = f"{path.name}{ASIDE}{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    copy = path.with_name(next(name for name in names if name not in finished))
    with suppress(OSError):
        _kept_bodies(path).rmdir()  # there were none
    for end in (".bodies", "-wal", ""):
        with suppress(FileNotFoundError):
            Path(f"{unfinished}{end}").rename(f"{copy}{end}")
    return copy


def put_bodies_aside(path: Path) -> None:
    """Move the large bodies to the copy, before the line begins anew: what is there afterwards is the new line's."""
    bodies, kept = _bodies(path), _kept_bodies(path)
    try:
        bodies.rename(kept)
    except FileNotFoundError:
        kept.mkdir(mode=0o700, exist_ok=True)
    except OSError:  # some are there, of an attempt that did not come to its end
        for file in bodies.iterdir():
            file.rename(kept / file.name)


def take_bodies_back(path: Path) -> None:
    """Undo that, if nobody has written others meanwhile: then the next attempt moves them too."""
    with suppress(OSError):
        _kept_bodies(path).rename(_bodies(path))


def has_bodies(path: Path) -> bool:
    """Whether they were moved, if there were any: the line begins anew."""
    return _kept_bodies(path).is_dir()


def _bodies(path: Path) -> Path:
    return path.with_name(f"{path.name}.bodies")


def _kept_bodies(path: Path) -> Path:
    return Path(f"{_unfinished(path)}.bodies")


def _remove(copy: Path) -> None:
    for end in ("", "-wal"):
        Path(f"{copy}{end}").unlink(missing_ok=True)
