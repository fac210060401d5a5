"""How the visitors fare: a table that moves, plain lines for a pipe, and the summary at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wsgi_admission.demo.visitor import Visitor
from wsgi_admission.demo.who import TIERS

_STATES = ("processing", "queued", "sending", "refused", "failed", "cancelled", "completed")
_COLOURS = {
    "processing": "cyan",
    "queued": "yellow",
    "completed": "green",
    "failed": "red",
    "refused": "red",
    "cancelled": "red",
    "donor": "magenta",
    "registered": "blue",
}  # fmt: skip - a table


def table(visitors: Sequence[Visitor], height: int) -> Table:
    """Return the visitors as a table of at most ``height`` lines: those being served first, then the line in order."""
    counts = Counter(visitor.state for visitor in visitors)
    title = "   ".join(f"{counts[state]} {state}" for state in _STATES if counts[state])
    grid = Table("visitor", "tier", "state", "position", "waiting", "estimate", title=title, expand=False)
    ordered = sorted(visitors, key=lambda v: (_STATES.index(v.state), v.position or 0, -(v.ended or 0)))
    rows = max(3, height - 8)
    for visitor in ordered[:rows]:
        grid.add_row(
            str(visitor.number),
            _coloured(visitor.tier),
            _coloured(visitor.state),
            "" if visitor.position is None else str(visitor.position),
            _waiting(visitor),
            "" if visitor.estimate is None else f"{visitor.estimate:.0f} s",
        )
    if len(ordered) > rows:
        grid.add_row("…", f"and {len(ordered) - rows} more")
    return grid


def lines(visitors: Iterable[Visitor], said: dict[int, str]) -> list[str]:
    """Return a line for each visitor whose state is not the one in ``said``, and note it there."""
    new = []
    for visitor in visitors:
        state = visitor.state  # its thread may go on to the next one meanwhile
        if state == said.get(visitor.number, "sending"):
            continue
        said[visitor.number] = state
        place = "" if visitor.position is None else f", position {visitor.position}"
        wait = "" if visitor.estimate is None else f", about {visitor.estimate:.0f} s"
        once = " at once" if visitor.at_once else ""
        note = f": {visitor.note}" if visitor.note else ""
        new.append(f"visitor {visitor.number:<3} {visitor.tier:<10} {state}{once}{place}{wait}{note}")
    return new


def summary(visitors: Sequence[Visitor], seconds: float) -> RenderableType:
    """Return what became of them all.

    :param seconds: how long it took.
    """
    counts = Counter(visitor.state for visitor in visitors)
    at_once = sum(visitor.at_once for visitor in visitors)
    accepted = len(visitors) - counts["refused"] - counts["sending"]
    left = counts["queued"] + counts["processing"] + counts["sending"]
    head = Text(
        f"accepted {accepted} of {len(visitors)} ({at_once} drawn at once, {accepted - at_once} in the line), "
        f"completed {counts['completed']}, failed {counts['failed'] + counts['cancelled']}, "
        f"refused {counts['refused']}" + (f", still open {left}" if left else "") + f"; {seconds:.1f} s in all"
    )
    order = Text("order of starts in the line: ") + Text(", ").join(_runs(visitors))
    waits = Table("tier", "visitors", "wait, mean", "wait, longest", "until done, mean")
    for tier in TIERS:
        mine = [visitor for visitor in visitors if visitor.tier == tier]
        waited = [visitor.waited for visitor in mine if visitor.waited is not None]
        done = [visitor.ended - visitor.sent for visitor in mine if visitor.state == "completed" and visitor.ended]
        waits.add_row(
            _coloured(tier), str(len(mine)), _mean(waited), f"{max(waited):.1f} s" if waited else "-", _mean(done)
        )
    notes = sorted({f"{visitor.state}: {visitor.note}" for visitor in visitors if visitor.note})
    return Group(head, order, waits, *(Text(note, style="red") for note in notes))


def _runs(visitors: Iterable[Visitor]) -> list[Text]:
    """Return the tiers in the order in which the line started them, runs of one tier together."""
    started = [visitor for visitor in visitors if visitor.started is not None and not visitor.at_once]
    # Starts are known to the second; who of those was done first began first, with slots that are alike.
    started.sort(key=lambda v: (v.started or 0, v.ended or float("inf")))
    runs = [(tier, len(list(group))) for tier, group in groupby(started, key=lambda v: v.tier)]
    return [_coloured(tier) + Text(f" x {count}" if count > 1 else "") for tier, count in runs] or [Text("none")]


def _coloured(word: str) -> Text:
    return Text(word, style=_COLOURS.get(word, ""))


def _waiting(visitor: Visitor) -> str:
    if not visitor.sent:
        return ""
    waited = visitor.waited if visitor.started is not None else time.time() - visitor.sent
    return f"{waited:.1f} s"


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f} s" if values else "-"
