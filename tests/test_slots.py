from __future__ import annotations

import ctypes
import errno
import fcntl
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import pytest

from wsgi_admission.errors import StoreError, StoreUnavailable
from wsgi_admission.slots import HostSlots, LocalSlots, Slot, Slots

LIMITS = {"video": 2}
SPAWN = multiprocessing.get_context("spawn")
DEADLINE = 30.0


def serve(path: Path, limit: int, commands: Connection) -> None:
    """Obey ("take", route), ("release", index), ("in_use",), ("full", route) and ("turn",) until the pipe closes."""
    slots = HostSlots(path, limit, LIMITS)
    held: list[Slot | None] = []
    while True:
        try:
            match commands.recv():
                case ("take", route):
                    held.append(slots.take(route))
                    commands.send(held[-1] is not None)
                case ("release", index):
                    commands.send(held[index].release())
                case ("in_use",):
                    commands.send(slots.in_use())
                case ("full", route):
                    commands.send(slots.full(route))
                case ("turn",):
                    with slots.turn():
                        commands.send("my turn")
                        commands.send(commands.recv())
        except EOFError:
            return


class Other:
    """Another process with slots on the same file."""

    def __init__(self, path: Path, limit: int = 5) -> None:
        self.pipe, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(path, limit, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, *command: object) -> Any:
        self.pipe.send(command)
        assert self.pipe.poll(DEADLINE), "the other process gave no answer"
        return self.pipe.recv()

    def end(self) -> None:
        self.pipe.close()
        self.process.join(DEADLINE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the file of slots is to be."""
    return tmp_path / "var" / "main.slots"


@pytest.fixture
def other(path: Path) -> Iterator[Other]:
    """Run another process on the file."""
    process = Other(path)
    yield process
    process.end()


@pytest.fixture(params=["local", "host"])
def make(request: pytest.FixtureRequest, path: Path) -> Callable[..., Slots]:
    """Return what makes slots of one kind: (limit, route limits) -> Slots."""
    if request.param == "local":
        return LocalSlots
    return lambda limit, limits: HostSlots(path, limit, limits)


def taken(slot: Slot | None) -> Slot:
    """Return the slot, which must be one."""
    assert slot is not None
    return slot


def test_slots_run_out_and_come_back(make: Callable[..., Slots]) -> None:
    """Catches: one slot too many or too few, or one that is lost when it is given back."""
    slots = make(3, {})
    held = [taken(slots.take("image")) for _ in range(3)]
    assert slots.in_use() == 3
    assert slots.take("image") is None
    assert slots.take(None) is None
    held[1].release()
    assert slots.in_use() == 2
    assert slots.take(None) is not None
    assert slots.take(None) is None


def test_a_slot_is_given_back_once(make: Callable[..., Slots]) -> None:
    """Catches: a second release that frees the slot of whoever has it by then."""
    slots = make(1, {"video": 1})
    first = taken(slots.take("video"))
    first.release()
    second = slots.take("video")
    first.release()
    assert second is not None
    assert slots.in_use() == 1
    assert slots.full("video")
    assert slots.take(None) is None


def test_a_route_stays_within_its_own_limit(make: Callable[..., Slots]) -> None:
    """Catches: a route that takes all slots of the host; a failed take that keeps the host's slot."""
    slots = make(5, LIMITS)
    first = taken(slots.take("video"))
    assert not slots.full("video")
    assert slots.take("video") is not None
    assert slots.full("video")
    assert slots.take("video") is None
    assert slots.in_use() == 2
    assert not slots.full("image")
    first.release()
    assert not slots.full("video")
    assert slots.take("video") is not None


def test_a_full_host_leaves_the_route_its_slots(make: Callable[..., Slots]) -> None:
    """Catches: the route's slot kept when the host has none."""
    slots = make(1, LIMITS)
    slots.take("image")
    assert slots.take("video") is None
    assert not slots.full("video")


def test_a_slot_for_no_route_yet_is_allowed_one_while_that_has_room(make: Callable[..., Slots]) -> None:
    """Catches: a replay that starts a route beyond its limit; slots of a route held while another runs."""
    slots = make(5, {"video": 1})
    first, second = taken(slots.take(None)), taken(slots.take(None))
    assert not slots.full("video")
    assert slots.allow(first, "video")
    assert slots.full("video")
    assert not slots.allow(second, "video")
    assert slots.allow(second, "image")
    assert slots.in_use() == 2
    first.release()
    assert not slots.full("video")
    assert slots.in_use() == 1


@pytest.mark.parametrize(
    ("limit", "limits", "what"), [(0, {}, "the limit is 0"), (5, {"video": 0}, "the limit of route 'video' is 0")]
)
def test_a_limit_without_slots_is_refused(
    make: Callable[..., Slots], limit: int, limits: dict[str, int], what: str
) -> None:
    """Catches: a line that never moves."""
    with pytest.raises(ValueError, match=f"{what}: expected 1 to"):
        make(limit, limits)


def test_a_slot_may_be_released_by_another_thread(make: Callable[..., Slots]) -> None:
    """Catches: locks tied to the thread that took them."""
    slots = make(1, {})
    thread = threading.Thread(target=taken(slots.take("image")).release)
    thread.start()
    thread.join(DEADLINE)
    assert slots.in_use() == 0


def test_a_slot_may_be_released_while_the_same_thread_takes_one(make: Callable[..., Slots]) -> None:
    """Catches: a deadlock when the garbage collector closes an abandoned response in the middle of a take."""
    slots = make(2, {})
    slot = taken(slots.take("image"))
    with slots._ledger().lock:  # stands for the moment at which the collector runs
        slot.release()
    assert slots.in_use() == 0


def test_threads_never_hold_more_than_the_limit(make: Callable[..., Slots]) -> None:
    """Catches: the choice of a slot outside of the lock."""
    slots, running, peaks, guard = make(3, {}), [0], [0], threading.Lock()
    start = threading.Barrier(8)

    def hammer() -> None:
        start.wait(DEADLINE)
        for _ in range(300):
            slot = slots.take("image")
            if slot is not None:
                with guard:
                    running[0] += 1
                    peaks.append(running[0])
                os.sched_yield()
                with guard:
                    running[0] -= 1
                slot.release()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=hammer) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
    finally:
        sys.setswitchinterval(interval)
    assert max(peaks) == 3
    assert slots.in_use() == 0


def hammer_process(
    path: Path, start: threading.Barrier, running: Synchronized[int], peak: Synchronized[int], grants: Synchronized[int]
) -> None:
    """Take and release, counting how many processes are inside at once."""
    slots = HostSlots(path, 3, LIMITS)
    start.wait(DEADLINE)
    for turn in range(2000):
        slot = slots.take("video" if turn % 2 else "image")
        if slot is not None:
            with running.get_lock():
                running.value += 1
                peak.value = max(peak.value, running.value)
                grants.value += 1
            os.sched_yield()
            with running.get_lock():
                running.value -= 1
            slot.release()


def test_processes_never_hold_more_than_the_limit(path: Path) -> None:
    """Catches: slots that each process counts for itself."""
    start = SPAWN.Barrier(4)
    running, peak, grants = SPAWN.Value("i", 0), SPAWN.Value("i", 0), SPAWN.Value("i", 0)
    arguments = (path, start, running, peak, grants)
    processes = [SPAWN.Process(target=hammer_process, args=arguments, daemon=True) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(DEADLINE)
    assert [process.exitcode for process in processes] == [0] * 4
    assert 2 <= peak.value <= 3
    assert grants.value > 1000
    assert HostSlots(path, 3, LIMITS).in_use() == 0


def test_another_process_counts_exactly(path: Path, other: Other) -> None:
    """Catches: adjacent locks, which the kernel reports as one, counted once; gaps; the own ones left out."""
    third = Other(path)
    here = HostSlots(path, 5, LIMITS)
    for process in (other, third, other):
        assert process.ask("take", "image")
    mine = taken(here.take("image"))
    assert here.in_use() == other.ask("in_use") == third.ask("in_use") == 4
    other.ask("release", 0)
    assert here.in_use() == other.ask("in_use") == third.ask("in_use") == 3
    mine.release()
    assert third.ask("take", "image")
    assert here.in_use() == other.ask("in_use") == third.ask("in_use") == 3
    third.end()
    assert here.in_use() == other.ask("in_use") == 1


def test_every_pattern_of_slots_is_counted(path: Path, other: Other) -> None:
    """Catches: a count that trusts the kernel to name the first lock of a span first."""
    third = Other(path, 5)
    here = HostSlots(path, 5, {})
    order = [other, third, other, other, third]
    assert all(process.ask("take", "image") for process in order)
    assert here.in_use() == 5
    assert here.take("image") is None
    for left, (process, index) in enumerate([(other, 1), (third, 0), (other, 0), (third, 1), (other, 2)], 1):
        process.ask("release", index)
        assert here.in_use() == 5 - left
    third.end()


def test_a_routes_limit_holds_between_processes(path: Path, other: Other) -> None:
    """Catches: route slots at offsets that differ between processes, as those of hash() do."""
    here = HostSlots(path, 5, {"sound": 1, **LIMITS})
    assert other.ask("take", "video")
    assert not here.full("video")
    mine = taken(here.take("video"))
    assert here.full("video")
    assert other.ask("full", "video")
    assert here.take("video") is None
    assert not other.ask("take", "video")
    assert not here.allow(taken(here.take(None)), "video")
    mine.release()
    assert other.ask("take", "video")


def test_one_thread_at_a_time_has_its_turn(make: Callable[..., Slots]) -> None:
    """Catches: two threads that choose at once."""
    slots, inside, order = make(5, LIMITS), threading.Event(), []

    def second() -> None:
        inside.set()
        with slots.turn():
            order.append("second")

    thread = threading.Thread(target=second)
    with slots.turn():
        thread.start()
        assert inside.wait(DEADLINE)
        order.append("first")
    thread.join(DEADLINE)
    assert order == ["first", "second"]
    assert slots.in_use() == 0


def test_processes_have_their_turn_one_after_the_other(
    path: Path, other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: two processes that choose at once; a turn that is lost with the process that had it."""
    here, tries = HostSlots(path, 5, LIMITS), []

    def noted(seconds: float) -> None:
        tries.append(seconds)
        if len(tries) == 3:
            other.pipe.send("go on")
            assert other.pipe.poll(DEADLINE)

    monkeypatch.setattr("wsgi_admission.slots.time.sleep", noted)
    assert other.ask("turn")
    with here.turn():
        assert len(tries) >= 3
    assert other.pipe.recv() == "go on"
    assert other.ask("turn")
    other.process.kill()
    other.process.join(DEADLINE)
    tries.clear()
    with here.turn():
        assert tries == []


def test_nobody_waits_for_a_turn_for_ever(path: Path, other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a line that stands still because one process was stopped in its turn."""
    monkeypatch.setattr("wsgi_admission.slots.TURN_PATIENCE", 0.01)
    here = HostSlots(path, 5, LIMITS)
    assert other.ask("turn")
    with here.turn():
        pass
    with here.turn():
        pass


def test_a_killed_process_frees_its_slots_at_once(path: Path, other: Other) -> None:
    """Catches: slots that stay taken for ever by the dead."""
    here = HostSlots(path, 5, LIMITS)
    for route in ("video", "video", "image", "image", "image"):
        assert other.ask("take", route)
    assert here.take("image") is None

    os.kill(other.process.pid or 0, signal.SIGKILL)
    other.process.join(DEADLINE)

    assert here.in_use() == 0
    assert [here.take("video") is not None for _ in range(3)] == [True, True, False]


def test_two_objects_on_one_file_share_its_slots(path: Path, other: Other) -> None:
    """Catches: two objects of one process that take the same byte, or one that drops the other's locks."""
    first = HostSlots(path, 2, LIMITS)
    slot = taken(first.take("video"))
    (path.parent.parent / "alias").symlink_to(path.parent)
    second = HostSlots(path.parent.parent / "alias" / path.name, 2, LIMITS)
    assert first.in_use() == second.in_use() == 1
    third = taken(second.take("video"))
    assert first.take("video") is None
    assert other.ask("in_use") == 2

    third.release()
    del second

    assert other.ask("in_use") == 1
    slot.release()
    assert other.ask("in_use") == 0


def in_a_fork(slots: Slots, slot: Slot, report: Connection) -> None:
    """Tell how many slots a forked child sees, and whether it gets two when its parent has none."""
    report.send(slots.in_use())
    report.recv()  # the parent has given its slot back
    mine = [slots.take("image"), slots.take("image")]
    slot.release()
    report.send([one is not None for one in mine])
    report.recv()


def fork_and_report(make: Callable[[], Slots], report: Connection) -> None:
    """Fork with a slot in hand; send on what the child tells and how many slots are seen then from here.

    Runs in a process without threads.
    """
    slots = make()
    slot = taken(slots.take("video"))
    mine, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=in_a_fork, args=(slots, slot, theirs))
    child.start()
    inherited = mine.recv()
    slot.release()
    mine.send(None)
    got = mine.recv()
    report.send((inherited, got, slots.in_use()))
    mine.send(None)
    child.join(DEADLINE)


def forked(make: Callable[[], Slots]) -> Any:
    """Return the report of `fork_and_report` from a process of its own."""
    mine, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=fork_and_report, args=(make, theirs))
    process.start()
    theirs.close()
    assert mine.poll(DEADLINE)
    report = mine.recv()
    process.join(DEADLINE)
    return report


class MakeHost:
    """Makes the slots of the test below in another process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> Slots:
        return HostSlots(self.path, 2, LIMITS)


def make_local() -> Slots:
    """Return slots of one process."""
    return LocalSlots(2, LIMITS)


def test_a_fork_inherits_no_slots(path: Path) -> None:
    """Catches: a child that believes it holds its parent's slots, or gives back its own in their place."""
    assert forked(MakeHost(path)) == (1, [True, True], 2)
    assert HostSlots(path, 2, LIMITS).in_use() == 0


def test_slots_made_after_a_fork_that_python_was_not_told_of_are_the_childs_own(path: Path) -> None:
    """Catches: a child of a server that forks in C, whose new slots stand on what its parent holds."""
    slot = taken(HostSlots(path, 2, {}).take("image"))
    reader, writer = os.pipe()
    child = ctypes.CDLL(None).fork()
    if not child:
        report: tuple[object, ...] = ()
        try:
            slots = HostSlots(path, 2, {})
            seen = slots.in_use()
            slot.release()
            report = (seen, slots.take("image") is not None, slots.take("image") is not None, slots.in_use())
        finally:
            os.write(writer, repr(report).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == "(1, True, False, 2)"
    os.waitpid(child, 0)
    slot.release()


def test_a_fork_of_local_slots_starts_empty() -> None:
    """Catches: a child whose slots are taken for ever by requests of its parent."""
    assert forked(make_local) == (0, [True, True], 0)


def lock_whole_file(path: Path, ready: Connection) -> None:
    """Lock the file from one end to the other and hold it."""
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        ready.send(None)
        ready.recv()


def test_a_lock_on_the_whole_file_takes_all_slots(path: Path) -> None:
    """Catches: an endless loop when somebody locks the file, which is a length of 0."""
    here = HostSlots(path, 5, LIMITS)
    mine, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=lock_whole_file, args=(path, theirs), daemon=True)
    process.start()
    assert mine.poll(DEADLINE)
    mine.recv()
    assert here.in_use() == 5
    assert here.full("video")
    assert here.take("video") is None
    mine.send(None)
    process.join(DEADLINE)
    assert here.in_use() == 0


def test_a_kernel_out_of_locks_is_told_and_nothing_half_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a bare OSError on the way of a request, and the host's slot lost when the route's fails."""
    real = fcntl.lockf

    def lockf(descriptor: int, operation: int, length: int, start: int) -> None:
        if start >= 1 << 20 and operation != fcntl.LOCK_UN:
            raise OSError(errno.ENOLCK, "No locks available")
        real(descriptor, operation, length, start)

    slots = HostSlots(path, 5, LIMITS)
    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(StoreUnavailable, match=r"The file of slots cannot be locked: No locks available\."):
        slots.take("video")
    assert slots.in_use() == 0
    assert slots.take("image") is not None


@pytest.mark.parametrize("refusal", [errno.EACCES, errno.EAGAIN])
def test_a_slot_that_another_process_holds_is_taken_in_both_words_of_posix(
    path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    """Catches: an error for a slot that is taken, on the systems that call it EACCES."""
    real, theirs = fcntl.lockf, {0, 2}

    def lockf(descriptor: int, operation: int, length: int, start: int) -> None:
        if operation != fcntl.LOCK_UN and start in theirs:
            raise OSError(refusal, "held by another process")
        real(descriptor, operation, length, start)

    slots = HostSlots(path, 3, LIMITS)
    monkeypatch.setattr(fcntl, "lockf", lockf)
    assert slots.take("image") is not None
    assert slots.take("image") is None
    theirs.clear()
    assert slots.take("image") is not None


def test_file_and_directory_are_private(path: Path) -> None:
    """Catches: a file that another user may lock."""
    HostSlots(path, 5, {})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_symbolic_link_is_refused(path: Path) -> None:
    """Catches: a link in a shared directory that leads to somebody else's file."""
    path.parent.mkdir()
    path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(StoreError, match=r"main\.slots is not a regular file \(symbolic links are not followed\)"):
        HostSlots(path, 5, {})
    assert not (path.parent / "elsewhere").exists()


def test_a_symbolic_link_that_appears_meanwhile_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an open that follows a link which was put there after the check."""

    def missing(path: Path) -> os.stat_result:
        raise FileNotFoundError(path)

    path.parent.mkdir()
    path.symlink_to(path.parent / "elsewhere")
    monkeypatch.setattr(Path, "lstat", missing)
    with pytest.raises(StoreError, match=r"main\.slots cannot be opened: Too many levels of symbolic links\."):
        HostSlots(path, 5, {})


@pytest.mark.parametrize("create", [Path.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_refused(path: Path, create: Callable[[Path], None]) -> None:
    """Catches: an open that hangs on a pipe."""
    path.parent.mkdir()
    create(path)
    with pytest.raises(StoreError, match=r"main\.slots is not a regular file"):
        HostSlots(path, 5, {})


def test_somebody_elses_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: slots that another user can hold for ever."""
    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(
        StoreError, match=rf"belongs to user {path.stat().st_uid}, but this process runs as user 12345\."
    ):
        HostSlots(path, 5, {})


def test_a_file_that_cannot_be_made_is_told_with_its_path(path: Path) -> None:
    """Catches: a bare OSError, and a directory that is a file."""
    path.parent.touch()
    with pytest.raises(StoreError, match=rf"The file of slots {path} cannot be opened: File exists\."):
        HostSlots(path, 5, {})


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC, errno.EIO])
def test_a_file_that_cannot_be_opened_just_now_is_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Catches: a process that gives up for good, or a server that does not start, because of a moment's shortage."""

    def fail(*_args: Any) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(StoreUnavailable, match=rf"The file of slots {path} cannot be opened: {os.strerror(code)}"):
            HostSlots(path, 5, {})
    assert HostSlots(path, 5, {}).in_use() == 0


def test_the_file_is_opened_once_in_a_process(path: Path) -> None:
    """Catches: a descriptor for each object, which runs a process out of them."""

    def descriptors() -> int:
        return sum(1 for link in Path("/proc/self/fd").iterdir() if link.is_symlink() and _leads_to(link, path))

    for _ in range(5):
        HostSlots(path, 5, {})
    assert descriptors() == 1


def _leads_to(link: Path, path: Path) -> bool:
    try:
        return link.readlink() == path
    except FileNotFoundError:
        return False


def test_the_pair_of_take_and_release_is_quick(path: Path) -> None:
    """Catches: a take that opens the file, or walks its slots by one call each (10 times what it needs)."""
    slots = HostSlots(path, 1000, {})
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(200):
            taken(slots.take("image")).release()
            slots.in_use()
        best = min(best, (time.perf_counter() - begin) / 200)
    assert best < 60e-6
