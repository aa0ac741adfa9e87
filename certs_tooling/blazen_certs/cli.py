"""The command ``blazen-certs``: reads arguments, calls, prints. Exit codes: 0 done, 1 a check failed, 2 wrong use."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from blazen_certs import store
from blazen_certs.authority import Authority, read_authority_certificate
from blazen_certs.describe import describe
from blazen_certs.errors import CertificateError, StoreError
from blazen_certs.facts import name_text, printable, sha256, time_text, timespan_text
from blazen_certs.pem import read_pem_file
from blazen_certs.show import object_table, report_lines
from blazen_certs.verify import node_named_by, verify_identity
from blazen_peer.errors import ValidationError
from blazen_peer.identity import check_node_id

__all__ = ["app", "entry", "main"]

_DONE, _CHECK_FAILED, _WRONG_USE = 0, 1, 2
# Typer carries click's classes under different module names from release to release; its own subclass always leads to them.
_UsageError: Any = typer.BadParameter.__mro__[1]
_MAX_LIFETIME_HOURS = 2160

app = typer.Typer(
    name="blazen-certs",
    help="Make and check the identities of a mesh: one CA, and a short-lived certificate for each node.\n\n"
    "[bold]Example[/bold]\n\n"
    "  blazen-certs init --trust-domain mesh.example\n\n"
    "  blazen-certs issue analyst\n\n"
    "  blazen-certs verify analyst",
    epilog="Exit codes: 0 done, 1 a check failed, 2 wrong use or a file that cannot be used.",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, and keys are among them
    context_settings={"help_option_names": ["-h", "--help"]},
)

_Store = Annotated[Path, typer.Option("--dir", metavar="DIR", help="The store: where the CA and the nodes' files are.")]
_AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
_DEFAULT_STORE = Path(".mesh/certs")


@app.command()
def init(
    trust_domain: Annotated[
        str, typer.Option("--trust-domain", metavar="NAME", help="What every identity begins with: spiffe://NAME/peer/...")
    ],
    directory: _Store = _DEFAULT_STORE,
    as_json: _AsJson = False,
) -> None:
    """Make the CA: a P-256 root that is valid for 10 years. An existing one is never overwritten.

    [bold]Example[/bold]

      blazen-certs init --trust-domain mesh.example
    """
    authority = Authority.create(directory, trust_domain)
    home, certificate = store.ca_directory(directory), authority.certificate
    if as_json:
        _print_json(
            {
                "trust_domain": trust_domain,
                "certificate": str(home / store.CA_CERTIFICATE),
                "key": str(home / store.CA_KEY),
                "not_after": time_text(certificate.not_valid_after_utc),
                "sha256": sha256(certificate),
            }
        )
        return
    _print(
        [
            Text.assemble("made the CA of ", (trust_domain, "cyan"), f": {name_text(certificate.subject)}"),
            f"  certificate  {home / store.CA_CERTIFICATE}  valid until {time_text(certificate.not_valid_after_utc)}",
            f"  key          {home / store.CA_KEY}  whoever has it can be any node: keep it on this machine",
            Text.assemble("next: ", (f"blazen-certs issue NODE{_dir_option(directory)}", "bold")),
        ]
    )


@app.command()
def issue(
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node's id: letters, digits, '.', '_', '-'.")],
    dns: Annotated[
        list[str] | None,
        typer.Option("--dns", metavar="NAME", help="DNS name, in place of NODE.TRUST-DOMAIN. May be given several times."),
    ] = None,
    lifetime_hours: Annotated[
        float, typer.Option(metavar="HOURS", help="How long it is valid: at most 2160 (90 days), and never longer than the CA.")
    ] = 24.0,
    directory: _Store = _DEFAULT_STORE,
    as_json: _AsJson = False,
) -> None:
    """Make a node's key and certificate. Again: makes new ones, which take the old ones' place in one step.

    [bold]Example[/bold]

      blazen-certs issue analyst

      blazen-certs issue analyst --dns analyst.internal --lifetime-hours 8
    """
    if not 0 < lifetime_hours <= _MAX_LIFETIME_HOURS:
        raise ValidationError(
            f"--lifetime-hours {lifetime_hours:g} is not allowed: use more than 0 and at most {_MAX_LIFETIME_HOURS}"
        )
    now = datetime.now(UTC).replace(microsecond=0)
    identity = Authority.open(directory).issue(
        node, now=now, lifetime=timedelta(hours=lifetime_hours), dns_names=tuple(dns or ())
    )
    end = identity.certificate.not_valid_after_utc
    if as_json:
        _print_json(
            {
                "node": node,
                "spiffe_id": str(identity.peer),
                "directory": str(identity.path),
                "version": identity.version,
                "certificate": str(identity.certificate_path),
                "key": str(identity.key_path),
                "bundle": str(identity.bundle_path),
                "serial": f"{identity.certificate.serial_number:x}",
                "not_after": time_text(end),
                "sha256": sha256(identity.certificate),
            }
        )
        return
    current = identity.path / store.CURRENT
    _print(
        [
            Text.assemble("issued ", (str(identity.peer), "cyan")),
            f"  files        {current} -> v{identity.version}  ({store.CERTIFICATE}, {store.KEY}, {store.BUNDLE})",
            f"  valid until  {time_text(end)}  ({timespan_text(end - now)})",
        ]
    )


@app.command()
def inspect(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE_OR_NODE...", help="PEM files, or nodes of the store. ./NAME is always a file.")
    ],
    directory: _Store = _DEFAULT_STORE,
    as_json: _AsJson = False,
) -> None:
    """Show what PEM files hold: certificates, chains, bundles, keys (never the key itself), requests, CRLs.

    The SHA-256 of a certificate is what Envoy writes as Hash= into its identity header.

    [bold]Example[/bold]

      blazen-certs inspect analyst

      blazen-certs inspect .mesh/certs/ca/ca.crt --json
    """
    now = datetime.now(UTC)
    found = [item for name in files for item in describe(read_pem_file(_file_of(name, directory)), now=now)]
    if as_json:
        _print_json({"objects": found})
        return
    for index, item in enumerate(found):
        _print(["", object_table(item)] if index else [object_table(item)])


@app.command()
def verify(
    target: Annotated[
        str, typer.Argument(metavar="NODE_OR_DIR", help="A node of the store, or a directory with the three files.")
    ],
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="Check for this moment: 2026-12-01, or 2026-12-01T08:00:00Z.")
    ] = None,
    directory: _Store = _DEFAULT_STORE,
    as_json: _AsJson = False,
) -> None:
    """Check a node's identity: files and modes, chain, name, purpose, dates, and that key and certificate match.

    Exit code 0: valid. 1: a check failed; each failure says what to do. 2: there is nothing to check.

    [bold]Example[/bold]

      blazen-certs verify analyst

      blazen-certs verify /etc/mesh/identity --at 2026-12-01
    """
    moment = datetime.now(UTC) if at is None else _moment(at)
    identity, node = _identity_of(target, directory)
    in_store = identity == store.node_directory(directory, target)
    authority = read_authority_certificate(directory) if in_store else None
    reissue = f"blazen-certs issue {node or 'NODE'}{_dir_option(directory)}"
    report = verify_identity(identity, at=moment, node_id=node, authority=authority, reissue=reissue)
    if as_json:
        checks = [{"name": check.name, "ok": check.ok, "detail": check.detail, "fix": check.fix} for check in report.checks]
        _print_json({"directory": str(report.directory), "at": time_text(moment), "valid": report.ok, "checks": checks})
    else:
        when = "" if at is None else f" at {time_text(moment)}"
        _print([Text.assemble((str(report.directory), "bold"), when), *report_lines(report)])
    if not report.ok:
        raise typer.Exit(_CHECK_FAILED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* (None: the process's own) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app(arguments or ["--help"], prog_name="blazen-certs", standalone_mode=False)
    except _UsageError as error:
        return _fail(arguments, _WRONG_USE, "Usage", f"{error.format_message().rstrip('.')}. See: blazen-certs --help")
    except CertificateError as error:
        return _fail(arguments, _CHECK_FAILED, error.kind, str(error))
    except (ValidationError, StoreError) as error:
        return _fail(arguments, _WRONG_USE, error.kind, str(error))
    except OSError as error:
        return _fail(arguments, _WRONG_USE, "Store", f"{error.filename or 'input or output'}: {error.strerror or error}")
    if not arguments:
        return _WRONG_USE  # the help was shown; nothing was done
    return code if isinstance(code, int) else _DONE


def entry() -> None:
    """The console script."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(arguments: Sequence[str], code: int, kind: str, message: str) -> int:
    if "--json" in arguments:
        _print_json({"error": {"kind": kind, "message": message}})
    print(f"blazen-certs: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


def _is_path(name: str) -> bool:
    return os.sep in name or name in (".", "..")


def _is_node(name: str, directory: Path) -> bool:
    try:
        return store.node_directory(directory, check_node_id(name)).is_dir()
    except ValidationError:
        return False


def _file_of(name: str, directory: Path) -> Path:
    if not _is_path(name) and _is_node(name, directory):
        return store.node_directory(directory, name) / store.CURRENT / store.CERTIFICATE
    path = Path(name)
    if not path.exists():
        raise StoreError(f"{name} is neither a file nor a node of {directory}")
    if path.is_dir():
        raise ValidationError(f"{name} is a directory: name a file in it")
    return path


def _identity_of(target: str, directory: Path) -> tuple[Path, str | None]:
    """Return the directory to verify, and whose it must be where that is known."""
    if not _is_path(target) and _is_node(target, directory):
        return store.node_directory(directory, target), target
    path = Path(target)
    if not path.is_dir():
        raise StoreError(f"{target} is neither a node of {directory} nor a directory: blazen-certs issue NODE makes a node's")
    return path, node_named_by(path)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValidationError(f"--at {text!r} is no time: use 2026-12-01, or 2026-12-01T08:00:00Z") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _dir_option(directory: Path) -> str:
    return "" if directory == _DEFAULT_STORE else f" --dir {shlex.quote(str(directory))}"


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print(items: Iterable[RenderableType]) -> None:
    # Into a pipe nothing is broken: each line is for grep.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    for item in items:
        console.print(item, soft_wrap=isinstance(item, str | Text))
