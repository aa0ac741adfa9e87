"""What the commands print on standard output: results and descriptions, for people and for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.json import JSON
from rich.table import Table
from rich.text import Text

from blazen_peer.cli.outcome import printable
from blazen_peer.runtime.result import WorkflowResult
from blazen_peer.transport.proto import control_pb2

__all__ = ["description_object", "show_description", "show_result"]

MAX_COLOURED_CHARS: Final = 64 * 1024  # beyond it colouring takes seconds, and nobody reads it on a terminal
PIPE_COLUMNS: Final = 200


def show_result(result: WorkflowResult) -> None:
    """Print the payload as indented JSON, in colours on a terminal; nothing is wrapped or cut."""
    if sys.stdout.isatty() and len(result.data_json) <= MAX_COLOURED_CHARS:
        Console().print(JSON(result.data_json, ensure_ascii=False), soft_wrap=True)
    else:
        print(json.dumps(result.result, indent=2, ensure_ascii=False))


def show_description(description: control_pb2.DescribeResponse) -> None:
    """Print what a peer can run: one row for each step and workflow, the fields of typed events below their names."""
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS, highlight=False)
    limits = description.limits
    console.print(
        Text(printable(description.node_id), style="bold"),
        f"version {printable(description.version)}, envelope {description.envelope_version}, "
        f"instance {printable(description.instance_id[:8])}",
    )
    console.print(
        f"limits: {limits.max_runs} runs at once, {limits.default_timeout_ms / 1000:g} s a run "
        f"({limits.max_timeout_ms / 1000:g} s when asked for), {limits.max_message_bytes / 2**20:g} MiB a message"
    )
    if description.HasField("lanes"):
        lanes = description.lanes
        console.print(f"lanes: {lanes.open} open, for envelopes up to {lanes.max_frame_bytes / 2**10:g} KiB")
    if description.HasField("policy"):
        console.print(_policy(description.policy))
    typed = any(shape.json_schema for item in description.steps for shape in (*item.accepts, *item.emits))
    steps = Table("step", "accepts", "emits", box=SIMPLE_HEAD, leading=int(typed))
    for item in description.steps:
        steps.add_row(Text(printable(item.id), style="bold"), _events(item.accepts), _events(item.emits) or Text("any"))
    console.print(steps)
    if description.workflows:
        workflows = Table("workflow", "its steps", "laxest data", box=SIMPLE_HEAD)
        for named in description.workflows:
            laxest = "by the input" if named.data_class_by_input else named.data_class or "-"
            steps_of = Text(printable("\n".join(named.step_ids)))
            workflows.add_row(Text(printable(named.name), style="bold"), steps_of, Text(printable(laxest)))
        console.print(workflows)


def description_object(description: control_pb2.DescribeResponse) -> dict[str, object]:
    """Return the description as ``describe --json`` prints it; durations are seconds, schemas are JSON Schema or null."""
    limits = description.limits
    return {
        "node_id": description.node_id,
        "version": description.version,
        "envelope_version": description.envelope_version,
        "instance_id": description.instance_id,
        "limits": {
            "max_message_bytes": limits.max_message_bytes,
            "max_runs": limits.max_runs,
            "max_queued_runs": limits.max_queued_runs,
            "default_timeout_secs": limits.default_timeout_ms / 1000,
            "max_timeout_secs": limits.max_timeout_ms / 1000,
        },
        "lanes": {
            "version": description.lanes.version,
            "open": description.lanes.open,
            "max_frame_bytes": description.lanes.max_frame_bytes,
        }
        if description.HasField("lanes")
        else None,
        "steps": [
            {"id": item.id, "accepts": _shapes(item.accepts), "emits": _shapes(item.emits)} for item in description.steps
        ],
        "workflows": [
            {
                "name": item.name,
                "step_ids": list(item.step_ids),
                "data_class": item.data_class or None,
                "data_class_by_input": item.data_class_by_input,
            }
            for item in description.workflows
        ],
        "policy": _policy_object(description.policy) if description.HasField("policy") else None,
    }


def _policy_object(policy: control_pb2.LoadedPolicy) -> dict[str, object]:
    return {
        "digest": policy.digest,
        "loaded_at_epoch_ms": policy.loaded_at_epoch_ms,
        "data_classes": list(policy.data_classes),
        "problem": policy.problem or None,
    }


def _policy(policy: control_pb2.LoadedPolicy) -> Text:
    classes = ", ".join(policy.data_classes)
    line = Text(f"policy: {printable(policy.digest[:12])}, " + (f"data {printable(classes)}" if classes else "no data classes"))
    if policy.problem:
        line.append(f"\nits file is not in force: {printable(policy.problem)}", style="bold red")
    return line


def _shapes(items: Iterable[control_pb2.EventShape]) -> list[dict[str, object]]:
    return [{"event_type": item.event_type, "json_schema": _schema(item.json_schema)} for item in items]


def _schema(text: str) -> Any:
    """Return the schema that a peer wrote; None for none, and for what is not JSON."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def _events(items: Sequence[control_pb2.EventShape]) -> Text:
    """Return the events one below the other, each with its fields as ``name: type`` where it has declared them."""
    lines = Text()
    for number, item in enumerate(items):
        lines.append(("\n" if number else "") + printable(item.event_type))
        schema = _schema(item.json_schema)
        fields = schema.get("properties") if isinstance(schema, dict) else None
        for name, field in fields.items() if isinstance(fields, dict) else ():
            lines.append(f"\n  {printable(str(name))}: {printable(_type_of(field))}", style="dim")
    return lines


def _type_of(field: object) -> str:
    if not isinstance(field, dict):
        return "any"
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    choices = field.get("anyOf")
    if isinstance(choices, list):
        return " or ".join(map(_type_of, choices))
    return str(field.get("type", "any"))
