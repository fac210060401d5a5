"""One visitor of the demo site."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Visitor:
    """One visitor and how its request fares.

    ``state`` is one of: sending, queued, processing, completed, failed, refused.  Times are seconds since the epoch;
    ``started`` is the time at which its picture was begun.
    """

    number: int
    tier: str
    state: str = "sending"
    at_once: bool = False
    position: int | None = None
    estimate: float | None = None
    sent: float = 0.0
    started: float | None = None
    ended: float | None = None
    note: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """What tells the demo who is asking; each visitor is a client of its own."""
        return {"X-Demo-Tier": self.tier, "X-Demo-Client": f"visitor-{self.number}"}

    @property
    def waited(self) -> float | None:
        """Seconds between the question and the start of the drawing; the server tells its times to the second."""
        return None if self.started is None else max(0.0, self.started - self.sent)
