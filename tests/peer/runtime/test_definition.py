"""From a function to a step: what its annotations say, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, Optional, Union

import pytest

import blazen_peer.runtime as rt
from blazen_peer.engine import StepDefinition
from blazen_peer.errors import ValidationError
from blazen_peer.events import START, STOP, Event, StartEvent, StopEvent
from blazen_peer.runtime import Context, define_step


class Found(Event, event_type="demo::Found"):
    n: int


class Other(Event, event_type="demo::Other"):
    n: int


class Report(StopEvent):
    n: int


class Document(StartEvent):
    text: str


async def one(event: StartEvent) -> StopEvent: ...  # type: ignore[empty-body]
async def union(event: Found | Other) -> Found | StopEvent | None: ...
async def old_union(event: Union[Found, Other]) -> Optional[Union[Found, StopEvent]]: ...  # noqa: UP007, UP045
async def optional(event: Found | None) -> None: ...
async def many(event: Found) -> list[Found | Other]: ...  # type: ignore[empty-body]
async def pair(event: Found) -> tuple[Found, Report]: ...  # type: ignore[empty-body]
async def row(event: Found) -> tuple[Found, ...] | None: ...
async def unannotated(event: Found): ...  # type: ignore[no-untyped-def]
async def any_event(event: Found) -> Event: ...  # type: ignore[empty-body]
async def anything(event: Found) -> Any: ...
async def bare_list(event: Found) -> list: ...  # type: ignore[type-arg, empty-body]
def plain(event: Found) -> Found: ...  # type: ignore[empty-body]
def gives_coroutine(event: Found) -> Coroutine[Any, Any, Found]: ...  # type: ignore[empty-body]
def gives_awaitable(event: Found) -> Awaitable[list[Found]]: ...  # type: ignore[empty-body]


ANNOTATED = [
    pytest.param(one, (START,), (STOP,), id="one"),
    pytest.param(union, ("demo::Found", "demo::Other"), ("demo::Found", STOP), id="union"),
    pytest.param(old_union, ("demo::Found", "demo::Other"), ("demo::Found", STOP), id="typing-union"),
    pytest.param(optional, ("demo::Found",), (), id="optional"),
    pytest.param(many, ("demo::Found",), ("demo::Found", "demo::Other"), id="list"),
    pytest.param(pair, ("demo::Found",), ("demo::Found", STOP), id="tuple"),
    pytest.param(row, ("demo::Found",), ("demo::Found",), id="tuple-of-any-length"),
    pytest.param(unannotated, ("demo::Found",), None, id="no-return-annotation"),
    pytest.param(any_event, ("demo::Found",), None, id="any-event"),
    pytest.param(anything, ("demo::Found",), None, id="any"),
    pytest.param(bare_list, ("demo::Found",), None, id="bare-list"),
    pytest.param(plain, ("demo::Found",), ("demo::Found",), id="plain"),
    pytest.param(gives_coroutine, ("demo::Found",), ("demo::Found",), id="coroutine"),
    pytest.param(gives_awaitable, ("demo::Found",), ("demo::Found",), id="awaitable"),
]


@pytest.mark.parametrize(("function", "accepts", "emits"), ANNOTATED)
def test_annotations(function: Callable[..., Any], accepts: tuple[str, ...], emits: tuple[str, ...] | None) -> None:
    """What a step accepts and emits comes from its annotations; None: it was not declared."""
    definition = define_step("s", function)
    assert (definition.accepts, definition.emits) == (accepts, emits)


def test_classes() -> None:
    """The classes are kept: to validate what comes, and to describe what goes."""
    definition = define_step("s", pair)
    assert dict(definition.accepted_classes) == {"demo::Found": Found}
    assert definition.emitted_classes == (Found, Report)
    assert definition.event_classes == (Found, Report)


class Handler:
    async def invoke(self, event: Event) -> Event: ...  # type: ignore[empty-body]


class ContextHandler:
    def invoke(self, event: Event, ctx: Context) -> Event: ...  # type: ignore[empty-body]


class Callme:
    async def __call__(self, event: Found, context: Context) -> None: ...


def named(event, ctx): ...  # type: ignore[no-untyped-def]
def with_default(event: Found, extra: int = 3) -> None: ...
async def aliased(event: Found, where: rt.Context) -> None: ...


CALLS = [
    pytest.param(Handler(), True, False, id="invoke"),
    pytest.param(ContextHandler(), False, True, id="plain-invoke-with-context"),
    pytest.param(ContextHandler().invoke, False, True, id="method"),
    pytest.param(Callme(), True, True, id="callable-object"),
    pytest.param(functools.partial(with_default, extra=1), False, False, id="partial"),
    pytest.param(named, False, True, id="context-by-name"),
    pytest.param(aliased, True, True, id="context-by-annotation"),
    pytest.param(with_default, False, False, id="default-argument"),
    pytest.param(lambda event: None, False, False, id="lambda"),
]


@pytest.mark.parametrize(("handler", "is_async", "wants_context"), CALLS)
def test_calls(handler: object, is_async: bool, wants_context: bool) -> None:
    """A handler is a function or an object with invoke, async or plain, with or without a context."""
    definition = define_step("s", handler, accepts=["demo::Found"], emits=[STOP])
    assert (definition.is_async, definition.wants_context) == (is_async, wants_context)


async def unresolved(event: Missing) -> StopEvent: ...  # type: ignore[name-defined, empty-body]  # noqa: F821
async def no_annotation(event) -> StopEvent: ...  # type: ignore[no-untyped-def, empty-body]
async def bare(event: Event) -> StopEvent: ...  # type: ignore[empty-body]
async def number(event: int) -> StopEvent: ...  # type: ignore[empty-body]
async def returns_number(event: Found) -> int | Found: ...  # type: ignore[empty-body]
async def returns_numbers(event: Found) -> list[int]: ...  # type: ignore[empty-body]
async def nothing() -> StopEvent: ...  # type: ignore[empty-body]
async def keyword_only(event: Found, *, ctx: Context) -> None: ...
async def second_is_another(event: Found, other: Found) -> None: ...
async def three(event: Found, ctx: Context, more: int) -> None: ...
async def generator(event: Found) -> AsyncIterator[Found]:
    yield Found(n=1)


async def two_classes(event: Document | StartEvent) -> None: ...
async def accepts_stop(event: StopEvent) -> None: ...


REFUSED = [
    pytest.param(unresolved, "cannot resolve its annotations .*Missing.*module level", id="unresolved"),
    pytest.param(no_annotation, "annotate its parameter 'event'", id="no-annotation"),
    pytest.param(bare, "takes any Event: name the events with accepts=", id="bare-event"),
    pytest.param(number, "takes int, which is no event class", id="no-event"),
    pytest.param(returns_number, "may return int", id="returns-no-event"),
    pytest.param(returns_numbers, "may return int", id="returns-list-of-no-events"),
    pytest.param(nothing, "must take the event", id="no-parameter"),
    pytest.param(keyword_only, "must take the event", id="keyword-only"),
    pytest.param(second_is_another, "second parameter 'other' must be `ctx: Context`", id="second-is-another"),
    pytest.param(three, "nothing else", id="three-parameters"),
    pytest.param(generator, "is a generator", id="generator"),
    pytest.param(two_classes, "in two classes", id="two-classes-of-one-name"),
    pytest.param(accepts_stop, "ends the run", id="accepts-stop"),
    pytest.param(Handler, "must be a function or an object with `invoke`", id="class"),
    pytest.param(5, "must be a function or an object with `invoke`", id="number"),
]


@pytest.mark.parametrize(("handler", "why"), REFUSED)
def test_refused(handler: object, why: str) -> None:
    """What cannot be a step is refused when it is defined, in one line that says what to do."""
    with pytest.raises(ValidationError, match=why) as caught:
        define_step("my::step", handler)
    assert "'my::step'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_given_names_save_unresolved_annotations() -> None:
    """Where both are given, annotations that cannot be resolved do no harm."""
    definition = define_step("s", unresolved, accepts=[Found], emits=["demo::Other"])
    assert (definition.accepts, definition.emits) == (("demo::Found",), ("demo::Other",))
    assert dict(definition.accepted_classes) == {"demo::Found": Found}


def test_given_names_take_the_annotation_s_class() -> None:
    """A name in accepts= is validated into the class that the annotation has for it."""
    definition = define_step("s", union, accepts=["demo::Other"])
    assert definition.accepts == ("demo::Other",)
    assert dict(definition.accepted_classes) == {"demo::Other": Other}


def test_given_names_must_fit_the_annotation() -> None:
    """A name that the parameter's annotation does not take would reach the step as something it does not expect."""
    with pytest.raises(ValidationError, match="accepts= names demo::Else, which its parameter 'event' does not take"):
        define_step("s", plain, accepts=["demo::Else"])


def test_text_instead_of_a_list() -> None:
    """A single name where a list belongs is a mistake, not a list of letters."""
    with pytest.raises(ValidationError, match="lists of names"):
        define_step("s", plain, accepts="demo::Found")


def test_equal_definitions() -> None:
    """The same function defined twice is one and the same step."""
    assert define_step("s", plain) == define_step("s", plain)
    assert define_step("s", plain) != define_step("s", one)
    assert isinstance(define_step("s", plain), StepDefinition)
