"""The load: sensor readings, smoothed and with hysteresis, as one frozen snapshot.

A raw CPU reading crosses its threshold dozens of times a minute.  So each reading is smoothed
(``value += 0.3 * (reading - value)``), and a sensor that is above its threshold stays so until it falls below
``resume``.  The number of slots in use needs neither: it is exact.

One housekeeper thread calls `LoadMeter.sample` every 0.5 s; requests only look up what it found.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import psutil

from wsgi_admission import cgroups

Sensor = Callable[[], float | None]

#: Seconds without a reading after which a sensor counts as failed.
STALE = 5.0
#: The shortest time in seconds over which CPU use can be told.
SHORTEST_WINDOW = 0.25
_WEIGHT = 0.3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Load:
    """The load as one request sees it.

    :param value: the largest reading, 0 to 1; 0 when there is none.
    :param above: the first sensor that is above its threshold, ``slots`` before the others; or an empty string.
    :param readings: sensor name -> smoothed reading, 0 to 1.
    :param failed: sensor name -> one sentence on why it gives nothing.
    :param memory_above: whether the memory is above its threshold.
    """

    value: float
    above: str
    readings: Mapping[str, float]
    failed: Mapping[str, str]
    memory_above: bool


@dataclass(frozen=True)
class _Snapshot:
    """What the last sample found, and the loads that were made of it, by (slots in use, all slots)."""

    readings: Mapping[str, float]
    failed: Mapping[str, str]
    above: tuple[str, ...]
    loads: dict[tuple[int, int], Load] = field(default_factory=dict)


class _Gauge:
    """One sensor with its smoothing, its hysteresis and its failures."""

    def __init__(self, name: str, sensor: Sensor, threshold: float, resume: float) -> None:
        self.name = name
        self.value: float | None = None
        self.failure = ""
        self._sensor = sensor
        self._threshold = threshold
        self._resume = resume
        # A sensor without a reading counts as 0, so that a threshold of 0 holds from the very first request.
        self.above = threshold <= 0
        self._last: float | None = None

    def sample(self, now: float) -> None:
        try:
            given = self._sensor()
            reading = math.nan if given is None else float(given)
        except Exception as error:  # noqa: BLE001 - whatever a sensor does, the others go on
            self._fail(f"The {self.name} sensor failed: {error!r}.")
            return
        if self._last is None:
            self._last = now
        if not math.isnan(reading):
            self._last = now
            self._read(min(max(reading, 0.0), 1.0))
        elif now - self._last > STALE:
            self._fail(f"The {self.name} sensor has given no reading for more than {STALE:.0f} seconds.")

    def _read(self, reading: float) -> None:
        if self.failure:
            logger.info("The %s sensor gives readings again.", self.name)
            self.failure = ""
        self.value = reading if self.value is None else self.value + _WEIGHT * (reading - self.value)
        self.above = self.value >= (self._resume if self.above else self._threshold)

    def _fail(self, sentence: str) -> None:
        if not self.failure:
            logger.warning("%s It is left out of the load.", sentence)
        self.failure = sentence
        self.value = None
        self.above = self._threshold <= 0


class LoadMeter:
    """Reads the sensors and says what the load is.

    :param threshold: the share (0 to 1) from which a reading counts as above, for slots and for every sensor that
        has none of its own.
    :param resume: the share below which it no longer does, in proportion for a sensor with its own threshold.
    :param cpu_threshold: that of the sensor named ``cpu``, or None.
    :param memory_threshold: that of the sensor named ``memory``, or None.
    :param sensors: (name, callable) pairs.  A callable returns a reading from 0 to 1, or None if it has nothing new.
        By default CPU and memory of the host or the control group.
    """

    def __init__(
        self,
        *,
        threshold: float,
        resume: float,
        cpu_threshold: float | None,
        memory_threshold: float | None,
        sensors: Sequence[tuple[str, Sensor]] | None = None,
    ) -> None:
        own = {"cpu": cpu_threshold, "memory": memory_threshold}
        self._threshold = threshold
        self._gauges = []
        for name, sensor in sensors if sensors is not None else (("cpu", CpuSensor()), ("memory", memory_share)):
            level = own.get(name)
            if level is None:
                self._gauges.append(_Gauge(name, sensor, threshold, resume))
            else:
                self._gauges.append(_Gauge(name, sensor, level, level * resume / threshold if threshold > 0 else level))
        self._snapshot = self._take_snapshot()

    def sample(self, now: float) -> None:
        """Read all sensors.  To be called by one thread only.

        :param now: seconds of a clock that does not jump.
        """
        for gauge in self._gauges:
            gauge.sample(now)
        self._snapshot = self._take_snapshot()

    def load(self, slots_in_use: int, max_slots: int) -> Load:
        """Return the load now; cheap, and safe in any thread.

        :param max_slots: all slots of the host, 1 or more.
        """
        snapshot = self._snapshot
        load = snapshot.loads.get((slots_in_use, max_slots))
        if load is None:
            load = snapshot.loads[slots_in_use, max_slots] = self._make_load(snapshot, slots_in_use / max_slots)
        return load

    def _take_snapshot(self) -> _Snapshot:
        return _Snapshot(
            readings={gauge.name: gauge.value for gauge in self._gauges if gauge.value is not None},
            failed=MappingProxyType({gauge.name: gauge.failure for gauge in self._gauges if gauge.failure}),
            above=tuple(gauge.name for gauge in self._gauges if gauge.above),
        )

    def _make_load(self, snapshot: _Snapshot, used: float) -> Load:
        readings = {"slots": min(used, 1.0), **snapshot.readings}
        above = ("slots", *snapshot.above) if used >= self._threshold else snapshot.above
        return Load(
            value=max(readings.values()),
            above=above[0] if above else "",
            readings=MappingProxyType(readings),
            failed=snapshot.failed,
            memory_above="memory" in snapshot.above,
        )


def host_times() -> tuple[float, float]:
    """Return (busy, all) CPU seconds so far, of those CPUs that this process may use.

    Of all CPUs when it may use all, or when a container shows it fewer than it may use.
    """
    cpus = psutil.cpu_times(percpu=True)
    allowed = os.sched_getaffinity(0)
    mine = [times for number, times in enumerate(cpus) if number in allowed]
    busy = total = 0.0
    for times in mine if len(mine) == len(allowed) else cpus:
        # Guests are counted among user and nice already.
        whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        total += whole
        busy += whole - times.idle - getattr(times, "iowait", 0.0)
    return busy, total


class _Moment(NamedTuple):
    time: float
    busy: float
    total: float
    quotas: Mapping[Path, cgroups.CpuQuota]


class CpuSensor:
    """The share of the CPU time that was used since the last reading: the host's, or a control group's if larger.

    :param clock: seconds of a clock that does not jump.
    :param host: returns (busy, all) CPU seconds so far.
    """

    def __init__(
        self,
        *,
        root: Path = cgroups.ROOT,
        membership: Path = cgroups.MEMBERSHIP,
        clock: Callable[[], float] = time.monotonic,
        host: Callable[[], tuple[float, float]] = host_times,
    ) -> None:
        self._root = root
        self._membership = membership
        self._host = host
        self._clock = clock
        self._before: _Moment | None = None

    def __call__(self) -> float | None:
        """Return the share, or None at first and when the last reading is less than 0.25 s old."""
        before, time_now = self._before, self._clock()
        if before is not None and time_now - before.time < SHORTEST_WINDOW:
            return None
        after = _Moment(time_now, *self._host(), cgroups.cpu_quotas(self._root, self._membership))
        self._before = after
        if before is None:
            return None
        seconds, cores = after.time - before.time, len(os.sched_getaffinity(0))
        shares = [
            (quota.used - before.quotas[group].used) / (seconds * min(quota.cores, cores))
            for group, quota in after.quotas.items()
            if group in before.quotas
        ]
        if after.total > before.total:
            shares.append((after.busy - before.busy) / (after.total - before.total))
        return max(shares, default=None)


def memory_share(root: Path = cgroups.ROOT, membership: Path = cgroups.MEMBERSHIP) -> float:
    """Return the share of the memory in use: of the control group that has least room left, else of the host."""
    host = psutil.virtual_memory()
    limits = cgroups.memory_limits(root, membership).values()
    return max((used / limit for limit, used in limits if limit < host.total), default=host.percent / 100)
