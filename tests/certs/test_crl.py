"""Revocation lists against those that a node had before."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes

from blazen_certs import Authority
from blazen_certs.crl import build_crl, lists_gone_back
from blazen_certs.keys import load_issuing_key

GONE_BACK = [
    pytest.param((4, {1}), (5, {1}), True, id="lower-number"),
    pytest.param((5, set()), (5, {1}), True, id="another-with-the-same-number"),
    pytest.param((9, {2}), (5, {1}), True, id="lost-one-though-newer"),
    pytest.param((5, {1}), (5, {1}), False, id="the-same"),
    pytest.param((6, {1}), (5, {1}), False, id="signed-again"),
    pytest.param((6, {1, 2}), (5, {1}), False, id="one-more"),
]


@pytest.mark.parametrize(("new", "held", "gone_back"), GONE_BACK)
def test_older_lists_are_found(authority: Authority, now: datetime, new: Any, held: Any, gone_back: bool) -> None:
    """By number, and by what they lack."""
    issuer = authority.trust().issuer()
    key = load_issuing_key(issuer)

    def signed(number: int, serials: set[int]) -> Any:
        revoked = dict.fromkeys(serials, now)
        return build_crl(issuer.certificate, revoked, number=number, now=now).sign(key, hashes.SHA256())

    before = signed(*held)
    after = before if new == held else signed(*new)
    assert lists_gone_back([after], [before]) == ([(after, before)] if gone_back else [])


def test_lists_of_others_are_not_compared(store: Any, now: datetime) -> None:
    """A CA that is new, or has gone, is no older list."""
    authority = Authority.create(store, "mesh.test", regions=("eu", "us"), now=now)
    eu, us = (issuer.crl for issuer in authority.trust().issuers)
    assert lists_gone_back([eu], [us]) == []
    assert lists_gone_back([eu, us], [us]) == []
