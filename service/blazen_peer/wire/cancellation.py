"""What cancelling a run comes to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["CancelOutcome", "CancelReport"]


class CancelOutcome(StrEnum):
    """What became of a run that was to be cancelled."""

    STOPPED = "stopped"
    ALREADY_FINISHED = "already finished"
    STILL_STOPPING = "still stopping"


@dataclass(frozen=True, slots=True)
class CancelReport:
    """What a server saw when it cancelled a run.

    Attributes:
        outcome: ``STOPPED``: nothing of it runs any more. ``ALREADY_FINISHED``: it was over before. ``STILL_STOPPING``: its
            callers have their answer, and steps of it go on: a plain function in its thread, or a step that swallows its
            cancellation.
        step_ids: Those steps, sorted.
        stopping_secs: How long ago the run was stopped, where steps of it go on.
    """

    outcome: CancelOutcome
    step_ids: tuple[str, ...] = ()
    stopping_secs: float = 0.0
