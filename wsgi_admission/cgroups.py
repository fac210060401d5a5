"""What the control groups of this process allow it, and how much of that is used.

A group limits all processes in it and below it, so the limits of every ancestor count, as far up as they can be
seen.  In a container the path in ``/proc/self/cgroup`` may be that of the host, of which only the container's own
group is visible, mounted as the root: groups that are not there are passed over, and the root is always looked at.

Both versions are read: version 2 (one hierarchy for all controllers) and version 1 (a hierarchy for each), and the
mixture of them, where a controller is in version 1 if ``/proc/self/cgroup`` names it.  A file that is missing or
not understood counts as no limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


class CpuQuota(NamedTuple):
    """A group's CPU quota in cores, and the CPU seconds that it has used since it began."""

    cores: float
    used: float


class MemoryLimit(NamedTuple):
    """A group's limit in bytes, and the bytes in use that could not be dropped at once."""

    limit: float
    used: float


def cpu_quotas(root: Path = ROOT, membership: Path = MEMBERSHIP) -> dict[Path, CpuQuota]:
    """Return the quota of each group of this process that has one and tells its usage."""
    quotas = {}
    for mount, group, version in _groups("cpu", root, membership):
        if version == 2:
            quota, _, period = _text(group / "cpu.max").partition(" ")
            used = _entry(group / "cpu.stat", "usage_usec", 1e6)
        else:
            quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
            # cpuacct is mounted with cpu, or beside it with the same groups.
            beside = root / "cpuacct" / group.relative_to(mount)
            used = _number(_text(group / "cpuacct.usage") or _text(beside / "cpuacct.usage"), 1e9)
        cores = _number(quota, _number(period) or 100_000)
        if cores is not None and cores > 0 and used is not None:
            quotas[group] = CpuQuota(cores, used)
    return quotas


def memory_limits(root: Path = ROOT, membership: Path = MEMBERSHIP) -> dict[Path, MemoryLimit]:
    """Return the memory limit of each group of this process that has one and tells its usage.

    Version 1 says "no limit" by a number beyond any memory: the caller has to ignore limits above the host's.
    """
    limits = {}
    for _, group, version in _groups("memory", root, membership):
        limit_file, used_file, cache = (
            ("memory.max", "memory.current", "inactive_file")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        limit, used = _number(_text(group / limit_file)), _number(_text(group / used_file))
        if limit is not None and limit > 0 and used is not None:
            # Pages of files that nobody used lately are given up before anything fails for want of memory.
            limits[group] = MemoryLimit(limit, max(0.0, used - (_entry(group / "memory.stat", cache) or 0.0)))
    return limits


def _groups(controller: str, root: Path, membership: Path) -> Iterator[tuple[Path, Path, int]]:
    """Yield (mount, group, version) for this process's group and all its ancestors up to the mount."""
    path, mount, version = None, root, 2
    for line in _text(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, own = rest.partition(":")
        if controller in controllers.split(","):
            named = (root / controller, root / controllers)
            path, mount, version = own, next((name for name in named if name.is_dir()), root), 1
            break
        if not controllers and own:
            path = own
            mount = root if (root / "cgroup.controllers").exists() else root / "unified"
    if path is not None:
        parts = [part for part in path.split("/") if part]
        # A group outside of what this process may see is shown as "/../..": only the mount is left.
        for depth in range(0 if ".." in parts else len(parts), -1, -1):
            yield mount, mount.joinpath(*parts[:depth]), version


def _text(path: Path) -> str:
    """Return the file's text, or an empty string when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(text: str, unit: float = 1) -> float | None:
    """Return the whole number divided by the unit, or None when it is none."""
    try:
        return int(text) / unit
    except (ValueError, OverflowError):
        return None


def _entry(path: Path, name: str, unit: float = 1) -> float | None:
    """Return the number that stands after the name in a file of such lines."""
    for line in _text(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return _number(value, unit)
    return None
