"""``blazen-mesh diff``: what a change widens, narrows, and merely moves."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blazen_mesh import cli
from blazen_mesh.diff import diff
from blazen_mesh.mesh import Mesh, parse_mesh

POLICY = Path(__file__).with_name("policy.toml")
DAY = date(2027, 1, 1)
FLOW = {"from": "analyst", "to": "archive", "workflows": ["store"], "data": ["personal"], "why": "kept for seven years"}
PolicyTable = Callable[..., dict[str, Any]]

WIDENED = [
    pytest.param(
        {"flows.3": FLOW, "peers.analyst.egress.archive": {"personal": 16009}},
        "analyst (eu) may now call store on archive (eu) with personal data: kept for seven years",
        id="flow",
    ),
    pytest.param(
        {"flows.0.workflows": ["analyze", "embed", "judge", "rate"]},
        "intake (eu) may now call judge and rate on analyst (eu) with personal data: analysis",
        id="workflows",
    ),
    pytest.param(
        {"flows.0.data": ["personal", "public"]},
        "intake (eu) may now call analyze and embed on analyst (eu) with public data: analysis",
        id="class-of-a-flow",
    ),
    pytest.param(
        {"flows.2.until": date(2027, 6, 30)},
        "intake (eu) may for longer call embed on gpu-1 (us) with internal data until 2027-06-30: no GPU in the EU yet",
        id="exception-goes-on",
    ),
    pytest.param(
        {"flows.2.until": None},
        "intake (eu) may for longer call embed on gpu-1 (us) with internal data: no GPU in the EU yet",
        id="exception-for-good",
    ),
    pytest.param({"data.0.regions": ["eu", "us"]}, "personal data may be in us too", id="class-in-more-regions"),
    pytest.param(
        {"peers.analyst.region": "us", "flows.0": None, "peers.intake.egress.analyst": {"public": 16002}},
        "intake (eu) may now call translate on analyst (us) with public data: translation",
        id="peer-elsewhere",
    ),
    pytest.param({"crl": False}, "sidecars no longer look at revocation lists", id="no-revocation"),
    pytest.param({"connection_age_secs": 7200}, "keeps an open connection for up to 7200 s, not 3600", id="older-connections"),
    pytest.param({"calls_per_sec": 20_000}, "one caller may make 20000 calls a second, not 10000", id="more-calls"),
    pytest.param(
        {"peers.intake.egress.gpu-1.internal": {"port": 16003, "inject_token": True}},
        "every process that reaches 127.0.0.1:16003 is intake: its way to gpu-1 internal injects the token",
        id="token",
    ),
    pytest.param(
        {"peers.analyst.run": {"app": "app", "require_identity": False}},
        "local programs that hold the token may call analyst past its sidecar",
        id="past-the-sidecar",
    ),
    pytest.param(
        {"data.0": None, "flows.0": None, "peers.intake.egress.analyst": {"public": 16002}},
        "internal is the strictest data class now: workflows that declare none take it",
        id="strictest-class-gone",
    ),
    pytest.param({"trust_domain": "other.test"}, "the trust domain is other.test, not mesh.test", id="trust-domain"),
]

NARROWED = [
    pytest.param(
        {"flows.1": None, "peers.intake.egress.analyst.public": None},
        "intake (eu) may no longer call translate on analyst (eu) with public data: translation",
        id="flow",
    ),
    pytest.param(
        {"flows.0.workflows": ["embed"]}, "may no longer call analyze on analyst (eu) with personal data", id="workflow"
    ),
    pytest.param({"flows.2.until": date(2027, 1, 15)}, "may for a shorter time call embed on gpu-1", id="ends-earlier"),
    pytest.param({"flows.0.until": date(2027, 1, 15)}, "may for a shorter time call analyze and embed", id="ends-now"),
    pytest.param({"data.2.regions": ["eu"]}, "public data may no longer be in us", id="class-in-fewer-regions"),
    pytest.param({"connection_age_secs": 600}, "for up to 600 s, not 3600", id="younger-connections"),
    pytest.param({"calls_per_sec": 10}, "one caller may make 10 calls a second", id="fewer-calls"),
]

MOVED = [
    pytest.param(
        {"peers.intake.egress.gpu-1.internal": 16013}, "intake: its way to gpu-1 internal is 127.0.0.1:16013", id="port"
    ),
    pytest.param(
        {"peers.gpu-1.sidecar": "gpu-1.us:15001"}, "gpu-1: its sidecar is gpu-1.us:15001, not 127.0.0.1", id="sidecar"
    ),
    pytest.param(
        {"peers.gpu-1.listen": ["127.0.0.1:50053", "127.0.0.1:50063"]},
        "gpu-1: its peer is 127.0.0.1:50053 and 127.0.0.1:50063, not 127.0.0.1:50053",
        id="replicas",
    ),
    pytest.param({"peers.archive": None}, "the peer archive is gone", id="peer-gone"),
    pytest.param({"flows.0.why": "law"}, "may as before, for another reason, call analyze and embed", id="reason"),
    pytest.param({"data.0.why": "law"}, "personal data is described otherwise: law", id="class-reason"),
    pytest.param({"telemetry": {"otlp": "collector:4317"}}, "spans go to collector:4317", id="telemetry"),
    pytest.param({"peers.intake.run": {"app": "app"}}, "intake: `up` starts its peer otherwise", id="run"),
    pytest.param(
        {"data.3": {"name": "open", "regions": ["eu"], "why": "x"}}, "the data class open is new", id="laxest-class-more"
    ),
]


@pytest.mark.parametrize(
    ("changes", "words", "verdict"),
    [
        *(pytest.param(*one.values, "widened", id=f"widened-{one.id}") for one in WIDENED),
        *(pytest.param(*one.values, "narrowed", id=f"narrowed-{one.id}") for one in NARROWED),
        *(pytest.param(*one.values, "moved", id=f"moved-{one.id}") for one in MOVED),
    ],
)
def test_change(changes: dict[str, Any], words: str, verdict: str, policy_table: PolicyTable) -> None:
    """Each change is told in words, as what it is; undone, what widened narrows and what narrowed widens."""
    old, new = parse_mesh(policy_table()), parse_mesh(policy_table(changes))
    found = diff(old, new, DAY)
    assert found.verdict == verdict, found
    assert any(words in line for line in getattr(found, verdict)), found
    undone = diff(new, old, DAY)
    if "trust_domain" not in changes:
        assert (bool(undone.widened), bool(undone.narrowed)) == (bool(found.narrowed), bool(found.widened)), undone


def test_stricter_order_is_wider(policy_table: PolicyTable) -> None:
    """Two classes that change places let the one that is stricter now into workflows that declare the other."""
    table = policy_table()
    first, *rest = table["data"]
    found = diff(parse_mesh(policy_table()), parse_mesh({**table, "data": [*rest, first]}), DAY)
    assert found.verdict == "widened"
    assert any("internal is stricter than personal now" in line for line in found.widened)


def test_same(policy_table: PolicyTable) -> None:
    """A file is not different from itself, nor are the same permissions in other tables."""
    table = policy_table()
    assert diff(parse_mesh(table), parse_mesh(table), DAY).verdict == "same"
    first, *rest = table["flows"]
    parted = [*rest, {**first, "workflows": ["embed"]}, {**first, "workflows": ["analyze"]}]
    assert diff(parse_mesh(table), parse_mesh({**table, "flows": parted}), DAY).verdict == "same"


def test_what_ended_counts_for_nothing(policy_table: PolicyTable) -> None:
    """To take an ended exception away narrows nothing; to give it a new end widens."""
    after = date(2027, 2, 1)
    old = parse_mesh(policy_table())
    gone = parse_mesh(policy_table({"flows.2": None, "peers.intake.egress.gpu-1": None}))
    assert diff(old, gone, after).moved == ("the flow intake -> gpu-1 that ended on 2027-01-31 is gone",)
    assert diff(old, gone, after).verdict == "moved"
    assert diff(old, gone, DAY).verdict == "narrowed"
    assert diff(old, parse_mesh(policy_table({"flows.2.until": date(2027, 3, 1)})), after).verdict == "widened"


NODES, WORKFLOWS, CLASSES = ("a", "b", "c"), ("work", "rest"), ("strict", "lax")


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    """Any mesh of three nodes: a set of permissions, one flow for each."""
    every = [(a, b, work, name) for a, b, work, name in product(NODES, NODES, WORKFLOWS, CLASSES) if a != b]
    flows = draw(st.sets(st.sampled_from(every), max_size=8))
    peers: dict[str, Any] = {
        node: {"sidecar": f"127.0.0.1:{10 + place}", "listen": f"127.0.0.1:{20 + place}", "egress": {}}
        for place, node in enumerate(NODES)
    }
    for caller, callee, _, name in flows:
        ports = peers[caller]["egress"].setdefault(callee, {})
        ports[name] = 100 + 10 * NODES.index(caller) + 2 * NODES.index(callee) + CLASSES.index(name)
    return parse_mesh(
        {
            "trust_domain": "mesh.test",
            "data": [{"name": name, "why": "test"} for name in CLASSES],
            "peers": peers,
            "flows": [{"from": a, "to": b, "workflows": [work], "data": [name], "why": "test"} for a, b, work, name in flows],
        }
    )


def allowed(mesh: Mesh) -> set[tuple[str, str, str, str]]:
    """Every call that the evaluator allows."""
    policy = mesh.policy()
    every = product(NODES, NODES, WORKFLOWS, CLASSES)
    return {
        call
        for call in every
        if policy.decide(mesh.identity(call[0]), mesh.identity(call[1]), call[2], call[3], laxest=CLASSES[-1]).allowed
    }


@given(meshes(), meshes())
def test_agrees_with_the_evaluator(old: Mesh, new: Mesh) -> None:
    """It says wider exactly when the evaluator allows a call that it refused, and narrower the other way round."""
    found = diff(old, new, DAY)
    assert bool(found.widened) == bool(allowed(new) - allowed(old))
    assert bool(found.narrowed) == bool(allowed(old) - allowed(new))
    assert not found.moved


@pytest.mark.parametrize(
    ("edit", "code", "words"),
    [
        pytest.param(("", ""), 0, "no difference", id="same"),
        pytest.param(('["analyze", "embed"]', '["embed"]'), 0, "- intake (eu) may no longer call analyze", id="narrower"),
        pytest.param(("16001", "16011"), 0, "~ intake: its way to analyst personal is 127.0.0.1:16011", id="moved"),
        pytest.param(("127.0.0.1:15003", "gpu:15003"), 0, "the same is allowed", id="moved-summary"),
        pytest.param(('["analyze", "embed"]', '["analyze", "rate"]'), 1, "+ intake (eu) may now call rate", id="wider"),
        pytest.param(('"embed"]\ndata = ["personal"]', '"embed"]'), 2, "new.toml: flows[0].data: say which", id="wrong-file"),
    ],
)
def test_command(edit: tuple[str, str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 is the same or narrower, 1 wider, 2 a file that cannot be compared: enough to gate a merge."""
    new = tmp_path / "new.toml"
    new.write_text(POLICY.read_text().replace(*edit))
    assert cli.main(["diff", str(POLICY), str(new)]) == code
    captured = capsys.readouterr()
    assert words in captured.out + captured.err


def test_command_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--json`` has the verdict and the lines."""
    new = tmp_path / "new.toml"
    new.write_text(POLICY.read_text().replace('["analyze", "embed"]', '["rate"]'))
    assert cli.main(["diff", str(POLICY), str(new), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "widened"
    assert (len(found["widened"]), len(found["narrowed"]), found["moved"]) == (1, 1, [])
    assert cli.main(["diff", str(POLICY), str(tmp_path / "none.toml"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "Validation"
