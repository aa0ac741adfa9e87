"""The registry: steps and workflows by name."""

from __future__ import annotations

import pytest

from blazen_peer.errors import UnknownStepError, ValidationError
from blazen_peer.events import Event, StartEvent, StopEvent
from blazen_peer.runtime import (
    DEFAULT_REGISTRY,
    Registry,
    Workflow,
    isolated_registry,
    register_workflow,
    registered_steps,
    step,
    unregister_step,
    unregister_workflow,
)


async def begin(event: StartEvent) -> StopEvent:
    return StopEvent(result=event.data)


async def other(event: StartEvent) -> StopEvent:
    return StopEvent(result=event.data)


class Owner:
    async def act(self, event: StartEvent) -> StopEvent:
        return StopEvent(result=event.data)


def test_decorator_returns_the_function() -> None:
    """A decorated function stays what it was."""
    registry = Registry()
    assert registry.step("a")(begin) is begin
    assert registry.resolve(["a"])[0].handler is begin


def test_same_again() -> None:
    """Registering the same function again changes nothing; a module may be imported twice."""
    registry = Registry()
    registry.step("a")(begin)
    generation = registry.generation
    registry.step("a")(begin)
    assert registry.generation == generation


def test_same_method_again() -> None:
    """A method is the same on the same object, and another on another."""
    registry, owner = Registry(), Owner()
    registry.step("a")(owner.act)
    registry.step("a")(owner.act)
    with pytest.raises(ValidationError):
        registry.step("a")(Owner().act)


def test_other_function() -> None:
    """An id names one function; the error says whose it is."""
    registry = Registry()
    registry.step("a")(begin)
    with pytest.raises(ValidationError, match=r"step id 'a' is taken by .*begin"):
        registry.step("a")(other)
    assert registry.resolve(["a"])[0].handler is begin


def test_unknown() -> None:
    """The first id that is not there is named as the wire says it."""
    registry = Registry()
    registry.step("a")(begin)
    with pytest.raises(UnknownStepError) as caught:
        registry.resolve(["a", "b", "c"])
    assert (str(caught.value), caught.value.step_id) == ("unknown step id `b`", "b")


def test_listing_is_sorted() -> None:
    """Steps and workflows are listed by name."""
    registry = Registry()
    for name in ("b", "a", "c"):
        registry.step(name)(begin)
        registry.register_workflow(Workflow(name, [name], registry=registry))
    assert [definition.id for definition in registry.steps()] == ["a", "b", "c"]
    assert [workflow.name for workflow in registry.workflows()] == ["a", "b", "c"]


def test_removal() -> None:
    """What was removed is gone, and its id free."""
    registry = Registry()
    registry.step("a")(begin)
    registry.register_workflow(Workflow("w", ["a"], registry=registry))
    assert registry.unregister_step("a") is True
    assert registry.unregister_step("a") is False
    assert registry.unregister_workflow("w") is True
    assert registry.workflow("w") is None
    registry.step("a")(other)


def test_workflow_names() -> None:
    """A name is one workflow's; the same again changes nothing."""
    registry = Registry()
    registry.step("a")(begin)
    workflow = Workflow("w", ["a"], registry=registry)
    assert registry.register_workflow(workflow) is workflow
    assert registry.register_workflow(workflow) is registry.workflow("w")
    with pytest.raises(ValidationError, match="workflow name 'w' is taken"):
        registry.register_workflow(Workflow("w", ["a"], registry=registry))


def test_generation_grows_with_each_change() -> None:
    """Who keeps what was resolved sees each change."""
    registry = Registry()
    seen = [registry.generation]
    registry.step("a")(begin)
    seen.append(registry.generation)
    registry.register_workflow(Workflow("w", ["a"], registry=registry))
    seen.append(registry.generation)
    registry.unregister_workflow("w")
    seen.append(registry.generation)
    registry.unregister_step("a")
    seen.append(registry.generation)
    assert seen == sorted(set(seen))


def test_definition_of() -> None:
    """A function stands for its step where it is exactly one."""
    registry = Registry()
    with pytest.raises(ValidationError, match="not registered"):
        registry.definition_of(begin)
    registry.step("a")(begin)
    assert registry.definition_of(begin).id == "a"
    registry.step("b")(begin)
    with pytest.raises(ValidationError, match="several steps"):
        registry.definition_of(begin)


def test_isolated() -> None:
    """A test may have the process-wide registry empty; what was there comes back."""
    with isolated_registry():
        step("kept")(begin)
        before = registered_steps()
        with isolated_registry() as registry:
            assert registry is DEFAULT_REGISTRY
            assert registered_steps() == ()
            step("mine")(begin)
            register_workflow(Workflow("w", [begin]))
            assert unregister_workflow("w")
            assert unregister_step("mine")
            step("mine")(begin)
        assert registered_steps() == before


def test_local_classes() -> None:
    """Annotations may name classes of the function around the step, strings though they are here."""
    registry = Registry()

    class Local(Event):
        n: int

    @registry.step("a")
    async def local(event: Local) -> StopEvent:
        return StopEvent(result=event.n)

    assert dict(registry.resolve(["a"])[0].accepted_classes) == {Local.event_type: Local}
