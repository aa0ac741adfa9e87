"""What the doctor has to say: one finding a line, and all of them together."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from blazen_mesh.doctor.causes import CAUSES

__all__ = ["Finding", "Names", "Report", "State", "printable"]

MAX_CHARS = 500

State = Literal["fine", "problem", "warning", "unseen"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: A node (``intake``) or a hop (``intake -> analyst``).
        check: What was looked at, in a word.
        state: ``unseen`` is what cannot be looked at from here; the fix says where it can.
        detail: What was found.
        cause: A key of :data:`blazen_mesh.doctor.causes.CAUSES`; None where nothing is wrong.
        fix: What to do; empty where nothing is to be done.
    """

    subject: str
    check: str
    state: State
    detail: str
    cause: str | None = None
    fix: str = ""


def printable(text: str) -> str:
    """Return *text*, cut at 500 characters, with what is not printable escaped: others' names must not steer a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text[:MAX_CHARS])


@dataclass(frozen=True, slots=True)
class Names:
    """What findings about one node, or one hop, are said of."""

    subject: str
    node: str = ""
    caller: str = ""
    callee: str = ""
    address: str = ""

    def fine(self, check: str, detail: str) -> Finding:
        """Return that all is well."""
        return Finding(self.subject, check, "fine", printable(detail))

    def unseen(self, check: str, detail: str, fix: str) -> Finding:
        """Return that *check* cannot be made from here."""
        return Finding(self.subject, check, "unseen", printable(detail), fix=fix)

    def wrong(self, check: str, cause: str, detail: str = "", *, state: State = "problem") -> Finding:
        """Return the problem (or warning) that *cause* names; *detail* is what was seen of it."""
        entry, names = CAUSES[cause], asdict(self)
        title = entry.title.format(**names)
        told = f"{title}: {printable(detail)}" if detail else title
        return Finding(self.subject, check, state, told, cause, entry.fix.format(**names))


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, in the order in which a call meets what they are about."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What is wrong now."""
        return tuple(finding for finding in self.findings if finding.state == "problem")

    def as_object(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        return {"ok": not self.problems, "findings": [asdict(finding) for finding in self.findings]}
