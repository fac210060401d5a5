"""How the benchmarks measure and print.

The sides of a comparison take turns (A B A B), so that a machine that is busy with something else slows both, and
the median of many short turns is taken, so that the turns it slowed do not count.  `timeit.Timer` turns the garbage
collector off and compiles the loop anew for each side: one loop for all of them would let Python specialise it for
whichever came first.
"""

from __future__ import annotations

import gc
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from timeit import Timer


@dataclass(frozen=True)
class Report:
    """What a benchmark found, ready to print.

    :param how: a sentence or two on how it was measured.
    :param rows: as many texts as there are columns.
    """

    title: str
    how: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def text(self) -> str:
        """Return it as a table with aligned columns."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        table = (self.columns, tuple("-" * width for width in widths), *self.rows)
        lines = [
            "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]).rstrip() for first, *rest in table
        ]
        body = textwrap.indent("\n".join([*textwrap.wrap(self.how, 116), "", *lines]), "  ")
        return f"{self.title}\n{body}\n"


def interleaved(
    sides: Mapping[str, Timer], *, turns: int, calls: int = 1, between: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Let the sides take turns of ``calls`` calls; return the seconds per call of each side's turns.

    :param between: called after each round of turns; it is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for timer in sides.values():
        timer.timeit(calls)  # the first turn opens and compiles what the others find ready
    for _ in range(turns):
        for name, timer in sides.items():
            seconds[name].append(timer.timeit(calls) / calls)
        between()
    return seconds


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the garbage collector off, as `timeit` does, for what is timed by hand."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each side."""
    return {name: median(values) for name, values in seconds.items()}


def percentile(values: Iterable[float], percent: int) -> float:
    """Return the smallest of the values that at least ``percent`` % of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def us(seconds: float) -> str:
    """Return a time in microseconds, with three digits or more."""
    value = seconds * 1e6
    decimals = next((number for number, limit in ((3, 1), (2, 10), (1, 100)) if abs(value) < limit), 0)
    return f"{value:.{decimals}f} µs"


def ms(seconds: float) -> str:
    """Return a time in milliseconds."""
    return f"{seconds * 1e3:.1f} ms"


def times(ratio: float) -> str:
    """Return a ratio."""
    return f"{ratio:.2f}x"


def verdict(*, met: bool) -> str:
    """Return the word for a target that was met, or was not."""
    return "met" if met else "missed"
