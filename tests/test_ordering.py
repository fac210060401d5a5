from __future__ import annotations

import heapq
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgi_admission.policy.ordering import place


class Entry(NamedTuple):
    """One ticket of the simulation; entries sort as the line does."""

    tier: int
    start: float
    number: int
    client: str
    cost: float

    @property
    def finish(self) -> float:
        return self.start + self.cost


class Line:
    """The line as a store keeps it: a virtual time for each tier, and for each of its clients what was claimed."""

    def __init__(self, rank: Callable[[float, float], float] = place) -> None:
        self.rank = rank
        self.virtual_time: Counter[int] = Counter()
        self.claimed: dict[tuple[int, str], float] = {}
        self.queued: defaultdict[tuple[int, str], list[Entry]] = defaultdict(list)
        self.entries: list[Entry] = []
        self.count = 0

    def put(self, client: str, cost: float = 30.0, tier: int = 0) -> Entry:
        queued = self.queued[tier, client]
        last_finish = max(self.claimed.get((tier, client), 0.0), queued[-1].finish if queued else 0.0)
        start = self.rank(self.virtual_time[tier], last_finish)
        self.count += 1
        entry = Entry(tier, start, self.count, client, cost)
        heapq.heappush(self.entries, entry)
        queued.append(entry)
        return entry

    def cancel(self, entry: Entry) -> None:
        self.entries.remove(entry)
        heapq.heapify(self.entries)
        self.queued[entry.tier, entry.client].remove(entry)

    def claim(self) -> Entry:
        entry = heapq.heappop(self.entries)
        key = (entry.tier, entry.client)
        self.queued[key].remove(entry)
        self.claimed[key] = max(self.claimed.get(key, 0.0), entry.finish)
        self.virtual_time[entry.tier] = max(self.virtual_time[entry.tier], entry.start)  # type: ignore[assignment]  # a Counter's values may be float
        return entry

    def position(self, entry: Entry) -> int:
        return 1 + sum(other < entry for other in self.entries)


def in_order_of_arrival(virtual_time: float, last_finish: float) -> float:
    """Rank everything alike: what a line without fairness does."""
    return 0.0


@pytest.mark.parametrize(
    ("virtual_time", "last_finish", "expected"),
    [(0.0, 0.0, 0.0), (90.0, 0.0, 90.0), (90.0, 60.0, 90.0), (90.0, 150.0, 150.0), (90.0, 90.0, 90.0)],
)
def test_a_ticket_starts_at_the_later_of_virtual_time_and_last_finish(
    virtual_time: float, last_finish: float, expected: float
) -> None:
    """Catches: min for max, which pays a client for its absence with the turns of the others."""
    assert place(virtual_time, last_finish) == expected


def waits_of_the_others(line: Line) -> list[float]:
    """Simulate one slot of 30 s for a day: a client with 10,000 tickets, and a visitor every 40 to 80 s.

    Returns how long the visitors waited, in seconds; for one that is not served, up to the end of the day.
    """
    random_ = random.Random(1)  # noqa: S311 - a repeatable simulation
    for _ in range(10_000):
        line.put("flood")
    arrivals: deque[float] = deque()
    moment = 0.0
    while moment < 86_400:
        moment += random_.uniform(40, 80)
        arrivals.append(moment)
    came: dict[str, float] = {}
    waits = []
    for turn in range(86_400 // 30):
        now = turn * 30.0
        while arrivals and arrivals[0] <= now:
            arrived = arrivals.popleft()
            came[f"visitor {arrived}"] = arrived
            line.put(f"visitor {arrived}")
        claimed = line.claim()
        if claimed.client != "flood":
            waits.append(now - came.pop(claimed.client))
    return waits + [86_400 - arrived for arrived in came.values()]


def test_ten_thousand_tickets_of_one_client_do_not_keep_the_others_waiting() -> None:
    """Catches: a line that is fair between tickets and not between clients."""
    waits = waits_of_the_others(Line())
    assert len(waits) > 1400
    assert max(waits) <= 60
    assert sum(waits) / len(waits) < 30
    unfair = waits_of_the_others(Line(in_order_of_arrival))
    assert sum(unfair) / len(unfair) > 40_000, "the measure does not tell the two apart"


@pytest.mark.parametrize("served", [0, 1, 19, 20, 500, 990])
def test_a_visitor_stands_behind_one_ticket_of_each_client_and_not_behind_all_fifty(served: int) -> None:
    """Catches: ranking a newcomer behind the last finish of all instead of at the virtual time."""
    line = Line()
    for client in range(20):
        for _ in range(50):
            line.put(f"client {client}")
    for _ in range(served):
        line.claim()
    assert line.position(line.put("visitor")) <= 20 + 1


def test_clients_with_a_backlog_share_the_time_and_not_the_turns() -> None:
    """Catches: a finish that leaves out the run time, so that long runs take several shares."""
    line = Line()
    for _ in range(400):
        line.put("short", cost=10)
        line.put("long", cost=60)
    spent: Counter[str] = Counter()
    for _ in range(350):
        claimed = line.claim()
        spent[claimed.client] += int(claimed.cost)
        assert abs(spent["short"] - spent["long"]) <= 60 + 10
    assert spent["long"] == 3000


def test_a_client_that_was_away_has_saved_nothing_up() -> None:
    """Catches: a start before the virtual time, with which a returning client takes many turns in a row."""
    line = Line()
    line.put("away")
    for _ in range(100):
        line.put("present")
    for _ in range(50):
        line.claim()
    for _ in range(10):
        line.put("away")
    turns = [line.claim().client for _ in range(10)]
    assert turns.count("away") == 5


@given(st.lists(st.one_of(st.none(), st.floats(0.1, 1000)), max_size=60))
def test_with_one_ticket_each_the_line_is_first_in_first_out(steps: list[float | None]) -> None:
    """Catches: a cost that delays the ticket itself and not only the client's next one."""
    line = Line()
    claimed = []
    for step in steps:
        if step is not None:
            line.put(f"client {line.count}", cost=step)
        elif line.entries:
            claimed.append(line.claim().number)
    claimed += [line.claim().number for _ in range(len(line.entries))]
    assert claimed == sorted(claimed)


PUTS = st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.floats(0.1, 1000))


#: A claim, a put, or which of the queued tickets is cancelled.
STEPS = st.lists(st.one_of(st.none(), PUTS, st.integers(0, 79)), max_size=80)


@given(STEPS)
def test_a_clients_own_tickets_stay_in_their_order(steps: Sequence[tuple[int, str, float] | int | None]) -> None:
    """Catches: a start that does not follow the last finish of the same client and tier; a refund of too much."""
    line = Line()
    served: dict[tuple[int, str], list[int]] = {}

    def serve() -> None:
        entry = line.claim()
        served.setdefault((entry.tier, entry.client), []).append(entry.number)

    for step in steps:
        if isinstance(step, tuple):
            tier, client, cost = step
            line.put(client, cost, tier)
        elif step is not None and line.entries:
            line.cancel(line.entries[step % len(line.entries)])
        elif line.entries:
            serve()
    while line.entries:
        serve()
    assert all(numbers == sorted(numbers) for numbers in served.values())


def test_a_better_tier_is_served_first_however_late_it_comes() -> None:
    """Catches: ranks of different tiers compared with each other."""
    line = Line()
    for _ in range(5):
        line.put("anonymous", tier=2)
    line.claim()
    for _ in range(3):
        line.put("donor", tier=0)
    assert [line.claim().tier for _ in range(7)] == [0, 0, 0, 2, 2, 2, 2]
