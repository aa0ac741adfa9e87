"""The harness itself: hosts are apart from the machine, faults are what they are called, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.netns.network import SUBNET

ROOT = Path(__file__).parents[2]
SLOW_LINK = str(Path(__file__).with_name("slow_link.py"))
ECHO = """
import socket
server = socket.create_server(("0.0.0.0", 7000))
print("listens on 0.0.0.0:7000", flush=True)
while True:
    connection, _ = server.accept()
    while data := connection.recv(100):
        connection.sendall(data)
    connection.close()
"""
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=float(sys.argv[2])) as connection:
    for word in sys.argv[3:]:
        connection.sendall(word.encode())
        print(connection.recv(100).decode(), flush=True)
"""
HOLD = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000), timeout=20) as connection:
    connection.sendall(b"hello")
    print("listens on", connection.recv(100).decode(), flush=True)
    sys.stdin.readline()
    connection.sendall(b"again")
    print(connection.recv(100).decode(), flush=True)
"""
COUNT = """
import socket
sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sink.bind(("0.0.0.0", 7000))
print("listens on 7000", flush=True)
count = 0
while (data := sink.recv(100)) != b"end":
    count += 1
print("heard", count, flush=True)
"""
SEND = """
import socket, sys
source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(400):
    source.sendto(b"x", (sys.argv[1], 7000))
for _ in range(40):
    source.sendto(b"end", (sys.argv[1], 7000))
"""

Start = Callable[..., Any]


@pytest.fixture
def pair(make_network: Callable[..., Any], start_on: Start) -> Any:
    """Two hosts, of which alpha echoes on TCP port 7000."""
    network = make_network("alpha", "beta")
    start_on(network["alpha"], sys.executable, "-c", ECHO).wait_for("listens on")
    return network


def ask(network: Any, *, wait_secs: float = 20) -> Any:
    """Let beta talk to alpha."""
    return network["beta"].run(sys.executable, "-c", ASK, network["alpha"].address, str(wait_secs), "hello")


def test_hosts_reach_each_other_and_nothing_else(pair: Any) -> None:
    """A host reaches its neighbour, and neither the machine's loopback nor its addresses."""
    assert ask(pair).stdout == "hello\n"
    with socket.create_server(("", 0)) as ours:
        port = str(ours.getsockname()[1])
        for address in ("127.0.0.1", *_machine("hostname", "-I").split()[:1]):
            out = pair["beta"].run(sys.executable, "-c", ASK.replace("7000", port), address, "5", "hello")
            assert "ConnectionRefusedError" in out.stderr or "unreachable" in out.stderr


def test_the_machine_is_not_touched(pair: Any) -> None:
    """No address, route or firewall rule of the hosts' network is in the machine's own namespace (others may work there)."""
    pair.partition("alpha", "beta")
    pair.lose("alpha", 0.1)
    for argv in (["ip", "address"], ["ip", "route", "show", "table", "all"], ["iptables", "-S"]):
        assert SUBNET not in _machine(*argv)
    assert SUBNET in pair["alpha"].run("iptables", "-S").stdout


def test_silent_partition_answers_nothing(pair: Any) -> None:
    """Who dials into a silent partition hears nothing at all; healed, all is as before."""
    pair.partition("alpha", "beta")
    assert "TimeoutError" in ask(pair, wait_secs=0.5).stderr
    pair.heal()
    assert ask(pair).stdout == "hello\n"


def test_loud_partition_refuses(pair: Any) -> None:
    """Who dials into a loud partition is refused at once."""
    pair.partition("alpha", "beta", loud=True)
    assert "ConnectionRefusedError" in ask(pair).stderr
    pair.heal()
    assert ask(pair).stdout == "hello\n"


def test_loud_partition_resets_what_is_open(pair: Any) -> None:
    """A connection that was open is reset by its next packet."""
    holder = subprocess.Popen(
        pair["beta"].argv(sys.executable, "-c", HOLD, pair["alpha"].address),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"listens on hello\n"
        pair.partition("alpha", "beta", loud=True)
        _, errors = holder.communicate(b"\n", timeout=30)
    assert b"ConnectionResetError" in errors


def test_a_third_host_is_not_parted(make_network: Callable[..., Any], start_on: Start) -> None:
    """A partition of two leaves the third reachable from both; ``isolate`` leaves a host nobody."""
    network = make_network("alpha", "beta", "gamma")
    start_on(network["alpha"], sys.executable, "-c", ECHO).wait_for("listens on")
    network.partition("beta", "gamma")
    assert ask(network).stdout == "hello\n"
    network.isolate("beta", loud=True)
    assert "ConnectionRefusedError" in ask(network).stderr


def test_loss_loses_about_its_part(make_network: Callable[..., Any], start_on: Start) -> None:
    """Of 400 datagrams at a loss of one half between 120 and 280 arrive (8 standard deviations)."""
    network = make_network("alpha", "beta")
    sink = start_on(network["alpha"], sys.executable, "-c", COUNT)
    sink.wait_for("listens on")
    network.lose("alpha", 0.5)
    assert network["beta"].run(sys.executable, "-c", SEND, network["alpha"].address).returncode == 0
    assert 120 < int(sink.wait_for("heard").split()[-1]) < 280


def test_slow_link_holds_every_byte(pair: Any, start_on: Start) -> None:
    """Through a link of 0.2 s each way an answer takes 0.4 s and more."""
    start_on(pair["beta"], sys.executable, SLOW_LINK, "127.0.0.1:7000", f"{pair['alpha'].address}:7000", "0.2").wait_for(
        "listens on"
    )
    began = time.monotonic()
    out = pair["beta"].run(sys.executable, "-c", ASK, "127.0.0.1", "20", "hello", "again")
    assert out.stdout == "hello\nagain\n"
    assert time.monotonic() - began > 0.8


def test_nothing_stays_behind_after_a_crash(make_network: Callable[..., Any], wait_until: Callable[..., None]) -> None:
    """When the process that made a network is killed, its namespaces and what runs in them go too."""
    make_network("probe").close()  # skips where it is not permitted
    program = textwrap.dedent(
        f"""
        import subprocess, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from tests.netns.network import Network
        network = Network("alpha", "beta").__enter__()
        child = subprocess.Popen(network["alpha"].argv("sleep", "600"))
        print(network["alpha"].namespace, child.pid, flush=True)
        time.sleep(600)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True) as maker:
        assert maker.stdout is not None
        namespace, child = maker.stdout.readline().decode().split()
        assert Path("/run/netns", namespace).exists()
        maker.send_signal(signal.SIGKILL)
    prefix = namespace.removesuffix("alpha")
    wait_until(lambda: not list(Path("/run/netns").glob(f"{prefix}*")), secs=30)
    wait_until(lambda: not _alive(int(child)), secs=30)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def _machine(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout
