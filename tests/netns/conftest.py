"""Hosts in network namespaces.

def test_something(make_network, start_on):
    network = make_network("alpha", "beta")
    server = start_on(network["alpha"], "blazen-certs", "serve", ...)      # a process of that host, as start_peer's
    network["beta"].run("blazen-certs", "join", ...)
    network.partition("alpha", "beta")

Skipped with the reason where namespaces are not permitted; with NETNS_REQUIRED set the tests fail instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.netns.network import Host, Network, NetworkError

MakeNetwork = Callable[..., Network]


@pytest.fixture
def make_network() -> Iterator[MakeNetwork]:
    """A factory of networks: ``make_network("alpha", "beta")``."""
    with ExitStack() as stack:

        def make(*names: str) -> Network:
            try:
                return stack.enter_context(Network(*names))
            except NetworkError as error:
                if os.environ.get("NETNS_REQUIRED"):
                    raise
                pytest.skip(f"no network namespaces here: {error}")

        yield make


@pytest.fixture
def start_on(start_peer: Callable[..., Any]) -> Callable[..., Any]:
    """A factory: run a command on a host, ``start_on(host, *argv, cwd=..., env=...)``; killed at the end if it still runs."""

    def start(host: Host, *argv: str, **options: Any) -> Any:
        return start_peer(*host.argv(*argv), **options)

    return start
