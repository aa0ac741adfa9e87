"""Session refs without a network: who may use them, what ends them, and how much there may be of them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import pytest

from blazen_peer.config import ServerSettings
from blazen_peer.errors import OverloadedError, RefNotFoundError, ValidationError
from blazen_peer.identity import ANONYMOUS, Caller, PeerId
from blazen_peer.runtime.refs import RefLifetime, RefTable, RemoteRef
from blazen_peer.runtime.run_refs import RunRefs

ALICE, BOB = Caller.claimed("alice"), Caller.claimed("bob")
LIMITS = ServerSettings(max_run_refs=3, max_run_ref_bytes=100, max_refs=5, max_ref_bytes=150, ref_lease_secs=60)
TAG = "demo::Text"


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> RefTable:
    return RefTable(LIMITS, node_id="node-b", clock=clock, epoch_ms=lambda: round(clock.now * 1000), new_uuid=uuid4)


def served(table: RefTable, owner: Caller = ALICE, parent_run_id: str | None = None) -> RunRefs:
    """The refs of a run that *owner* called for from elsewhere."""
    return RunRefs(table, owner, parent_run_id=parent_run_id, listed=True)


def put(run: RunRefs, value: object = b"value", **options: object) -> RemoteRef:
    return run.put(value, **{"type_tag": TAG, **options})  # type: ignore[arg-type]


def gone(table: RefTable, ref: RemoteRef, owner: Caller = ALICE) -> bool:
    try:
        table.use(ref.uuid, owner)
    except RefNotFoundError:
        return True
    return False


def test_what_a_ref_says(table: RefTable, clock: Clock) -> None:
    """A ref tells its random uuid, its node, its tag, and when it was put: not when the run ended or it was listed."""
    run = served(table)
    ref = put(run)
    clock.now += 5
    assert run.finish(succeeded=True) == (ref,)
    assert (ref.origin_node_id, ref.type_tag, ref.created_at_epoch_ms, ref.uuid.version) == ("node-b", TAG, 1_000_000, 4)
    assert RemoteRef.of(ref.uuid, ref.descriptor) == ref


def test_lists_its_own(table: RefTable) -> None:
    """A run lists the refs that were put in it, oldest first, and none of another run's, even of the same caller's."""
    one, other = served(table), served(table)
    first, strange, second = put(one), put(other), put(one)
    assert one.finish(succeeded=True) == (first, second)
    assert other.finish(succeeded=True) == (strange,)
    assert one.finish(succeeded=True) == ()


OTHERS = [
    pytest.param(ALICE, BOB, id="another-node"),
    pytest.param(ALICE, Caller.proven(PeerId("mesh.test", "alice")), id="proven-is-not-claimed"),
    pytest.param(Caller.proven(PeerId("mesh.test", "alice")), ALICE, id="claimed-is-not-proven"),
    pytest.param(Caller.proven(PeerId("one.test", "a")), Caller.proven(PeerId("two.test", "a")), id="another-trust-domain"),
    pytest.param(ALICE, ANONYMOUS, id="anonymous"),
]


@pytest.mark.parametrize(("owner", "other"), OTHERS)
def test_nobody_elses(table: RefTable, owner: Caller, other: Caller) -> None:
    """To any other caller a ref is as one that never was: by reading, by release, by listing, and in the error's text."""
    run = served(table, owner)
    ref, never = put(run), UUID(int=1)
    run.finish(succeeded=True)
    with pytest.raises(RefNotFoundError) as theirs:
        table.use(ref.uuid, other)
    with pytest.raises(RefNotFoundError) as missing:
        table.use(never, other)
    assert str(theirs.value).replace(str(ref.uuid), str(never)) == str(missing.value) == f"session ref {never} not found"
    assert table.release(ref.uuid, other) is table.release(never, other) is False
    assert table.owned_by(other) == ()
    assert table.parent_ended(other, "any") == 0
    with pytest.raises(RefNotFoundError):
        RunRefs(table, other).value(ref.uuid)
    assert RunRefs(table, other).drop(ref.uuid) is False
    assert table.use(ref.uuid, owner).value == b"value"


def test_others_do_not_renew(table: RefTable, clock: Clock) -> None:
    """Somebody else's attempts do not keep a ref alive."""
    run = served(table)
    ref = put(run)
    run.finish(succeeded=True)
    clock.now += 59
    with pytest.raises(RefNotFoundError):
        table.use(ref.uuid, BOB)
    clock.now += 1
    assert gone(table, ref)


def test_release(table: RefTable) -> None:
    """A release says True once, False ever after, and frees what the value counted for."""
    run = served(table)
    ref = put(run, b"x" * 40)
    run.finish(succeeded=True)
    assert (len(table), table.size_bytes) == (1, 40)
    assert [table.release(ref.uuid, ALICE) for _ in range(3)] == [True, False, False]
    assert gone(table, ref)
    assert (len(table), table.size_bytes) == (0, 0)


def test_release_of_expired(table: RefTable, clock: Clock) -> None:
    """Releasing what its lease has ended says False: there was none any more."""
    run = served(table)
    ref = put(run)
    run.finish(succeeded=True)
    clock.now += 60
    assert table.release(ref.uuid, ALICE) is False


def test_live_value(table: RefTable) -> None:
    """Steps of the same caller get the object itself, serializer or not."""
    thing = object()
    run = served(table)
    assert run.value(put(run, thing).uuid) is thing
    assert served(table).value(put(run, thing, serializer=lambda _: b"").uuid) is thing


LIFETIMES = [
    pytest.param("context", {"served": True, "local": False, "child": False}, id="context"),
    pytest.param("explicit_drop", {"served": True, "local": True, "child": True}, id="explicit-drop"),
    pytest.param("snapshot", {"served": True, "local": False, "child": False}, id="snapshot"),
    pytest.param("parent_finish", {"served": True, "local": False, "child": True}, id="parent-finish"),
]


@pytest.mark.parametrize(("lifetime", "lives"), LIFETIMES)
def test_at_the_end_of_a_run(table: RefTable, lifetime: str, lives: dict[str, bool]) -> None:
    """What a response lists lives on; of a local run only what says so; of a local child also what waits for its parent."""
    parent = RunRefs(table)
    runs = {"served": served(table, ANONYMOUS), "local": RunRefs(table), "child": parent.child()}
    refs = {name: put(run, lifetime=lifetime) for name, run in runs.items()}
    for name, run in runs.items():
        assert run.finish(succeeded=True) == ((refs[name],) if lives[name] else ())
    assert {name: not gone(table, ref, ANONYMOUS) for name, ref in refs.items()} == lives


@pytest.mark.parametrize("lifetime", list(RefLifetime))
def test_failed_run_leaves_nothing(table: RefTable, lifetime: RefLifetime) -> None:
    """A run that failed leaves no ref, whatever its lifetime: nobody was told of it."""
    run = served(table)
    ref = put(run, lifetime=lifetime)
    assert run.finish(succeeded=False) == ()
    assert gone(table, ref)
    assert (len(table), table.size_bytes) == (0, 0)


@pytest.mark.parametrize("lifetime", list(RefLifetime))
def test_snapshot(table: RefTable, lifetime: RefLifetime) -> None:
    """Before a snapshot the refs that may not be part of one go, while the run goes on with the others."""
    run = served(table)
    ref = put(run, lifetime=lifetime)
    bystander = put(served(table), lifetime="snapshot")
    assert run.before_snapshot() == (1 if lifetime is RefLifetime.SNAPSHOT else 0)
    assert gone(table, ref) is (lifetime is RefLifetime.SNAPSHOT)
    assert not gone(table, bystander)
    assert len(run.finish(succeeded=True)) == (0 if lifetime is RefLifetime.SNAPSHOT else 1)


def test_parent_elsewhere(table: RefTable) -> None:
    """What lasts until the caller's run ended goes when that caller says so of that run, and nothing else does."""
    runs = {(owner, parent): served(table, owner, parent) for owner in (ALICE, BOB) for parent in ("p1", "p2")}
    refs = {key: put(run, lifetime="parent_finish") for key, run in runs.items()}
    kept = put(runs[ALICE, "p1"])
    for run in runs.values():
        run.finish(succeeded=True)
    assert table.parent_ended(ALICE, "p1") == 1
    assert [key for key, ref in refs.items() if gone(table, ref, key[0])] == [(ALICE, "p1")]
    assert not gone(table, kept)
    assert table.parent_ended(ALICE, "p1") == 0


def test_parent_here(table: RefTable) -> None:
    """A local child's refs that wait for the parent, or for nobody, outlive the child; the parent's end takes the former."""
    parent = served(table)
    child = parent.child()
    waiting, staying = put(child, lifetime="parent_finish"), put(child, lifetime="explicit_drop")
    assert child.finish(succeeded=True) == (waiting, staying)
    assert parent.value(waiting.uuid) == b"value"
    assert parent.finish(succeeded=True) == (staying,), "a served run lists what its own children left for its caller"
    assert gone(table, waiting)
    assert not gone(table, staying)


def test_failed_parent_takes_all(table: RefTable) -> None:
    """When the parent fails, what its children left goes too."""
    parent = served(table)
    child = parent.child()
    put(child, lifetime="parent_finish")
    put(child, lifetime="explicit_drop")
    child.finish(succeeded=True)
    parent.finish(succeeded=False)
    assert len(table) == 0


def test_child_that_outlives_its_parent(table: RefTable, clock: Clock) -> None:
    """With its parent over, a child's ref has nobody to wait for; what lives on has a lease then."""
    parent = served(table)
    child = parent.child()
    waiting, staying = put(child, lifetime="parent_finish"), put(child, lifetime="explicit_drop")
    parent.finish(succeeded=True)
    assert child.finish(succeeded=True) == (staying,)
    assert gone(table, waiting)
    clock.now += 60
    assert gone(table, staying)


def test_lease(table: RefTable, clock: Clock) -> None:
    """A lease does not run while the run lives, begins at its end, begins anew at each use, and is over by itself."""
    run = served(table)
    ref = put(run)
    clock.now += 1000
    assert run.finish(succeeded=True) == (ref,)
    for _ in range(3):
        clock.now += 59
        table.use(ref.uuid, ALICE)
    clock.now += 59
    table.expire()
    assert (len(table), table.next_end) == (1, clock.now + 1)
    clock.now += 1
    table.expire()
    assert (len(table), table.size_bytes) == (0, 0)


def test_lease_of_its_own(table: RefTable, clock: Clock) -> None:
    """A put may give its own lease; the table knows when the first of all is over."""
    run = served(table)
    short, default, long = put(run, lease_secs=5), put(run), put(run, lease_secs=500)
    run.finish(succeeded=True)
    assert table.next_end == clock.now + 5
    clock.now += 5
    assert [gone(table, ref) for ref in (short, default, long)] == [True, False, False]
    clock.now += 60
    table.expire()
    assert [gone(table, ref) for ref in (default, long)] == [True, False]


def test_no_lease_at_home(clock: Clock) -> None:
    """In a process of its own no caller can die before the value does: what survives a local run has no lease."""
    table = RefTable(LIMITS, clock=clock, epoch_ms=lambda: 0, new_uuid=uuid4, leases=False)
    run = RunRefs(table)
    ref = put(run, lifetime="explicit_drop")
    run.finish(succeeded=True)
    clock.now += 1e9
    table.expire()
    assert not gone(table, ref, ANONYMOUS)


def test_unserializable_is_not_listed(table: RefTable) -> None:
    """A value without a serializer is for the run's own steps: it is not listed and goes with the run."""
    run = served(table)
    refs = [put(run, object()), put(run, object(), lifetime="parent_finish")]
    assert run.finish(succeeded=True) == ()
    assert all(gone(table, ref) for ref in refs)


def over_run_count(run: RunRefs, _: RefTable) -> None:
    for _n in range(4):
        put(run)


def over_run_bytes(run: RunRefs, _: RefTable) -> None:
    put(run, b"x" * 50)
    put(run, b"x" * 51)


def over_count(run: RunRefs, table: RefTable) -> None:
    for _n in range(5):
        put(served(table))
    put(run)


def over_bytes(run: RunRefs, table: RefTable) -> None:
    put(served(table), b"x" * 100)
    put(run, b"x" * 51)


def test_unserializable_that_stays(table: RefTable) -> None:
    """What is to be dropped outlives the run for later runs of its caller, and is not listed all the same."""
    thing, run = object(), served(table)
    ref = put(run, thing, lifetime="explicit_drop")
    assert run.finish(succeeded=True) == ()
    assert served(table).value(ref.uuid) is thing
    assert served(table).drop(ref.uuid) is True


OVER = [
    pytest.param(over_run_count, "this run holds 3 session refs, as many as may be", id="run-count"),
    pytest.param(over_run_bytes, "this run's session refs would be over 100 bytes together", id="run-bytes"),
    pytest.param(over_count, "this peer holds 5 session refs, as many as may be", id="table-count"),
    pytest.param(over_bytes, "this peer's session refs would be over 150 bytes together", id="table-bytes"),
]


@pytest.mark.parametrize(("fill", "text"), OVER)
def test_limits(table: RefTable, fill: Callable[[RunRefs, RefTable], None], text: str) -> None:
    """Over a limit a put raises, says which, and holds nothing more."""
    run = served(table)
    with pytest.raises(OverloadedError) as raised:
        fill(run, table)
    assert str(raised.value) == text
    before = len(table), table.size_bytes
    with pytest.raises(OverloadedError):
        put(run, b"x" * 101)
    assert (len(table), table.size_bytes) == before


def test_limits_are_reached(table: RefTable) -> None:
    """Exactly as much as a limit says may be held, and a release or an end makes room."""
    run = served(table)
    first = put(run, b"x" * 100)
    assert run.drop(first.uuid) is True
    for _ in range(3):
        put(run, b"x" * 33)
    run.finish(succeeded=False)
    another = served(table)
    put(another, b"x" * 100)
    put(served(table), b"x" * 50)
    assert table.size_bytes == 150


def test_expired_make_room(table: RefTable, clock: Clock) -> None:
    """Refs whose lease is over do not count against the table's limits, even when nobody ended them yet."""
    for _ in range(5):
        run = served(table)
        put(run, b"x" * 30)
        run.finish(succeeded=True)
    clock.now += 60
    put(served(table), b"x" * 100)
    assert (len(table), table.size_bytes) == (1, 100)


def pieces(_: object) -> Iterator[bytes]:
    yield from (b"abc", bytearray(b"de"), memoryview(b"f"))


SIZES = [
    pytest.param(b"12345", None, None, 5, id="bytes"),
    pytest.param(memoryview(b"12345678").cast("I"), None, None, 8, id="view-of-wider-items"),
    pytest.param("text", str.encode, None, 4, id="serializer"),
    pytest.param(None, pieces, None, 6, id="pieces"),
    pytest.param("text", str.encode, 77, 77, id="given"),
    pytest.param(object(), None, None, 0, id="of-use-here-alone"),
]


@pytest.mark.parametrize(("value", "serializer", "size_bytes", "counted"), SIZES)
def test_size(table: RefTable, value: object, serializer: object, size_bytes: int | None, counted: int) -> None:
    """A value counts for the bytes that it is written as, or for what the put says."""
    put(served(table), value, serializer=serializer, size_bytes=size_bytes)
    assert table.size_bytes == counted


def test_measuring_stops(table: RefTable) -> None:
    """A value that goes on for ever is refused, not written for ever."""
    with pytest.raises(OverloadedError):
        put(served(table), None, serializer=lambda _: itertools.repeat(b"x"))


def test_given_size_is_not_measured(table: RefTable) -> None:
    """With its size given, a put does not call the serializer."""

    def never(_: object) -> bytes:
        raise AssertionError

    put(served(table), None, serializer=never, size_bytes=1)


WRONG = [
    pytest.param({"type_tag": ""}, "type tag", id="empty-tag"),
    pytest.param({"type_tag": "x" * 513}, "type tag", id="long-tag"),
    pytest.param({"type_tag": "\ud800"}, "type tag", id="lone-surrogate"),
    pytest.param({"type_tag": None}, "type tag", id="no-text"),
    pytest.param({"lifetime": "for_ever"}, "context, explicit_drop, snapshot, parent_finish", id="lifetime"),
    pytest.param({"lease_secs": 0}, "lease_secs", id="no-lease"),
    pytest.param({"lease_secs": float("inf")}, "lease_secs", id="endless-lease"),
    pytest.param({"lease_secs": float("nan")}, "lease_secs", id="nan-lease"),
    pytest.param({"size_bytes": -1}, "size_bytes", id="negative-size"),
    pytest.param({"serializer": "json"}, "serializer", id="serializer-no-function"),
    pytest.param({"serializer": lambda _: "text"}, "not str", id="serializer-makes-text"),
    pytest.param({"serializer": lambda _: 5}, "not int", id="serializer-makes-number"),
    pytest.param({"serializer": lambda _: ["text"]}, "not str", id="pieces-of-text"),
]


@pytest.mark.parametrize(("options", "text"), WRONG)
def test_wrong_put(table: RefTable, options: dict[str, object], text: str) -> None:
    """What cannot be a ref is refused where it is put, and says what is wrong."""
    with pytest.raises(ValidationError, match=text):
        put(served(table), **options)
    assert len(table) == 0


def test_put_after_the_end(table: RefTable) -> None:
    """A step that outlives its run cannot leave a ref that nothing would end."""
    run = served(table)
    run.finish(succeeded=True)
    with pytest.raises(ValidationError, match="the run is over"):
        put(run)
    assert len(table) == 0


def test_puts_from_threads(clock: Clock) -> None:
    """Plain steps put from threads: none is lost, none is over the limit, and none comes after the end."""
    table = RefTable(ServerSettings(max_run_refs=500), clock=clock, epoch_ms=lambda: 0, new_uuid=uuid4)
    run, begun, made = served(table), threading.Barrier(5), []

    def work() -> None:
        begun.wait(10)
        for _ in range(200):
            try:
                made.append(put(run))
            except (OverloadedError, ValidationError):
                return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait(10)
    listed = run.finish(succeeded=True)
    for thread in threads:
        thread.join(10)
    assert set(listed) == set(made)
    assert len(table) == len(listed) <= 500


def test_repr_holds_no_value(table: RefTable) -> None:
    """No log gets a value by way of an entry's repr."""
    ref = put(served(table), b"canary")
    assert "canary" not in repr(table.use(ref.uuid, ALICE))


def test_at_the_end(table: RefTable) -> None:
    """What is to be done at a run's end is done once for each key, and at once when the run is over."""
    done: list[str] = []
    run = served(table)
    for key, what in (("a", "first"), ("b", "second"), ("a", "third")):
        run.at_end(key, lambda what=what: done.append(what))  # type: ignore[misc]
    assert done == []
    run.finish(succeeded=False)
    run.finish(succeeded=False)
    assert done == ["third", "second"]
    run.at_end("a", lambda: done.append("late"))
    assert done[-1] == "late"
