"""The engine: which step runs next. Pure: no event loop, no clock, no thread.

A :class:`RunState` belongs to one run. Each of its methods is a tick (begun, sent, returned, raised, stopped) and gives back
commands: the work to start now, or the run's :class:`Ended`.
"""

from blazen_peer.engine.graph import GraphProblem, WorkflowWarning, check_graph
from blazen_peer.engine.retry import Retry
from blazen_peer.engine.routing import RoutingTable
from blazen_peer.engine.state import MAX_IN_FLIGHT, Commands, Ended, RunState, Work, message_of
from blazen_peer.engine.steps import StepDefinition, check_step_id

__all__ = [
    "MAX_IN_FLIGHT",
    "Commands",
    "Ended",
    "GraphProblem",
    "Retry",
    "RoutingTable",
    "RunState",
    "StepDefinition",
    "Work",
    "WorkflowWarning",
    "check_graph",
    "check_step_id",
    "message_of",
]
