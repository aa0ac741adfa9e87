"""What a client learns as it opens a lane: by sidecars, in headers that ``blazen_mesh.routes`` sets; or why there is none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import grpc

from blazen_peer.errors import BlazenError, PeerError, TransportError
from blazen_peer.transport.lane_errors import NobodyListensError, UnclearEndError
from blazen_peer.transport.status import DETAILS_KEY, raised_by

__all__ = ["REPLICA", "STREAM_SECS", "Told", "not_opened", "told_by"]

STREAM_SECS: Final = "x-blazen-max-stream-secs"
REPLICAS: Final = "x-blazen-replicas"
REPLICA: Final = "x-blazen-replica"
_LOST: Final = (grpc.StatusCode.INTERNAL, "Internal error from Core")  # grpc.aio, of a write that met the call's end
_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)
_NAME = re.compile(r"[!-~]{1,256}", re.ASCII)
# gRPC's words where it dialled in vain, and Envoy's.
_NOT_CONNECTED = re.compile(r"failed to connect to all addresses|connection failure", re.IGNORECASE)
_REFUSED = re.compile(r"Connection[ _]refused|No[ _]such[ _]file[ _]or[ _]directory")


class Told(NamedTuple):
    """What was told.

    Attributes:
        stream_secs: How long the sidecars let a stream be, in seconds; None: no sidecar says.
        replicas: How many processes stand behind the address.
        replica: Which of them this is: sent along with a lane that is opened later, it leads there. None where there is one.
    """

    stream_secs: float | None
    replicas: int
    replica: str | None

    @property
    def by_sidecar(self) -> bool:
        """Whether it comes by the peer's own sidecar."""
        return self.stream_secs is not None


def told_by(headers: Iterable[tuple[str, str | bytes]]) -> Told:
    """Return what *headers* tell; what is not well formed tells nothing."""
    found = dict(headers)
    replica = found.get(REPLICA)
    return Told(
        _number(found.get(STREAM_SECS)),
        int(_number(found.get(REPLICAS)) or 1) or 1,
        replica if isinstance(replica, str) and _NAME.fullmatch(replica) else None,
    )


def not_opened(error: grpc.aio.AioRpcError) -> BlazenError:
    """Return the error for a lane that was not opened: the peer's own refusal, or that there is none to be had.

    A sidecar that refuses says nothing but a code. It may know of no lanes, and let calls through that go by themselves.
    """
    if (error.code(), error.details()) == _LOST:
        return UnclearEndError()
    failure = raised_by(error)
    if isinstance(failure, TransportError):
        text = str(failure)
        if _NOT_CONNECTED.search(text) and _REFUSED.search(text):
            headers = (*(error.initial_metadata() or ()), *(error.trailing_metadata() or ()))
            return NobodyListensError(text, told_by(headers).by_sidecar)
        return type(failure)(text, may_have_run=False)
    by_the_peer = any(name == DETAILS_KEY for name, _ in error.trailing_metadata() or ())
    return failure if by_the_peer else PeerError(f"there is no lane to be had: {failure}", kind="Unsupported")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else None
