"""``blazen-mesh ready``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from blazen_mesh.cli.options import AsJson
from blazen_mesh.cli.outcome import DONE, PROBLEMS, print_json
from blazen_mesh.cli.show import console
from blazen_mesh.ready import readiness, summary

__all__ = ["ready"]

POLL_SECS = 0.1


def ready(
    config_dir: Annotated[Path, typer.Option(metavar="DIR", help="What the sidecar was given as --config-dir.")],
    wait_secs: Annotated[float, typer.Option(min=0, help="How long to wait for it to be ready.")] = 0.0,
    as_json: AsJson = False,
) -> int:
    """Say whether a sidecar is ready: Envoy lives, its certificates do, and calls pass. A healthcheck for containers.

    Exit codes: 0 ready (degraded or not), 1 not ready. `python -m blazen_mesh.ready DIR` says the same and starts faster.

    [bold]Example[/bold]

      blazen-mesh ready --config-dir /run/blazen/analyst
    """
    until = time.monotonic() + wait_secs
    while not (status := readiness(config_dir))["ready"] and time.monotonic() < until:
        time.sleep(POLL_SECS)
    if as_json:
        print_json(status)
    else:
        console().print(summary(status), soft_wrap=True, highlight=False, markup=False)
    return DONE if status["ready"] else PROBLEMS
