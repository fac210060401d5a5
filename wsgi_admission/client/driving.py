"""Carries out the steps of `Waiting`, in a thread or on an event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from wsgi_admission.client.answers import Update
from wsgi_admission.client.terms import Terms
from wsgi_admission.client.waiting import CANCEL_TIMEOUT, Asked, Call, Failure, Pause, Reply, Waiting


class Through:
    """Takes requests through the line; what adapters have in common.

    :param max_wait: seconds after which a request that waits is given up and its ticket cancelled, or None.
    :param on_update: called with where the ticket stands, after each look.
    :param progress: whether a bar on the terminal shows it (with rich).
    """

    def __init__(
        self,
        *,
        max_wait: float | None,
        on_update: Callable[[Update], None] | None,
        progress: bool,
        terms: Terms | None,
    ) -> None:
        self._terms = terms or Terms()
        self._max_wait = max_wait
        self._on_update = on_update
        self._bars = None
        if progress:
            from wsgi_admission.client.bars import Bars  # noqa: PLC0415 - rich is needed for this alone

            self._bars = Bars()

    @contextmanager
    def one(self, asked: Asked) -> Iterator[Waiting]:
        """Begin to wait with one request."""
        told: list[Callable[[Update], None]] = [self._on_update] if self._on_update else []

        def tell(update: Update) -> None:
            for each in told:
                each(update)

        waiting = Waiting(asked, self._terms, max_wait=self._max_wait, tell=tell)
        if self._bars is None:
            yield waiting
            return
        with self._bars.one() as show:
            told.insert(0, show)
            yield waiting


def run(waiting: Waiting, send: Callable[[Call], Reply | Failure], sleep: Callable[[float], object]) -> Any:
    """Carry out the steps and return the library's response; on any interruption cancel the ticket.

    :param send: sends a call; what it raises is an interruption.
    """
    try:
        return _carry_out(waiting.steps(), send, sleep).native
    except BaseException:
        with suppress(Exception):  # what interrupted us is what the caller is told
            _carry_out(waiting.cancelling(), send, sleep)
        raise


def _carry_out(
    steps: Generator[Call | Pause, Any, Any],
    send: Callable[[Call], Reply | Failure],
    sleep: Callable[[float], object],
) -> Any:
    """Carry out the steps and return what they return; every other reply is closed."""
    outcome: Reply | Failure | None = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as end:
            if isinstance(outcome, Reply) and outcome is not end.value:
                outcome.native.close()
            return end.value
        if isinstance(outcome, Reply):
            outcome.native.close()
        outcome = None
        if isinstance(step, Pause):
            sleep(step.seconds)
        else:
            outcome = send(step)


async def run_async(
    waiting: Waiting, send: Callable[[Call], Awaitable[Reply | Failure]], sleep: Callable[[float], Awaitable[object]]
) -> Any:
    """Do the same as `run` on an event loop, asyncio's or Trio's."""
    import anyio  # noqa: PLC0415 - comes with httpx, which is not needed for requests

    try:
        return (await _carry_out_async(waiting.steps(), send, sleep)).native
    except GeneratorExit:
        raise  # the coroutine is closed: it may not await any more
    except BaseException:
        # A cancelled task gets its ticket cancelled too before it ends.
        with anyio.move_on_after(CANCEL_TIMEOUT, shield=True), suppress(Exception):
            await _carry_out_async(waiting.cancelling(), send, sleep)
        raise


async def _carry_out_async(
    steps: Generator[Call | Pause, Any, Any],
    send: Callable[[Call], Awaitable[Reply | Failure]],
    sleep: Callable[[float], Awaitable[object]],
) -> Any:
    """Do the same as `_carry_out` on an event loop."""
    outcome: Reply | Failure | None = None
    while True:
        try:
            step = steps.send(outcome)
        except StopIteration as end:
            if isinstance(outcome, Reply) and outcome is not end.value:
                await outcome.native.aclose()
            return end.value
        if isinstance(outcome, Reply):
            await outcome.native.aclose()
        outcome = None
        if isinstance(step, Pause):
            await sleep(step.seconds)
        else:
            outcome = await send(step)
