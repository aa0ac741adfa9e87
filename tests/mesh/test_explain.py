"""``blazen-mesh explain``: the evaluator's word on a call, the place, and what would have to change."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from blazen_mesh import cli
from blazen_mesh.diff import diff
from blazen_mesh.explain import Call, explain, method_path
from blazen_mesh.mesh import Mesh, load_mesh, parse_mesh
from blazen_peer.policy import METHODS

POLICY = Path(__file__).with_name("policy.toml")
DAY = date(2027, 1, 31)


@pytest.fixture
def meant() -> Mesh:
    """The mesh of ``policy.toml``."""
    return load_mesh(POLICY)


ALLOWED = [
    pytest.param(Call("intake", "analyst", "analyze", "personal"), 0, "", id="strictest"),
    pytest.param(Call("intake", "analyst", "translate", "public"), 1, "declares data_class='public' or laxer", id="laxer"),
    pytest.param(Call("intake", "analyst", "translate", "public", "public"), 1, "", id="declared"),
    pytest.param(Call("intake", "gpu-1", "embed", "internal"), 2, "declares data_class='internal'", id="on-its-last-day"),
    pytest.param(
        Call("intake", "analyst", "analyze", "personal", method=method_path("DerefSessionRef")), 0, "", id="another-method"
    ),
]

REFUSED = [
    pytest.param(
        Call("intake", "gpu-1", "embed", "personal"),
        *("egress", "personal data may be in eu only, and gpu-1 is in us", "use a peer in eu", ("analyst",)),
        id="region",
    ),
    pytest.param(
        Call("intake", "archive", "store", "personal"),
        *("egress", "no flow lets intake call archive", "add to [[flows]]: from = ", ()),
        id="no-flow",
    ),
    pytest.param(
        Call("analyst", "intake", "analyze", "personal"),
        "egress",
        "no flow lets",
        "add to [[flows]]: from = ",
        (),
        id="other-way",
    ),
    pytest.param(
        Call("intake", "analyst", "embed", "internal"),
        *(
            "egress",
            "personal, public data may flow there, internal may not",
            'workflows = ["embed"], data = ["internal"], and why',
            ("gpu-1",),
        ),
        id="class",
    ),
    pytest.param(
        Call("intake", "analyst", "embed", None), "egress", "one data class must be said", "say one of", (), id="none"
    ),
    pytest.param(
        Call("intake", "analyst", "embed", "secret"), "egress", "no data class is called", "[[data]]", (), id="unknown"
    ),
    pytest.param(
        Call("intake", "analyst", "analyze", "personal", method=method_path("ServerReflectionInfo")),
        *("ingress", "no flow opens the method 'ServerReflectionInfo'", "own services", ()),
        id="method",
    ),
    pytest.param(
        Call("intake", "analyst", "delete", "personal"),
        *("server", "the flows name analyze, embed, translate", "flows[0].workflows: add 'delete'", ()),
        id="workflow",
    ),
    pytest.param(
        Call("intake", "analyst", "translate", "public", "personal"),
        *("server", "declares 'personal'; public is laxer", "data_class='public'", ()),
        id="declared-stricter",
    ),
]


@pytest.mark.parametrize(("call", "flow", "assumes"), ALLOWED)
def test_allowed(meant: Mesh, call: Call, flow: int, assumes: str) -> None:
    """An allowed call names its flow by its place in the file, and what the answer depends on."""
    found = explain(meant, call, DAY)
    assert (found.decision.allowed, found.decision.place, found.flow, found.instead) == (True, "server", flow, ())
    assert all(place.allowed for place in found.places)
    assert assumes in found.assumes
    assert bool(assumes) == bool(found.assumes)


@pytest.mark.parametrize(("call", "place", "reason", "fix", "instead"), REFUSED)
def test_refused(meant: Mesh, call: Call, place: str, reason: str, fix: str, instead: tuple[str, ...]) -> None:
    """A refused call tells the first place that refuses it, why, what would have to change, and who else could be called."""
    found = explain(meant, call, DAY)
    assert (found.decision.allowed, found.decision.place, found.flow) == (False, place, None)
    assert reason in found.decision.reason
    assert any(fix in line for line in found.changes), found.changes
    assert found.instead == instead
    assert next(one.place for one in found.places if not one.allowed) == place


def test_exception_that_is_over(meant: Mesh) -> None:
    """When only its end stands against a call, that is the reason, whatever the evaluator would say of the rest."""
    found = explain(meant, Call("intake", "gpu-1", "embed", "internal"), date(2027, 2, 1))
    assert found.decision.allowed is False
    assert found.decision.reason == "the flow that allowed it, flows[2] intake -> gpu-1, ended on 2027-01-31"
    assert found.changes == ("give flows[2] a new `until`, and a reason for it",)


PORT = 16100
SMALLEST = [
    pytest.param(
        Call("analyst", "archive", "store", "personal"),
        (
            'add to [[flows]]: from = "analyst", to = "archive", workflows = ["store"], data = ["personal"], and why',
            "give peers.analyst.egress.archive.personal a free port",
        ),
        {
            "flows.3": {"from": "analyst", "to": "archive", "workflows": ["store"], "data": ["personal"], "why": "test"},
            "peers.analyst.egress.archive.personal": PORT,
        },
        id="flow-and-port",
    ),
    pytest.param(
        Call("intake", "analyst", "rate", "public"),
        ("flows[1].workflows: add 'rate'",),
        {"flows.1.workflows": ["translate", "rate"]},
        id="workflow",
    ),
    pytest.param(
        Call("intake", "analyst", "translate", "internal"),
        ("flows[1].data: add 'internal'", "give peers.intake.egress.analyst.internal a free port"),
        {"flows.1.data": ["public", "internal"], "peers.intake.egress.analyst.internal": PORT},
        id="class-and-port",
    ),
    pytest.param(
        Call("intake", "analyst", "analyze", "internal"),
        (
            'add to [[flows]]: from = "intake", to = "analyst", workflows = ["analyze"], data = ["internal"], and why',
            "give peers.intake.egress.analyst.internal a free port",
        ),
        {
            "flows.3": {"from": "intake", "to": "analyst", "workflows": ["analyze"], "data": ["internal"], "why": "test"},
            "peers.intake.egress.analyst.internal": PORT,
        },
        id="a-flow-of-its-own",
    ),
]


@pytest.mark.parametrize(("call", "changes", "edit"), SMALLEST)
def test_changes_are_the_smallest(
    meant: Mesh, call: Call, changes: tuple[str, ...], edit: dict[str, Any], policy_table: Callable[..., dict[str, Any]]
) -> None:
    """What is to be changed has its place in the file; done, it allows that call and nothing else."""
    assert explain(meant, call, DAY).changes == changes
    edited = parse_mesh(policy_table(edit))
    assert explain(edited, call, DAY).decision.allowed
    (widened,) = diff(meant, edited, DAY).widened
    assert f"may now call {call.workflow} on {call.callee}" in widened
    assert f"with {call.data_class} data" in widened


def test_methods_by_name() -> None:
    """Each method that a flow opens may be said by its name; anything else stays as it is."""
    assert [method_path(path.rpartition("/")[2]) for path in METHODS] == list(METHODS)
    assert [method_path(path) for path in METHODS] == list(METHODS)
    assert method_path("/x/y") == "/x/y"


BASE = ["explain", "--mesh", str(POLICY), "--from", "intake", "--on", "2027-01-31"]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        pytest.param(
            ["--to", "analyst", "--workflow", "embed", "--data", "personal"],
            *(0, ["ALLOW by flows[0] intake -> analyst: analysis", "egress:  allow  127.0.0.1:16001", "server:  allow  127.0"]),
            id="allow",
        ),
        pytest.param(
            ["--to", "gpu-1", "--workflow", "embed", "--data", "personal"],
            *(1, ["DENY at the egress of intake: personal data may be in eu only", "change:", "instead: analyst"]),
            id="deny",
        ),
        pytest.param(
            ["--to", "gpu-1", "--workflow", "embed", "--data", "internal"],
            *(0, ["flows[2] intake -> gpu-1 (until 2027-01-31): no GPU in the EU yet", "if:", "declares"]),
            id="exception",
        ),
        pytest.param(
            ["--to", "analyst", "--workflow", "embed", "--data", "personal", "--method", "ServerReflectionInfo"],
            *(1, ["DENY at the ingress of analyst"]),
            id="method",
        ),
        pytest.param(
            ["--to", "nobody", "--workflow", "embed"],
            *(2, ["no peer is called 'nobody'; there are: analyst, archive, gpu-1, intake"]),
            id="no-such-peer",
        ),
        pytest.param(["--to", "analyst"], 2, ["Missing option '--workflow'"], id="no-workflow"),
        pytest.param(["--to", "analyst", "--workflow", "x", "--on", "soon"], 2, ["--on: 'soon' is not a day"], id="no-day"),
    ],
)
def test_command(argv: list[str], code: int, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 is yes, 1 no, 2 a wrong question; the words say the rest."""
    assert cli.main([*BASE, *argv]) == code
    captured = capsys.readouterr()
    for word in words:
        assert word in captured.out + captured.err


def test_command_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """``--json`` tells it all in one object."""
    assert cli.main([*BASE, "--to", "gpu-1", "--workflow", "embed", "--data", "internal", "--json"]) == 0
    found: Any = json.loads(capsys.readouterr().out)
    assert (found["allowed"], found["place"], found["changes"], found["instead"]) == (True, "server", [], [])
    assert found["flow"] == {"index": 2, "why": "no GPU in the EU yet", "until": "2027-01-31"}
    assert found["call"]["data"] == "internal"
    assert cli.main([*BASE, "--to", "gpu-1", "--workflow", "embed", "--data", "personal", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["allowed"], found["place"], found["flow"], found["instead"]) == (False, "egress", None, ["analyst"])
    assert [place["allowed"] for place in found["places"]] == [False, False, False]
