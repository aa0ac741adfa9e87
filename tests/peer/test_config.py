"""Addresses and settings are parsed once, into values or one clear refusal."""

from __future__ import annotations

import math

import pytest

from blazen_peer.config import ServerSettings, check_timeout_secs, client_target, parse_listen_address
from blazen_peer.errors import ValidationError

LISTEN = [
    pytest.param("127.0.0.1:50051", "127.0.0.1:50051", True, id="loopback"),
    pytest.param("127.9.9.9:0", "127.9.9.9:0", True, id="anywhere-in-127"),
    pytest.param("localhost:0", "localhost:0", True, id="localhost"),
    pytest.param("[::1]:0", "[::1]:0", True, id="ipv6-loopback"),
    pytest.param("unix:/run/p.sock", "unix:/run/p.sock", True, id="unix"),
    pytest.param("0.0.0.0:50051", "0.0.0.0:50051", False, id="everywhere"),
    pytest.param("[::]:50051", "[::]:50051", False, id="everywhere-ipv6"),
    pytest.param("10.1.2.3:1", "10.1.2.3:1", False, id="private"),
    pytest.param("peer-b.local:1", "peer-b.local:1", False, id="a-name"),
]

NOT_LISTEN = [
    "",
    ":1",
    "host",
    "host:",
    "host:x",
    "host:70000",
    "::1:5",
    "[127.0.0.1]:5",
    "1.2.3:4",
    "a b:1",
    "unix:",
    "unix:" + "x" * 108,
]


@pytest.mark.parametrize(("text", "target", "is_local"), LISTEN)
def test_listen_address(text: str, target: str, is_local: bool) -> None:
    """A listen address is understood, and whether only this machine can reach it."""
    address = parse_listen_address(text)
    assert (address.target, address.is_local) == (target, is_local)


@pytest.mark.parametrize("text", NOT_LISTEN)
def test_not_a_listen_address(text: str) -> None:
    """Anything else is refused with a line that names it."""
    with pytest.raises(ValidationError, match="not valid"):
        parse_listen_address(text)


TARGETS = [
    pytest.param("http://127.0.0.1:16001", "127.0.0.1:16001", id="url"),
    pytest.param("http://peer-b.local:50051/", "peer-b.local:50051", id="name"),
    pytest.param("127.0.0.1:16001", "127.0.0.1:16001", id="bare"),
    pytest.param("http://[::1]:7", "[::1]:7", id="ipv6"),
    pytest.param("unix:/run/p.sock", "unix:/run/p.sock", id="unix"),
    pytest.param("unix:///run/p.sock", "unix:/run/p.sock", id="unix-url"),
]

NOT_TARGETS = [
    "",
    "http://",
    "http://h",
    "http://h:x",
    "http://h:99999",
    "ftp://h:1",
    "http://u@h:1",
    "http://h:1/p",
    "http://h:1?q=1",
    "h",
]


@pytest.mark.parametrize(("address", "target"), TARGETS)
def test_client_target(address: str, target: str) -> None:
    """A client's address becomes grpcio's target."""
    assert client_target(address) == target


@pytest.mark.parametrize("address", NOT_TARGETS)
def test_not_a_client_target(address: str) -> None:
    """Anything else is refused with a line that shows what is right."""
    with pytest.raises(ValidationError, match="use http://host:port or unix:PATH"):
        client_target(address)


@pytest.mark.parametrize("words", ["egress port", r"give tls=load_client_tls\("])
def test_https_without_tls(words: str) -> None:
    """A user who writes https learns of both ways: the sidecar's port, and TLS of one's own."""
    with pytest.raises(ValidationError, match=words):
        client_target("https://peer-b.local:50051")


@pytest.mark.parametrize(
    ("address", "target"),
    [
        pytest.param("https://peer-b.local:50051", "peer-b.local:50051", id="name"),
        pytest.param("https://10.0.0.2:1/", "10.0.0.2:1", id="v4"),
        pytest.param("https://[::1]:1", "[::1]:1", id="v6"),
    ],
)
def test_client_target_with_tls(address: str, target: str) -> None:
    """With TLS an https address becomes grpcio's target."""
    assert client_target(address, tls=True) == target


@pytest.mark.parametrize(
    "address", ["http://h:1", "h:1", "unix:/run/p.sock", "https://h", "https://h:1/p", "https://u@h:1", ""]
)
def test_not_a_client_target_with_tls(address: str) -> None:
    """With TLS anything else is refused with a line that shows what is right; tls= never goes over plain text."""
    with pytest.raises(ValidationError, match="https://"):
        client_target(address, tls=True)


@pytest.mark.parametrize("timeout", [-1, math.nan, "5", True, None])
def test_not_a_timeout(timeout: object) -> None:
    """A timeout is a number of seconds from 0 on."""
    with pytest.raises(ValidationError):
        check_timeout_secs(timeout)  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [0, 0.5, 60, 1e12, math.inf])
def test_timeout(timeout: float) -> None:
    """Absurd and infinite ones become finite."""
    assert math.isfinite(check_timeout_secs(timeout))


def test_settings_report_every_problem() -> None:
    """All settings out of their range are named at once."""
    with pytest.raises(ValidationError) as caught:
        ServerSettings(drain_secs=-1, max_runs=0, default_timeout_secs=math.inf)
    assert all(name in str(caught.value) for name in ("drain_secs", "max_runs", "default_timeout_secs"))


def test_the_default_timeout_is_within_the_most() -> None:
    """A default above the maximum is a mistake and is said."""
    with pytest.raises(ValidationError, match="above max_timeout_secs"):
        ServerSettings(default_timeout_secs=10, max_timeout_secs=5)
