"""What every test starts from: no variables of ours or of OpenTelemetry's, and no tokens of the developer's own."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every BLAZEN_* and OTEL_* variable away."""
    for name in list(os.environ):
        if name.startswith(("BLAZEN_", "OTEL_")):
            monkeypatch.delenv(name)
