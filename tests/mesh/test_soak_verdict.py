"""How the soak judges a call that failed: only evidence that it was in flight on a killed process excuses it."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from bench.soak_load import Call, Load
from bench.soak_mesh import PeerProcess, SoakMesh
from bench.soak_verdict import explained, judge_calls
from blazen_peer import TransportError, WorkflowError

KILLED_AT = 100.0, 100.1
ENDED = cast("subprocess.Popen[bytes]", None)
MAYBE = TransportError("the lane broke")
NOT = TransportError("nobody is there", may_have_run=False)


class Mesh(SoakMesh):
    """Two processes that wrote what they ran, the first of them killed, and a sidecar's log."""

    def __init__(self, home: Path, killed: list[str], other: list[str]) -> None:
        super().__init__(home, [], 0)
        for number, names in enumerate((killed, other)):
            journal = home / f"executed-{number}"
            journal.write_text("".join(f"{name}\n" for name in names))
            self.ended.append(PeerProcess(ENDED, f"127.0.0.1:{number + 1}", journal, f"instance-{number}", 0.0))
        self.ended[0].killed = KILLED_AT
        line = {"log": "call", "invocation_id": "by-the-first", "upstream": "127.0.0.1:1"}
        (home / "analyst-sidecar-1.log").write_text(f"not json\n{json.dumps(line)}\n")


def call(error: Exception = MAYBE, *, begun: float = 99.5, ended: float = 101.0, **more: Any) -> Call:
    """Return one that failed."""
    return Call("call-1", begun, ended, error=error, **more)


CASES = [
    pytest.param(call(), ["call-1"], [], "ran_there", id="its-own-journal"),
    pytest.param(call(lanes=["instance-0"]), [], [], "sent_there", id="by-a-lane-to-it"),
    pytest.param(call(begun=100.5, lanes=["instance-0"]), [], [], "sent_late", id="by-a-lane-to-it-just-after"),
    pytest.param(call(NOT, lanes=["instance-0"]), [], [], "sent_there", id="by-a-lane-to-it-not-run"),
    pytest.param(call(lanes=["instance-1", "instance-0"]), [], [], "sent_there", id="moved-to-it"),
    pytest.param(call(invocation_ids=["by-the-first"]), [], [], "sent_there", id="alone-says-the-log"),
    pytest.param(call(), [], [], "unexplained", id="only-at-that-time"),
    pytest.param(call(lanes=["instance-1"]), [], [], "unexplained", id="by-a-lane-to-another"),
    pytest.param(call(invocation_ids=["another"]), [], [], "unexplained", id="alone-and-not-in-the-log"),
    pytest.param(call(lanes=["instance-0"]), [], ["call-1"], "unexplained", id="ran-on-another"),
    pytest.param(call(ended=99.9), ["call-1"], [], "unexplained", id="ended-before-the-kill"),
    pytest.param(call(begun=102.0, ended=103.0, lanes=["instance-0"]), [], [], "unexplained", id="begun-long-after-the-kill"),
    pytest.param(call(WorkflowError("it failed")), ["call-1"], [], "unexplained", id="another-error"),
    pytest.param(call(NOT), ["call-1"], [], "lies", id="said-not-to-have-run"),
]


@pytest.mark.parametrize(("failed", "killed", "other", "where"), CASES)
def test_is_tied(tmp_path: Path, failed: Call, killed: list[str], other: list[str], where: str) -> None:
    """A call is tied to a kill by the journal, by its lane's process or by the sidecar's log; time alone is no excuse."""
    load = Load(cast("Any", None), 1.0, named=False, failed=[failed])
    ends = explained(load, Mesh(tmp_path, killed, other), Counter([*killed, *other]))
    assert getattr(ends, where) == [failed]
    assert bool(ends.tied) == (where != "unexplained")


def judged(mesh: SoakMesh, **of_load: Any) -> list[str]:
    """Return what is wrong with a load of two calls, one of them answered."""
    load = Load(cast("Any", None), 1.0, named=False, sent=2, secs=2.0, answered=1, by_lanes=2, **of_load)
    return judge_calls(load, mesh, lanes=True, kills=True, peak_mib=1.0)[1]


def test_all_is_well(tmp_path: Path) -> None:
    """One call answered and run once, and one that was lost with its process: nothing is wrong."""
    assert judged(Mesh(tmp_path, ["call-1"], ["call-2"]), failed=[call()]) == []


WRONG = [
    pytest.param(["call-1"], ["call-1", "call-2"], {"failed": [call()]}, "executed more than once: 1", id="twice"),
    pytest.param(["call-1"], [], {"failed": [call()]}, "never executed: 1", id="never"),
    pytest.param(["call-1"], ["call-2"], {"failed": [call()], "without_end": 1}, "without an end: 1", id="without-an-end"),
    pytest.param(["call-1"], ["call-2"], {"failed": [call(NOT)]}, "said not to have run, and ran: call-1", id="a-lie"),
    pytest.param(["call-2"], ["call-1"], {"failed": [call()]}, "unexplained: TransportError", id="unexplained"),
    pytest.param(["call-1"], ["call-2"], {}, "answered with their own id: 1, not 2", id="neither-answer-nor-error"),
]


@pytest.mark.parametrize(("killed", "other", "of_load", "wrong"), WRONG)
def test_is_wrong(tmp_path: Path, killed: list[str], other: list[str], of_load: dict[str, Any], wrong: str) -> None:
    """What must not be is named."""
    assert any(line.startswith(wrong) for line in judged(Mesh(tmp_path, killed, other), **of_load))
