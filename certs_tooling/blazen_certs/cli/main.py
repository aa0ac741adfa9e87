"""The command ``blazen-certs``: reads arguments, calls, prints. Exit codes: 0 done, 1 failed, 2 wrong use, 3 not due."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from blazen_certs.cli.code import code
from blazen_certs.cli.init import init
from blazen_certs.cli.inspect import inspect
from blazen_certs.cli.issue import issue
from blazen_certs.cli.join import join
from blazen_certs.cli.output import CHECK_FAILED, DONE, WRONG_USE, fail
from blazen_certs.cli.renew import needs_renewal, renew
from blazen_certs.cli.revoke import crl, revoke
from blazen_certs.cli.rotate_root import rotate_root
from blazen_certs.cli.serve import serve
from blazen_certs.cli.status import status
from blazen_certs.cli.verify import verify
from blazen_certs.cli.watch import watch
from blazen_certs.errors import CertificateError, CodeError, ServiceError, StoreError
from blazen_peer.errors import ValidationError

__all__ = ["app", "entry", "main"]

# Typer carries click's classes under different module names from release to release; its own subclass always leads to them.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="blazen-certs",
    help="The identities of a mesh: a root, an issuing CA for each region, a short-lived certificate for each node.\n\n"
    "[bold]Example[/bold]\n\n"
    "  blazen-certs init --trust-domain mesh.example\n\n"
    "  blazen-certs issue analyst\n\n"
    "  blazen-certs status\n\n"
    "  blazen-certs watch",
    epilog="Exit codes: 0 done, 1 a check or a renewal failed, 2 wrong use or a file that cannot be used, "
    "3 nothing was due (renew, needs-renewal).",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks show local variables, and keys are among them
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    init,
    issue,
    renew,
    needs_renewal,
    watch,
    revoke,
    crl,
    rotate_root,
    status,
    inspect,
    verify,
    code,
    serve,
    join,
):
    app.command()(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with *argv* (None: the process's own) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = app(arguments or ["--help"], prog_name="blazen-certs", standalone_mode=False)
    except _UsageError as error:
        return fail(arguments, WRONG_USE, "Usage", f"{error.format_message().rstrip('.')}. See: blazen-certs --help")
    except (CertificateError, CodeError, ServiceError) as error:
        return fail(arguments, CHECK_FAILED, error.kind, str(error))
    except (ValidationError, StoreError) as error:
        return fail(arguments, WRONG_USE, error.kind, str(error))
    except OSError as error:
        return fail(arguments, WRONG_USE, "Store", f"{error.filename or 'input or output'}: {error.strerror or error}")
    if not arguments:
        return WRONG_USE  # the help was shown; nothing was done
    return code if isinstance(code, int) else DONE


def entry() -> None:
    """The console script."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
