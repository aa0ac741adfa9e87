"""What a peer in a process of its own serves to those who send it garbage."""

from __future__ import annotations

import asyncio

from blazen_peer import Context, Event, StartEvent, StopEvent, step


@step("echo")
async def echo(event: StartEvent) -> StopEvent:
    """Give the input back."""
    return StopEvent(result=event.data)


@step("hold")
async def hold(event: StartEvent) -> StopEvent:
    """Go on for longer than any test."""
    await asyncio.sleep(600)
    return StopEvent(result=event.data)


@step("emit")
async def emit(event: StartEvent, ctx: Context) -> StopEvent:
    """Emit as many events as the input says, and then go on."""
    for number in range(event.data):
        ctx.emit(Event.dynamic("demo::Number", {"n": number}))
        if number % 100 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(600)
    return StopEvent(result="done")
