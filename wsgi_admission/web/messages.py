"""The sentences that people read, by state, position, load and tier."""

from __future__ import annotations

from wsgi_admission.policy.estimates import human
from wsgi_admission.ticket import State

ENDED = {
    State.COMPLETED: "✅ Your request has been completed successfully!",
    State.CANCELLED: "🚫 Your request has been cancelled.",
}
#: The loads from which on people are told that the server is busy, and very busy.
BUSY = 0.7
VERY_BUSY = 0.9


def status(
    state: State,
    *,
    position: int | None,
    wait: float | None,
    paused: bool = False,
    cancelling: bool = False,
    hint: str = "",
    error: str = "",
) -> str:
    """Return what a ticket's owner is told.

    :param position: the place in the line, or None for a ticket that does not wait.
    :param wait: the expected seconds until the start, or None if nobody knows.
    :param paused: whether the line is paused.
    :param cancelling: whether it runs, and its cancellation was asked for.
    :param hint: what the client's tier adds while waiting.
    :param error: why the ticket failed or was cancelled.
    """
    if cancelling:
        return "🚫 Your request is being cancelled; its answer will be dropped."
    if state is State.PROCESSING:
        return "🔄 Your request is being processed..."
    if state is State.FAILED:
        return f"❌ Your request failed. {error or 'Please try again later.'}"
    if state is not State.QUEUED:
        return f"{ENDED[state]} {error}".rstrip()
    if position is not None and paused:
        sentence = f"⏸️ You're #{position} in queue. It is paused just now, and you keep your place."
    elif position is None or wait is None:
        sentence = "📋 Your request is in the queue."
    elif position == 1:
        sentence = "🎯 You're next in line! Processing will begin shortly."
    else:
        sentence = f"📋 You're #{position} in queue. Estimated wait: {human(wait)}"
    return f"{sentence}{'' if sentence.endswith('.') else '.'} {hint}" if hint else sentence


def expired(seconds: float) -> str:
    """Return why a request is cancelled that has waited for as many seconds as it may."""
    return f"It could not be started within {human(max(1.0, seconds))}. Please try again later."


def retry(delay: float, load: float, *, paused: bool = False) -> str:
    """Return the advice on when to ask again.  ``delay`` is in seconds, ``load`` is 0 to 1."""
    why = "Others are served first."
    if paused:
        why = "The queue is paused just now."
    elif load >= BUSY:
        why = f"The server is {'very busy' if load >= VERY_BUSY else 'busy'} ({load:.0%} load)."
    return f"{why} To try again instead of waiting, wait {human(delay)} first."


def retry_kept(delay: float, load: float) -> str:
    """Return the advice on when to have a failed request run again that is still here; parameters as for `retry`."""
    busy = "; the server is very busy" if load >= VERY_BUSY else ""
    return f"It is kept here: you can have it run again in {human(delay)}, without sending it again{busy}."


def retry_failed(delay: float, load: float) -> str:
    """Return the advice on when to send a failed request again.  ``delay`` is in seconds, ``load`` is 0 to 1."""
    busy = "; the server is very busy" if load >= VERY_BUSY else ""
    return f"You can send the request again in {human(delay)}{busy}."
