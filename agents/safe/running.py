"""Runs an app inside a running event loop: no signal handlers, no logging set-up, no thread, no process exit."""

import asyncio
import logging

from .application import SafeApp

log = logging.getLogger(__name__)

STOP_S = 90.0
"""A stop that takes longer hangs: more than all the waits within it together."""


async def run_app(app: SafeApp, *, stop: asyncio.Event) -> None:
    """Starts `app`, and stops it once `stop` is set: intake first, handlers at work awaited up to `drain_s`, commit, leave.

    Raises what the app crashed of, or TimeoutError where it did not stop: a process that ends is started again, one that
    hangs is not. Cancelling stops it the same way.
    """
    app.loop = asyncio.get_running_loop()
    starting = asyncio.create_task(app.start(), name=f"{app.conf.id} start")
    waits = {asyncio.create_task(stop.wait()), asyncio.create_task(app._crashed.wait())}
    try:
        pending = {starting, *waits}
        while pending & waits == waits:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if starting in done:
                starting.result()
    finally:
        for wait in waits:
            wait.cancel()
        stopping = asyncio.create_task(_stop(app, starting), name=f"{app.conf.id} stop")
        await asyncio.wait({stopping}, timeout=STOP_S)
    if app.crash_reason is not None:
        raise app.crash_reason
    if not stopping.done():
        raise TimeoutError(f"the worker did not stop within {STOP_S:.0f} s: it is left where it stands, its events are delivered again")
    stopping.result()


async def _stop(app: SafeApp, starting: "asyncio.Task[None]") -> None:
    _let_agents_end(app)
    await app.stop()
    if not starting.done():
        starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)


def _let_agents_end(app: SafeApp) -> None:
    """A crash of the app counts as one of each agent. Their supervisors look every five seconds: an end that takes longer would find all
    agents started anew, and wait for them for ever."""
    for agent in app.agents.values():
        supervisor = getattr(agent, "supervisor", None)
        if supervisor is not None:
            supervisor._crashed.set()
