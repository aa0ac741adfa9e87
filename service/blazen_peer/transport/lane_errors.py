"""How a frame of a lane ends without an answer."""

from __future__ import annotations

from blazen_peer.errors import BlazenError, PeerError, TransportError

__all__ = ["AnswerTooLargeError", "LaneBrokenError", "LaneShutError", "NobodyListensError", "UnclearEndError"]


class LaneBrokenError(TransportError):
    """The lane ended while a frame was open. ``may_have_run`` is False for one that was never written."""


class LaneShutError(LaneBrokenError):
    """The peer's gate lets the lane in no longer, and looked at no frame since: another lane may be let in.

    Attributes:
        refusal: What the gate answers.
    """

    def __init__(self, refusal: BlazenError) -> None:
        super().__init__(str(refusal), may_have_run=False)
        self.refusal = refusal


class NobodyListensError(TransportError):
    """No lane was opened, since a connection was refused: where it leads there is no process.

    Attributes:
        by_sidecar: The peer's own sidecar says so, of the peer. Otherwise it is what was dialled: the peer, where it has no
            sidecar, or else this end's own sidecar, of which nothing follows for the peer.
    """

    def __init__(self, message: str, by_sidecar: bool) -> None:
        super().__init__(message, may_have_run=False)
        self.args = (message, by_sidecar)
        self.by_sidecar = by_sidecar


class UnclearEndError(TransportError):
    """A lane was refused while its hello was being written, and gRPC lost what it was refused with: ask again."""

    def __init__(self) -> None:
        super().__init__("the lane was closed as it was opened", may_have_run=False)


class AnswerTooLargeError(PeerError):
    """The answer is kept by the peer, and does not fit a frame: the call is repeated on its own.

    Attributes:
        instance_id: The process that keeps it: any other would run the call again.
    """

    def __init__(self, message: str, instance_id: str) -> None:
        super().__init__(message)
        self.args = (message, instance_id)
        self.instance_id = instance_id
