"""``blazen-peer serve``: import the application, serve its steps, end the process whatever happens."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

from blazen_peer.cli.exporters import start_telemetry
from blazen_peer.cli.logs import log_to
from blazen_peer.config import ServerSettings
from blazen_peer.errors import BlazenError, ValidationError
from blazen_peer.runtime.registry import DEFAULT_REGISTRY
from blazen_peer.server import PeerServer
from blazen_peer.transport.tls import ServerTls

__all__ = ["end_process", "serve_app"]

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def serve_app(
    app_module: str,
    node_id: str,
    listen: str,
    *,
    require_identity: bool,
    sidecar_proof_file: Path | None,
    insecure: bool,
    tls: ServerTls | None,
    settings: ServerSettings,
    policy: Path | None,
    access_log: bool,
    log_level: str,
    log_format: str,
) -> None:
    """Serve what importing *app_module* registers, until a signal; then drain, and end the process.

    Raises:
        ValidationError: The module cannot be imported or registers nothing, or a setting is not usable.
        TransportError: The address cannot be bound.
    """
    if log_level not in _LEVELS:
        raise ValidationError(f"log level {log_level!r} is not one of {', '.join(_LEVELS)}")
    log_to(sys.stderr, _LEVELS[log_level], style=log_format, node_id=node_id, access_log=access_log)
    end_tracing = start_telemetry(node_id, os.environ)
    try:
        _import(app_module)
        server = PeerServer(
            node_id,
            require_identity=require_identity,
            sidecar_proof_file=sidecar_proof_file,
            insecure=insecure,
            settings=settings,
            policy=policy,
            access_log=access_log,
        )
        _spare_the_collector()
        server.serve_blocking(listen, tls=tls)
    finally:
        end_tracing()


def _spare_the_collector() -> None:
    """Have Python's cycle collector leave alone what was imported, and look less often: it took a fifth of a call's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def end_process(code: int) -> NoReturn:
    """End the process with *code*. A thread of the application's own that would hold the interpreter does not."""
    if any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _import(app_module: str) -> None:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.import_module(app_module)
    except BlazenError:
        raise
    except ModuleNotFoundError as error:
        hint = " (write my_app, not my_app.py)" if app_module.endswith(".py") else ""
        raise ValidationError(f"cannot import {app_module}: no module named {error.name!r}{hint}") from None
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename}, line {place.lineno}"
        raise ValidationError(f"cannot import {app_module}: {type(error).__name__}: {error} ({where})") from error
    if not DEFAULT_REGISTRY.steps():
        raise ValidationError(f'{app_module} registers no step: decorate its functions with @step("...")')
