from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from wsgi_admission import cgroups, load
from wsgi_admission.load import CpuSensor, LoadMeter, host_times, memory_share

GIB = 1 << 30
NO_LIMIT_V1 = "9223372036854771712"


class Script:
    """A sensor that gives (or raises) one item after the other, and the last for ever."""

    def __init__(self, *items: float | Exception | None) -> None:
        self._items = list(items)

    def __call__(self) -> float | None:
        item = self._items.pop(0) if len(self._items) > 1 else self._items[0]
        if isinstance(item, Exception):
            raise item
        return item


def meter(
    *sensors: tuple[str, Callable[[], float | None]],
    threshold: float = 0.8,
    resume: float = 0.7,
    cpu: float | None = None,
    memory: float | None = None,
) -> LoadMeter:
    """Return a meter over these sensors."""
    return LoadMeter(
        threshold=threshold, resume=resume, cpu_threshold=cpu, memory_threshold=memory, sensors=list(sensors)
    )


def above(meter: LoadMeter, samples: int) -> list[str]:
    """Return what is above after each of so many samples, with no slot in use."""
    found = []
    for tick in range(samples):
        meter.sample(tick * 0.5)
        found.append(meter.load(0, 5).above)
    return found


def test_before_the_first_sample_the_slots_alone_decide() -> None:
    """Catches: a first request that waits for a sensor, or fails without one."""
    idle = meter(("cpu", Script(1.0)))
    assert idle.load(0, 5) == load.Load(0.0, "", {"slots": 0.0}, {}, memory_above=False)
    assert idle.load(4, 5).above == "slots"


@pytest.mark.parametrize(("slots", "word"), [(3, ""), (4, "slots"), (5, "slots"), (9, "slots")])
def test_slots_are_exact(slots: int, word: str) -> None:
    """Catches: slots smoothed or held like a sensor, or a share above 1."""
    idle = meter()
    assert idle.load(5, 5).above == "slots"
    now = idle.load(slots, 5)
    assert now.above == word
    assert now.value == now.readings["slots"] == min(slots / 5, 1.0)


def test_readings_are_smoothed_from_the_first_on() -> None:
    """Catches: smoothing that starts at 0 and reports an overloaded host as idle for seconds."""
    cpu = meter(("cpu", Script(1.0, 0.0, 0.0)))
    seen = []
    for tick in range(3):
        cpu.sample(tick * 0.5)
        seen.append(cpu.load(0, 5).value)
    assert seen == pytest.approx([1.0, 0.7, 0.49])


def test_a_sensor_stays_above_until_it_falls_below_resume() -> None:
    """Catches: a band that is not there (the verdict flips at the threshold), or that never ends."""
    assert above(meter(("cpu", Script(0.79, 0.82, 0.9, 0.71))), 20) == ["", ""] + ["cpu"] * 18
    smoothed = meter(("cpu", Script(0.8, 0.467, 0.0, 0.9, 0.9, 0.9)))  # 0.8, 0.7001, 0.49, 0.61, 0.70, 0.76
    assert above(smoothed, 6) == ["cpu", "cpu", "", "", "", ""]


def test_a_sensor_with_its_own_threshold_has_its_own_band() -> None:
    """Catches: the common resume applied to a threshold of 0.4, which then would never be held."""
    own = meter(("cpu", Script(0.4, 0.3334, 0.2)), cpu=0.4)  # resumes at 0.35: 0.4, 0.38, 0.326
    assert above(own, 3) == ["cpu", "cpu", ""]


def test_a_sensor_of_another_name_has_the_common_threshold() -> None:
    """Catches: only CPU and memory able to hold requests back."""
    assert above(meter(("gpu", Script(0.79, 1.0)), cpu=0.1, memory=0.1), 2) == ["", "gpu"]


def test_the_first_sensor_above_is_named_and_slots_before_all() -> None:
    """Catches: the largest named instead of the first, so that the reason changes from request to request."""
    both = meter(("cpu", Script(0.85)), ("memory", Script(0.95)))
    both.sample(0)
    assert both.load(0, 5).above == "cpu"
    assert both.load(5, 5).above == "slots"
    assert both.load(0, 5).value == 0.95
    assert both.load(0, 5).memory_above


def test_memory_above_is_told_apart() -> None:
    """Catches: replays held back because the CPU is busy, with themselves."""
    cpu = meter(("cpu", Script(0.9)), ("memory", Script(0.5)))
    cpu.sample(0)
    assert not cpu.load(5, 5).memory_above


@pytest.mark.parametrize("sensor", [Script(None), Script(0.0), Script(OSError("gone"))])
def test_a_threshold_of_nothing_holds_from_the_first_request(sensor: Script) -> None:
    """Catches: a threshold of 0 % that waits for the first reading, or divides by zero."""
    assert meter(("cpu", sensor), threshold=0.0, resume=0.0).load(0, 5).above == "slots"
    own = meter(("memory", sensor), ("cpu", sensor), cpu=0.0)
    assert own.load(0, 5).above == "cpu"
    assert above(own, 20) == ["cpu"] * 20


def test_own_thresholds_stand_beside_a_common_one_of_nothing() -> None:
    """Catches: the band of an own threshold computed by dividing by the common one."""
    own = meter(("cpu", Script(0.5, 0.0)), threshold=0.0, resume=0.0, cpu=0.5)
    own.sample(0)
    assert own.load(0, 5).above == "slots"


@pytest.mark.parametrize("bad", [OSError(5, "I/O error"), RuntimeError("no driver")])
def test_a_sensor_that_fails_is_left_out_and_named(bad: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Catches: a reading of the past that holds requests back for ever, or a log line for each sample."""
    both = meter(("cpu", Script(0.9, bad, bad, bad, 0.1)), ("memory", Script(0.2)))
    with caplog.at_level(logging.INFO):
        both.sample(0)
        for tick in range(3):
            both.sample(1 + tick)
            now = both.load(0, 5)
            assert (now.above, now.readings) == ("", {"slots": 0.0, "memory": 0.2})
            assert now.failed == {"cpu": f"The cpu sensor failed: {bad!r}."}
        both.sample(4)
    assert both.load(0, 5).failed == {}
    assert both.load(0, 5).readings["cpu"] == 0.1
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_a_sensor_that_returns_no_number_has_failed() -> None:
    """Catches: an exception of the comparison that kills the housekeeper."""
    wrong = meter(("cpu", lambda: "much"))  # type: ignore[arg-type, return-value]  # what is tested
    wrong.sample(0)
    assert "could not convert string to float" in wrong.load(0, 5).failed["cpu"]


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_silent_sensor_is_stale_after_five_seconds(nothing: float | None) -> None:
    """Catches: the last reading kept for ever; or dropped at the first window that was too short."""
    silent = meter(("cpu", Script(0.9, nothing)))
    silent.sample(0)
    silent.sample(5.0)
    assert silent.load(0, 5).above == "cpu"
    silent.sample(5.1)
    assert silent.load(0, 5).above == ""
    assert silent.load(0, 5).failed == {"cpu": "The cpu sensor has given no reading for more than 5 seconds."}


def test_a_silence_begins_with_the_last_reading() -> None:
    """Catches: a sensor left out because it pauses for a moment after it has worked for long."""
    pausing = meter(("cpu", Script(0.9, 0.9, 0.9, None)))
    for moment in (0.0, 4.0, 8.0, 12.9):
        pausing.sample(moment)
    assert (pausing.load(0, 5).above, dict(pausing.load(0, 5).failed)) == ("cpu", {})
    pausing.sample(13.1)
    assert list(pausing.load(0, 5).failed) == ["cpu"]


def test_a_sensor_that_never_spoke_is_stale_too() -> None:
    """Catches: staleness counted from a last reading that never was."""
    silent = meter(("cpu", Script(None)))
    silent.sample(100.0)
    assert silent.load(0, 5).failed == {}
    silent.sample(105.1)
    assert list(silent.load(0, 5).failed) == ["cpu"]


@pytest.mark.parametrize(("given", "kept"), [(1.7, 1.0), (-0.1, 0.0)])
def test_a_reading_stays_between_0_and_1(given: float, kept: float) -> None:
    """Catches: a load of 170 % shown to clients."""
    odd = meter(("cpu", Script(given)))
    odd.sample(0)
    assert odd.load(0, 5).readings["cpu"] == kept


def test_a_load_is_built_once_for_a_sample_and_cannot_be_changed() -> None:
    """Catches: the hot path building the snapshot anew, and a cache that outlives its sample."""
    cpu = meter(("cpu", Script(0.1, 0.9)))
    cpu.sample(0)
    first = cpu.load(1, 5)
    assert cpu.load(1, 5) is first
    with pytest.raises(TypeError):
        first.readings["cpu"] = 1.0  # type: ignore[index]  # what is tested
    cpu.sample(0.5)
    assert cpu.load(1, 5).readings["cpu"] > 0.1


def test_the_real_sensors_read_this_host() -> None:
    """Catches: sensors that work on made-up trees only."""
    real = LoadMeter(threshold=0.8, resume=0.7, cpu_threshold=None, memory_threshold=None)
    real.sample(0)
    now = real.load(0, 5)
    assert now.failed == {}
    assert 0 < now.readings["memory"] <= 1
    busy, total = host_times()
    assert 0 < busy < total


class Tree:
    """A made-up /sys/fs/cgroup and /proc/self/cgroup."""

    def __init__(self, path: Path) -> None:
        self.root = path / "cgroup"
        self.membership = path / "self"
        self.root.mkdir()

    def member(self, *lines: str) -> Tree:
        self.membership.write_text("".join(line + "\n" for line in lines))
        return self

    def file(self, name: str, text: str) -> Tree:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="latin-1")
        return self

    def cpu(self) -> list[tuple[str, float, float]]:
        found = cgroups.cpu_quotas(self.root, self.membership)
        return [(str(group.relative_to(self.root)), *quota) for group, quota in found.items()]

    def memory(self) -> list[tuple[str, float, float]]:
        found = cgroups.memory_limits(self.root, self.membership)
        return [(str(group.relative_to(self.root)), *limit) for group, limit in found.items()]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Return an empty tree."""
    return Tree(tmp_path)


def v2_cpu(tree: Tree, group: str, limit: str, microseconds: int) -> None:
    """Give a group of version 2 a cpu.max and its usage."""
    tree.file(f"{group}/cpu.max", limit)
    tree.file(f"{group}/cpu.stat", f"usage_usec {microseconds}\nuser_usec 1\nnr_throttled 0")


def test_version_2_limits_of_all_ancestors_are_found(tree: Tree) -> None:
    """Catches: only the own group read, where the limit is usually on a slice above it."""
    tree.member("0::/app.slice/web.service").file("cgroup.controllers", "cpu memory")
    v2_cpu(tree, "app.slice/web.service", "max 100000", 5_000_000)
    v2_cpu(tree, "app.slice", "150000 100000", 7_000_000)
    tree.file("app.slice/web.service/memory.max", "max").file("app.slice/web.service/memory.current", "5")
    tree.file("app.slice/memory.max", "1000").file("app.slice/memory.current", "700")
    tree.file("app.slice/memory.stat", "anon 300\ninactive_file 200\nactive_file 100")
    assert tree.cpu() == [("app.slice", 1.5, 7.0)]
    assert tree.memory() == [("app.slice", 1000, 500)]


def test_a_container_sees_its_own_group_as_the_root(tree: Tree) -> None:
    """Catches: the path of /proc/self/cgroup, which is the host's, taken to be there."""
    tree.member("0::/docker/abc").file("cgroup.controllers", "cpu memory")
    v2_cpu(tree, ".", "50000 100000", 1_000_000)
    tree.file("memory.max", "1000").file("memory.current", "700")
    assert tree.cpu() == [(".", 0.5, 1.0)]
    assert tree.memory() == [(".", 1000, 700)]


def test_a_group_outside_of_the_namespace_does_not_lead_out_of_the_tree(tree: Tree) -> None:
    """Catches: files read beside the mount because the path says '..'."""
    tree.member("0::/..").file("cgroup.controllers", "memory")
    tree.file("memory.max", "1000").file("memory.current", "700")
    tree.file("../memory.max", "800").file("../memory.current", "700")
    assert tree.memory() == [(".", 1000, 700)]


@pytest.mark.parametrize(
    ("cpu", "line"), [("cpu", "4:cpu,cpuacct:/docker/abc"), ("cpu,cpuacct", "4:cpu,cpuacct:/docker/abc")]
)
def test_version_1_is_read_wherever_its_controllers_are_mounted(tree: Tree, cpu: str, line: str) -> None:
    """Catches: version 1 forgotten, or looked for under one of its two names only."""
    tree.member("9:name=systemd:/", "5:memory:/docker/abc", line, "0::/")
    tree.file(f"{cpu}/docker/abc/cpu.cfs_quota_us", "200000").file(f"{cpu}/docker/abc/cpu.cfs_period_us", "50000")
    tree.file(f"{cpu}/docker/abc/cpuacct.usage", "3000000000")
    tree.file(f"{cpu}/cpu.cfs_quota_us", "-1").file(f"{cpu}/cpu.cfs_period_us", "100000")
    tree.file(f"{cpu}/cpuacct.usage", "9000000000")
    tree.file("memory/docker/abc/memory.limit_in_bytes", "1000").file("memory/docker/abc/memory.usage_in_bytes", "900")
    tree.file("memory/docker/abc/memory.stat", "inactive_file 1\ntotal_inactive_file 300")
    assert tree.cpu() == [(f"{cpu}/docker/abc", 4.0, 3.0)]
    assert tree.memory() == [("memory/docker/abc", 1000, 600)]


def test_version_1_usage_may_have_a_mount_of_its_own(tree: Tree) -> None:
    """Catches: a quota dropped because cpuacct is not mounted together with cpu."""
    tree.member("1:cpu:/job", "2:cpuacct:/job")
    tree.file("cpu/job/cpu.cfs_quota_us", "100000").file("cpu/job/cpu.cfs_period_us", "100000")
    tree.file("cpuacct/job/cpuacct.usage", "2000000000")
    assert tree.cpu() == [("cpu/job", 1.0, 2.0)]


def test_hybrid_each_controller_is_read_where_it_is(tree: Tree) -> None:
    """Catches: the mixture taken for version 2 because there is a line '0::'."""
    tree.member("5:memory:/job", "0::/job").file("unified/cgroup.controllers", "cpu")
    v2_cpu(tree, "unified/job", "100000 100000", 1_000_000)
    tree.file("memory/job/memory.limit_in_bytes", "1000").file("memory/job/memory.usage_in_bytes", "1")
    tree.file("unified/job/memory.max", "7").file("unified/job/memory.current", "7")
    assert tree.cpu() == [("unified/job", 1.0, 1.0)]
    assert tree.memory() == [("memory/job", 1000, 1)]


@pytest.mark.parametrize("text", ["", "max", "x", "-1", "0", "1e3", "\x00\xff", "9" * 400, "-1 100000", "max 100000"])
def test_a_limit_that_is_none_counts_as_none(tree: Tree, text: str) -> None:
    """Catches: an exception, or a limit of 0, from files that are not understood."""
    tree.member("nonsense", "0::/a/b").file("cgroup.controllers", "")
    v2_cpu(tree, "a/b", text, 1)
    tree.file("a/b/memory.max", text).file("a/b/memory.current", "1")
    assert tree.cpu() == []
    assert tree.memory() == []


@pytest.mark.parametrize("usage", ["", "usage_usec", "usage_usec many"])
def test_a_quota_without_usage_is_ignored(tree: Tree, usage: str) -> None:
    """Catches: usage that cannot be read counted as 0, a host that looks idle."""
    tree.member("0::/").file("cgroup.controllers", "")
    tree.file("cpu.max", "100000 100000").file("cpu.stat", usage).file("memory.max", "5").file("memory.current", usage)
    assert tree.cpu() == []
    assert tree.memory() == []


def test_without_any_control_group_there_are_no_limits(tree: Tree) -> None:
    """Catches: a kernel without control groups."""
    assert tree.cpu() == []
    assert tree.memory() == []


def cpu_sensor(tree: Tree, times: Sequence[float], host: Sequence[tuple[float, float]]) -> CpuSensor:
    """Return a sensor that sees these times and these (busy, all) CPU seconds of the host."""
    return CpuSensor(root=tree.root, membership=tree.membership, clock=iter(times).__next__, host=iter(host).__next__)


def test_cpu_is_the_busy_share_since_the_last_reading(tree: Tree) -> None:
    """Catches: the share since the start of the machine."""
    sensor = cpu_sensor(tree, [10.0, 10.5, 11.0], [(100.0, 1000.0), (100.5, 1001.0), (100.5, 1002.0)])
    assert [sensor(), sensor(), sensor()] == [None, 0.5, 0.0]


def test_a_window_that_is_too_short_is_left_to_grow(tree: Tree) -> None:
    """Catches: a reading of 0 or 100 % over a millisecond, and a window that begins anew at each call."""
    sensor = cpu_sensor(tree, [10.0, 10.2, 10.4], [(0.0, 0.0), (1.0, 4.0)])
    assert [sensor(), sensor(), sensor()] == [None, None, 0.25]


def test_a_host_that_does_not_count_gives_nothing(tree: Tree) -> None:
    """Catches: a division by zero where the CPU times stand still."""
    sensor = cpu_sensor(tree, [10.0, 10.5], [(1.0, 4.0), (1.0, 4.0)])
    assert [sensor(), sensor()] == [None, None]


@pytest.mark.parametrize(("host_busy", "share"), [(0.1, 0.8), (0.9, 0.9)])
def test_cpu_is_the_larger_of_group_and_host(tree: Tree, host_busy: float, share: float) -> None:
    """Catches: a container at its quota that looks idle on a large host, and a full host behind a wide quota."""
    tree.member("0::/a/b").file("cgroup.controllers", "")
    sensor = cpu_sensor(tree, [10.0, 10.5], [(0.0, 0.0), (host_busy, 1.0)])
    v2_cpu(tree, "a", "100000 100000", 1_000_000)
    v2_cpu(tree, "a/b", "50000 100000", 1_000_000)
    sensor()
    v2_cpu(tree, "a", "100000 100000", 1_400_000)  # 0.4 of 0.5 s on one core
    v2_cpu(tree, "a/b", "50000 100000", 1_100_000)  # 0.1 of 0.5 s on half a core
    assert sensor() == pytest.approx(share)


def test_a_quota_beyond_the_cpus_it_may_use_is_cut_to_them(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a quota of 64 cores on a machine of 2."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    tree.member("0::/").file("cgroup.controllers", "")
    sensor = cpu_sensor(tree, [10.0, 11.0], [(0.0, 0.0), (0.0, 1.0)])
    v2_cpu(tree, ".", "6400000 100000", 0)
    sensor()
    v2_cpu(tree, ".", "6400000 100000", 1_000_000)
    assert sensor() == pytest.approx(0.5)


def test_a_quota_that_appears_later_is_read_from_then_on(tree: Tree) -> None:
    """Catches: the usage since the group began charged to the first window."""
    tree.member("0::/").file("cgroup.controllers", "")
    sensor = cpu_sensor(tree, [1.0, 2.0], [(0.0, 0.0), (0.25, 1.0)])
    sensor()
    v2_cpu(tree, ".", "100000 100000", 900_000_000)
    assert sensor() == 0.25


def test_host_times_are_those_of_the_cpus_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a container on 1 of 64 CPUs that is full and reads 2 %; waiting for a disk counted as busy."""

    class Times(tuple[float, ...]):
        __slots__ = ()
        idle = property(lambda self: self[1])
        iowait = property(lambda self: self[2])
        guest = property(lambda self: self[3])

    cpus = [Times((9.0, 1.0, 0.0, 5.0)), Times((1.0, 6.0, 3.0, 0.0))]
    monkeypatch.setattr(psutil, "cpu_times", lambda *, percpu: cpus if percpu else [])
    for allowed, expected in (({1}, (1.0, 10.0)), ({0, 1}, (10.0, 20.0)), ({40, 41}, (10.0, 20.0)), ({0}, (9.0, 10.0))):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cpus=allowed: cpus)
        assert host_times() == expected


class Memory:
    """What psutil says of a host of 8 GiB, half used."""

    total = 8 * GIB
    percent = 50.0


@pytest.mark.parametrize(
    ("outer", "inner", "share"),
    [("max", "max", 0.5), (str(4 * GIB), "max", 0.75), (str(4 * GIB), str(2 * GIB), 0.75), ("max", str(GIB), 1.0)],
)
def test_memory_is_that_of_the_group_with_least_room(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, outer: str, inner: str, share: float
) -> None:
    """Catches: the host's memory shown inside a container; an outer limit that neighbours have nearly used up."""
    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    tree.member("0::/a/b").file("cgroup.controllers", "")
    tree.file("a/memory.max", outer).file("a/memory.current", str(3 * GIB))
    tree.file("a/b/memory.max", inner).file("a/b/memory.current", str(GIB))
    assert memory_share(tree.root, tree.membership) == share


@pytest.mark.parametrize("limit", [NO_LIMIT_V1, str(8 * GIB), "-1"])
def test_a_limit_that_the_host_cannot_reach_is_none(tree: Tree, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """Catches: version 1's "no limit" read as a limit, under which memory never fills."""
    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    tree.member("5:memory:/job")
    tree.file("memory/job/memory.limit_in_bytes", limit).file("memory/job/memory.usage_in_bytes", str(GIB))
    assert memory_share(tree.root, tree.membership) == 0.5
