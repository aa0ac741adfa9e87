"""From a function and its annotations to a :class:`StepDefinition`."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from blazen_peer.engine import Retry, StepDefinition, check_step_id
from blazen_peer.errors import ValidationError
from blazen_peer.events import START, STOP, Event, StartEvent, StopEvent, check_event_type
from blazen_peer.runtime.context import Context
from blazen_peer.runtime.turns import StepTurns

__all__ = ["EventName", "define_step"]

EventName: TypeAlias = "str | type[Event]"  # a wire name, or the class that has it

_UNTYPED: Mapping[str, type[Event]] = {START: StartEvent, STOP: StopEvent}
_SEVERAL = (list, tuple, Sequence)
_AWAITED = (Awaitable, Coroutine)


def define_step(
    step_id: str,
    handler: object,
    *,
    accepts: Iterable[EventName] | None = None,
    emits: Iterable[EventName] | None = None,
    timeout_secs: float | None = None,
    retry: Retry | None = None,
    max_concurrent: int | None = None,
    localns: Mapping[str, Any] | None = None,
) -> StepDefinition:
    """Return the definition of the step *step_id* that *handler* performs.

    Args:
        step_id: The step's name.
        handler: A function, async or plain, or an object with ``invoke``; called with the event, or with event and context.
        accepts: The events it takes; None: those of its first parameter's annotation.
        emits: The events it returns; None: those of its return annotation, undeclared where there is none.
        timeout_secs: How long one execution may take, in seconds; None: as long as the run.
        retry: When an execution that failed is tried again; None: never.
        max_concurrent: How many executions may go on at once in this process, whatever runs they belong to; None: any number.
        localns: Names to resolve annotations with, beside the handler's own module's.

    Raises:
        ValidationError: The signature is none of these, its annotations cannot be resolved or name no event, or they and
            *accepts* disagree; or a timeout or a limit is out of its range.
    """
    check_step_id(step_id)
    call, code = _callable_of(step_id, handler)
    event_name, second, second_required = _parameters(step_id, call)
    if isinstance(accepts, str) or isinstance(emits, str):
        raise ValidationError(f"step {step_id!r}: accepts= and emits= are lists of names")
    try:
        hints = typing.get_type_hints(code, localns=dict(localns) if localns else None)
    except Exception as error:  # a name that is not there, an expression that does not evaluate: anything can come out
        if accepts is None or emits is None:
            raise ValidationError(
                f"step {step_id!r}: cannot resolve its annotations ({error}); "
                "define the event classes before the step, at module level, or give accepts= and emits="
            ) from error
        hints = {}

    wants_context = second is not None and (second.name == "ctx" or _is_context(hints.get(second.name, second.annotation)))
    if second is not None and second_required and not wants_context:
        raise ValidationError(f"step {step_id!r}: its second parameter {second.name!r} must be `ctx: Context`")

    taken = list(_taken(step_id, hints.get(event_name))) if event_name in hints else []
    names, classes = _accepted(step_id, event_name, taken, None if accepts is None else list(accepts))
    emitted, emitted_classes = _emitted(step_id, hints, None if emits is None else list(emits))
    return StepDefinition(
        id=step_id,
        accepts=names,
        emits=emitted,
        handler=call,
        is_async=inspect.iscoroutinefunction(code),
        wants_context=wants_context,
        accepted_classes=types.MappingProxyType(classes),
        emitted_classes=emitted_classes,
        timeout_secs=timeout_secs,
        retry=retry,
        max_concurrent=max_concurrent,
        turns=StepTurns(max_concurrent) if max_concurrent is not None else None,
    )


def _callable_of(step_id: str, handler: object) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return what to call, and the function behind it that has the annotations."""
    invoke = getattr(handler, "invoke", None)
    if isinstance(handler, type) or not (callable(invoke) or callable(handler)):
        raise ValidationError(f"step {step_id!r}: its handler must be a function or an object with `invoke`, not {handler!r}")
    call: Callable[..., Any] = invoke if callable(invoke) else typing.cast("Callable[..., Any]", handler)
    code: Any = call
    while isinstance(code, functools.partial):
        code = code.func
    if not (inspect.isroutine(code) or inspect.isfunction(code)):
        code = code.__call__
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        raise ValidationError(f"step {step_id!r} is a generator: return the events as a list instead")
    return call, code


def _parameters(step_id: str, call: Callable[..., Any]) -> tuple[str, inspect.Parameter | None, bool]:
    """Return the event parameter's name, the second parameter, and whether that must be given."""
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError) as error:
        raise ValidationError(f"step {step_id!r}: {call!r} has no signature to read: wrap it in a function") from error
    positional = [p for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    required = [p for p in parameters if p.default is p.empty and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    if not positional or len(required) > 2 or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise ValidationError(f"step {step_id!r} must take the event and, if it wants, `ctx: Context`; nothing else")
    second = positional[1] if len(positional) > 1 else None
    return positional[0].name, second, second in required


def _is_context(annotation: object) -> bool:
    return annotation is Context or (isinstance(annotation, str) and annotation.rpartition(".")[2] == "Context")


def _accepted(
    step_id: str, parameter: str, taken: Sequence[type[Event]], given: Sequence[EventName] | None
) -> tuple[tuple[str, ...], dict[str, type[Event]]]:
    if given is None:
        if not taken:
            raise ValidationError(
                f"step {step_id!r}: annotate its parameter {parameter!r} with the event it accepts, or give accepts="
            )
        if Event in taken:
            raise ValidationError(f"step {step_id!r} takes any Event: name the events with accepts=")
        given = taken
    classes: dict[str, type[Event]] = {}
    names: dict[str, None] = {}
    declared = {item.event_type for item in taken}
    for item in (*(item for item in taken if item is not Event), *given):
        if isinstance(item, str):
            names[check_event_type(item)] = None
            if declared and item not in declared and Event not in taken:
                raise ValidationError(
                    f"step {step_id!r}: accepts= names {item}, which its parameter {parameter!r} does not take"
                )
            continue
        if classes.setdefault(item.event_type, item) is not item:
            raise ValidationError(f"step {step_id!r} accepts {item.event_type} in two classes: choose one")
        if item in given:
            names[item.event_type] = None
    # A plain name is handed over as it is, but the two well-known ones have their class.
    wanted = {name: classes.get(name) or _UNTYPED.get(name) for name in names}
    return tuple(names), {name: item for name, item in wanted.items() if item is not None}


def _emitted(
    step_id: str, hints: Mapping[str, Any], given: Sequence[EventName] | None
) -> tuple[tuple[str, ...] | None, tuple[type[Event], ...]]:
    returned = list(_returned(step_id, hints["return"])) if "return" in hints else None
    known = [item for item in returned or () if item is not Event]
    if given is None:
        if returned is None or Event in returned:
            return None, tuple(known)
        return tuple(dict.fromkeys(item.event_type for item in known)), tuple(dict.fromkeys(known))
    names = [check_event_type(item) if isinstance(item, str) else item.event_type for item in given]
    classes = [*(item for item in known if item.event_type in names), *(item for item in given if not isinstance(item, str))]
    return tuple(dict.fromkeys(names)), tuple(dict.fromkeys(classes))


def _taken(step_id: str, hint: Any) -> Iterator[type[Event]]:
    for item in _flat(hint):
        if item is type(None):
            continue
        if not (isinstance(item, type) and issubclass(item, Event)):
            raise ValidationError(f"step {step_id!r}: its first parameter takes {_shown(item)}, which is no event class")
        yield item


def _returned(step_id: str, hint: Any) -> Iterator[type[Event]]:
    for item in _flat(hint):
        origin, arguments = typing.get_origin(item), typing.get_args(item)
        if item in {type(None), typing.NoReturn, typing.Never} or item is Ellipsis:
            continue
        if item is Any or item in _SEVERAL:
            yield Event
        elif origin in _SEVERAL:
            for argument in arguments:
                yield from _returned(step_id, argument)
        elif origin in _AWAITED:  # a plain function that returns a coroutine
            yield from _returned(step_id, arguments[-1])
        elif isinstance(item, type) and issubclass(item, Event):
            yield item
        else:
            raise ValidationError(f"step {step_id!r}: it may return {_shown(item)}, which is no event, list of events or None")


def _flat(hint: Any) -> Iterator[Any]:
    """Take unions apart, and look through ``type X = ...`` (Python 3.12)."""
    while type(hint).__name__ == "TypeAliasType":
        hint = hint.__value__
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        for argument in typing.get_args(hint):
            yield from _flat(argument)
    else:
        yield hint


def _shown(item: Any) -> str:
    return item.__name__ if isinstance(item, type) else str(item)
