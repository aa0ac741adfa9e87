"""``blazen-mesh sidecar``: what it waits for, what it says, what it takes up while it runs, and what survives it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import date
from pathlib import Path
from typing import Any

import grpc
import pytest

from blazen_mesh.discovery import NotTakenError, deliver
from blazen_mesh.generation import Generations, Source
from blazen_mesh.handover import hand_over
from blazen_mesh.mesh import load_mesh
from blazen_mesh.paths import NodePaths
from blazen_mesh.ready import readiness
from blazen_mesh.render import render_node
from blazen_mesh.sidecar import HotRestart, Sidecar
from blazen_mesh.succession import BASE_IDS, SHARED_MEMORY, Turn
from blazen_mesh.xds import version_of

pytestmark = pytest.mark.envoy
WAIT_SECS = 30.0
RATE = 50.0


def alive(pid: int) -> bool:
    """Say whether process *pid* runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def shared_memory(orders: Path) -> Path:
    """Return the shared memory of the Envoy, the first of its kind, that takes orders on the socket *orders*."""
    return Path(SHARED_MEMORY.format(orders.name.removeprefix("hot_parent_")))


async def until(condition: Callable[[], object]) -> None:
    """Poll *condition* until it holds."""
    async with asyncio.timeout(WAIT_SECS):
        while not condition():  # noqa: ASYNC110 - a process or a file has to be looked at
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def load(mesh: Any) -> AsyncIterator[list[bytes]]:
    """Make RATE calls a second on one channel, without any retry, while the block runs; each must be answered, once."""
    channel, answers, tasks, over = mesh.channel("intake", "analyst"), [], set(), asyncio.Event()

    async def call(number: int) -> None:
        answers.append(await mesh.call("intake", "analyst", b"%d" % number, channel=channel, timeout=20))

    async def calls() -> None:
        begun = time.monotonic()
        while not over.is_set():
            tasks.add(asyncio.create_task(call(len(tasks))))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), max(0.0, begun + len(tasks) / RATE - time.monotonic()))

    calling = asyncio.create_task(calls())
    try:
        yield answers
    finally:
        over.set()
        await calling
        done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [failure for failure in done if failure is not None] == []
    executed = [call.request for call in mesh.peers["analyst"].calls]
    assert sorted(executed) == sorted(b"%d" % number for number in range(len(tasks)))


async def test_waits_for_its_certificate(start_mesh: Any, certificates: Any) -> None:
    """Without an identity it waits and says for what; once there is one it serves, and says so to all who may want to know."""
    late = certificates.directory / "nodes" / "analyst"
    mesh = await start_mesh(identities={"analyst": late}, sidecars=["intake"])
    ready_file = mesh.root / "ready"
    analyst = await mesh.supervise("analyst", "--ready-file", str(ready_file), ready=False)
    status = await analyst.until(lambda status: status["state"] == "waiting")
    assert (status["ready"], status["why_not"]) == (False, f"no tls.crt in {late}/current: No such file or directory")
    await mesh.said("analyst", "waiting for a certificate: no tls.crt in")
    assert not ready_file.exists()
    serial = certificates.issue("analyst").certificate.serial_number
    status = await analyst.until(lambda status: status["ready"])
    assert (int(status["serial"], 16), status["starts"], status["degraded"]) == (serial, 1, [])
    assert json.loads(ready_file.read_text())["envoy_pid"] == status["envoy_pid"]
    assert await mesh.call("intake", "analyst") == b"hello"
    analyst.child.ask_to_end()
    assert await analyst.ended() == 0
    assert not ready_file.exists()


async def test_does_not_wait_for_ever(start_mesh: Any, certificates: Any) -> None:
    """After --wait-secs it gives up with exit code 1, and says what is missing and how to make it."""
    late = certificates.directory / "nodes" / "analyst"
    mesh = await start_mesh(identities={"analyst": late}, sidecars=[])
    analyst = await mesh.supervise("analyst", "--wait-secs", "0.3", ready=False)
    assert await analyst.ended() == 1
    (entry,) = mesh.log("analyst", level="error")
    assert entry["message"] == (
        f"no certificate after 0.3 s: no tls.crt in {late}/current: No such file or directory; "
        "make one with blazen-certs issue analyst, or on this node with blazen-certs join"
    )


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        pytest.param({"more": 1}, 1, "more: unknown key", id="mesh-file"),
        pytest.param({"peers": {}}, 1, "at least one is needed", id="no-such-node"),
    ],
)
async def test_wrong_from_the_start(start_mesh: Any, changes: Any, code: int, words: str) -> None:
    """A mesh file that is wrong when it starts ends it, with the reason as a line of its log."""
    mesh = await start_mesh(sidecars=[])
    mesh.table.update(changes)
    analyst = await mesh.supervise("analyst", ready=False)
    assert await analyst.ended() == code
    assert words in mesh.log("analyst", level="error")[0]["message"]


async def test_policy_changes_while_it_runs(start_mesh: Any) -> None:
    """Another mesh file is in force within seconds, both ways, under calls, and by the same Envoy."""
    mesh = await start_mesh(sidecars=["intake"])
    analyst = await mesh.supervise("analyst")
    before, table = analyst.status, dict(mesh.table)
    assert await mesh.call("intake", "analyst") == b"hello"
    mesh.write_toml(flows=[], peers={**table["peers"], "intake": {**table["peers"]["intake"], "egress": {}}})

    async def refused() -> None:
        while True:
            await mesh.call("intake", "analyst")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(refused(), WAIT_SECS)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await analyst.until(lambda status: status["generation"] != before["generation"])
    mesh.write_toml(**table)
    status = await analyst.until(lambda status: status["generation"] == before["generation"])
    await mesh.call("intake", "analyst")
    assert (status["envoy_pid"], status["starts"]) == (before["envoy_pid"], 1)


async def test_mistake_in_the_mesh_file(start_mesh: Any) -> None:
    """A wrong file changes nothing: calls pass, the sidecar is ready and says how it is degraded, until the file is right."""
    mesh = await start_mesh(sidecars=["intake"])
    analyst = await mesh.supervise("analyst")
    generation = analyst.status["generation"]
    mesh.write_toml(more=1)
    status = await analyst.until(lambda status: status["degraded"])
    assert (status["ready"], status["generation"]) == (True, generation)
    assert status["degraded"] == [f"{mesh.root}/mesh.toml: more: unknown key; what was in place stays"]
    assert await mesh.call("intake", "analyst") == b"hello"
    del mesh.table["more"]
    mesh.write_toml()
    await analyst.until(lambda status: status["ready"] and not status["degraded"])
    assert len([entry for entry in mesh.log("analyst", level="warning") if "unknown key" in entry["message"]]) == 1


async def test_flow_ends_at_midnight(start_mesh: Any, envoy: Path) -> None:
    """A flow's last day is over with the day, in UTC, though nobody touches the file."""
    mesh = await start_mesh(sidecars=[])
    path = mesh.root / "mesh.toml"
    mesh.write_toml()
    path.write_text(path.read_text().replace('"why" =', '"until" = 2030-06-30, "why" ='))
    home = mesh.root / "analyst"
    paths = NodePaths(str(mesh.identities["analyst"]), str(home), str(home / "admin.sock"), str(home / "proof"))
    generations = Generations(Source(path, "analyst", paths), envoy)
    assert await generations.put_in_place(date(2030, 6, 30), None)
    assert "intake" in (home / "policy.json").read_text()
    assert not generations.due(date(2030, 6, 30))
    assert generations.due(date(2030, 7, 1))
    assert await generations.put_in_place(date(2030, 7, 1), None)
    assert "intake" not in (home / "policy.json").read_text()


async def test_what_was_not_taken_is_tried_again(mesh: Any, envoy: Path) -> None:
    """A policy that was narrowed at a moment when a file could not be written, or Envoy was slow, is put in place later."""
    home, admin, today = mesh.root / "analyst", mesh.sidecars["analyst"].admin, date(2030, 6, 30)
    generations = Generations(Source(mesh.root / "mesh.toml", "analyst", mesh.paths("analyst")), envoy, retry_secs=0.0)
    mesh.write_toml()
    await generations.put_in_place(today, admin)
    assert not generations.due(today)
    mesh.table["flows"] = []
    for peer in mesh.table["peers"].values():
        peer.pop("egress", None)
    mesh.write_toml()
    (home / "policy.json").unlink()
    (home / "policy.json").mkdir()
    with pytest.raises(NotTakenError, match=f"cannot write {home}/policy.json: Is a directory"):
        await generations.put_in_place(today, admin)
    assert generations.due(today)
    (home / "policy.json").rmdir()
    files = render_node(load_mesh(mesh.root / "mesh.toml"), "analyst", mesh.paths("analyst"), day=today)
    files["rds.json"] = files["rds.json"].replace(version_of(files["rds.json"]), "another")
    with pytest.raises(NotTakenError, match="Envoy has not taken"):  # another one's: it never will
        await deliver(files, home, mesh.sidecars["intake"].admin, envoy=None, within_secs=0.2)
    assert await generations.put_in_place(today, admin)
    assert not generations.due(today)
    assert "intake" not in (home / "policy.json").read_text()


async def test_envoy_that_dies_is_started_again(start_mesh: Any) -> None:
    """An Envoy that was killed is there again within a moment; meanwhile the sidecar is not ready."""
    mesh = await start_mesh(sidecars=["intake"])
    analyst = await mesh.supervise("analyst")
    os.kill(analyst.status["envoy_pid"], signal.SIGKILL)
    await mesh.said("analyst", "was killed by signal 9")
    status = await analyst.until(lambda status: status["ready"] and status["starts"] == 2)
    assert alive(status["envoy_pid"])
    assert await mesh.call("intake", "analyst") == b"hello"


async def test_envoy_that_cannot_live(start_mesh: Any) -> None:
    """Where Envoy cannot start, its own reason is told, and the command ends instead of trying for ever."""
    mesh = await start_mesh(sidecars=["analyst"])
    mesh.identities["second"] = mesh.identities["analyst"]
    argv = ("--config-dir", str(mesh.root / "second"), "--start-secs", "2")
    analyst = await mesh.supervise("analyst", *argv, ready=False)
    assert await analyst.ended() == 1
    assert any("ddress already in use" in entry["message"] for entry in mesh.log("analyst", log="envoy"))


async def test_killed_supervisor_leaves_no_envoy(start_mesh: Any) -> None:
    """Killed without a chance to clean up, it takes its Envoy along; what it left does not keep the next one from starting."""
    mesh = await start_mesh(sidecars=["intake"])
    analyst = await mesh.supervise("analyst")
    envoy = analyst.status["envoy_pid"]
    left = [shared_memory(orders) for orders in (mesh.root / "analyst").glob("hot_parent_*")]
    assert [path.exists() for path in left] == [True]
    os.kill(analyst.child.pid, signal.SIGKILL)
    await until(lambda: not alive(envoy))
    await mesh.supervise("analyst")
    assert await mesh.call("intake", "analyst") == b"hello"
    assert not left[0].exists()


async def test_what_others_have_in_the_way(start_mesh: Any) -> None:
    """What it may not remove where Envoy keeps its shared memory does not keep it from starting: it draws another name."""
    mesh = await start_mesh(sidecars=["intake"])
    home = mesh.root / "analyst"
    home.mkdir()
    orders = home / f"hot_parent_{Turn.first().base_id * 10}"
    orders.touch()
    (taken := shared_memory(orders)).mkdir()  # root may remove all that is another's, but no directory with unlink
    try:
        analyst = await mesh.supervise("analyst")
        assert (taken.is_dir(), orders.exists()) == (True, False)
        assert await mesh.call("intake", "analyst") == b"hello"
        analyst.child.ask_to_end()
        assert await analyst.ended() == 0
    finally:
        taken.rmdir()


@pytest.mark.parametrize("base_id", [1, BASE_IDS])
async def test_name_of_the_socket_for_orders(base_id: int, short_dir: Path, envoy: Path) -> None:
    """Envoy takes orders on the socket that we know, with every base id that can be drawn: a greater one has another name."""
    assert all(1 <= Turn.first().base_id <= BASE_IDS for _ in range(1000))
    config, admin = short_dir / "envoy.json", short_dir / "admin.sock"
    config.write_text(json.dumps({"admin": {"address": {"pipe": {"path": str(admin)}}}}))
    hot_restart = HotRestart(base_id, 0, short_dir / "hot", 1)
    lines: list[str] = []
    sidecar = await Sidecar.start(
        "envoy",
        envoy=envoy,
        config=config,
        admin_socket=admin,
        on_line=lambda _, line: lines.append(line),
        hot_restart=hot_restart,
    )
    try:
        await until(lambda: admin.exists() or sidecar.child.returncode is not None)
        assert hot_restart.orders.is_socket(), lines
    finally:
        await sidecar.child.kill()
        shared_memory(hot_restart.orders).unlink(missing_ok=True)


async def test_killed_while_it_replaces_envoy(start_mesh: Any) -> None:
    """Killed just after one Envoy took over from another, it leaves none that the next supervisor would stumble over."""
    mesh = await start_mesh(sidecars=["intake"])
    analyst = await mesh.supervise("analyst")
    analyst.child.send(signal.SIGHUP)
    status = await analyst.until(lambda status: status["starts"] == 2)
    os.kill(analyst.child.pid, signal.SIGKILL)
    await mesh.supervise("analyst")
    assert await mesh.call("intake", "analyst") == b"hello"
    await until(lambda: not alive(status["envoy_pid"]))


async def test_end_waits_for_calls(start_mesh: Any) -> None:
    """SIGTERM lets a call in flight end, and leaves nothing behind."""
    mesh = await start_mesh(sidecars=["intake"])
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(request: bytes) -> bytes:
        begun.set()
        await go_on.wait()
        return request

    mesh.peers["analyst"].answer = wait
    analyst = await mesh.supervise("analyst", "--drain-secs", "20")
    envoy = analyst.status["envoy_pid"]
    call = asyncio.create_task(mesh.call("intake", "analyst", timeout=20))
    await begun.wait()
    analyst.child.ask_to_end()
    status = await analyst.until(lambda status: status["state"] == "draining")
    assert status["ready"] is False
    go_on.set()
    assert await call == b"hello"
    assert await analyst.ended() == 0
    assert not alive(envoy)
    assert not [path.name for path in analyst.home.iterdir() if path.is_socket()]


async def test_end_is_bounded(start_mesh: Any) -> None:
    """A call that does not end is cut off after --drain-secs; a second SIGTERM does not even wait for that."""
    mesh = await start_mesh(sidecars=["intake"])
    begun = asyncio.Event()

    async def hang(request: bytes) -> bytes:
        begun.set()
        await asyncio.sleep(60)
        return request

    mesh.peers["analyst"].answer = hang
    for drain_secs, signals in (("0.2", 1), ("60", 2)):
        begun.clear()
        analyst = await mesh.supervise("analyst", "--drain-secs", drain_secs)
        call = asyncio.create_task(mesh.call("intake", "analyst", timeout=50))
        await begun.wait()
        for _ in range(signals):
            analyst.child.send(signal.SIGTERM)
            await analyst.until(lambda status: status["state"] in ("draining", "gone"))
        assert await analyst.ended() == 0
        with pytest.raises(grpc.aio.AioRpcError):
            await call


@pytest.mark.parametrize("node", [pytest.param("analyst", id="the-callees"), pytest.param("intake", id="the-callers")])
async def test_envoy_is_replaced_under_load(start_mesh: Any, node: str) -> None:
    """On SIGHUP another Envoy takes the ports over: no call fails, though nobody retries, each is executed once. The old one
    ends as soon as nobody is connected to it any more, long before it would have to."""
    mesh = await start_mesh(sidecars=[], extra={"connection_age_secs": 4})
    fleet = {name: await mesh.supervise(name, "--drain-secs", "100") for name in ("analyst", "intake")}
    before = fleet[node].status["envoy_pid"]
    async with load(mesh) as answers:
        await until(lambda: len(answers) > 10)
        fleet[node].child.send(signal.SIGHUP)
        status = await fleet[node].until(lambda status: status["starts"] == 2)
        await until(lambda: not alive(before))
        seen = len(answers)
        await until(lambda: len(answers) > seen + 10)
    assert status["envoy_pid"] != before


@pytest.mark.parametrize("node", [pytest.param("analyst", id="the-callees"), pytest.param("intake", id="the-callers")])
async def test_supervisor_is_replaced_under_load(start_mesh: Any, node: str) -> None:
    """A second supervisor takes the sidecar over from the first, which ends by itself: no call fails, each executed once."""
    mesh = await start_mesh(sidecars=[])
    fleet = {name: await mesh.supervise(name, "--drain-secs", "2") for name in ("analyst", "intake")}
    first, before = fleet[node], fleet[node].status["envoy_pid"]
    async with load(mesh) as answers:
        await until(lambda: len(answers) > 10)
        second = await mesh.supervise(node, "--drain-secs", "2", ready=False)
        assert await first.ended() == 0
        status = await second.until(lambda status: status["ready"])
        seen = len(answers)
        await until(lambda: len(answers) > seen + 10)
    assert status["envoy_pid"] != before
    assert not alive(before)


async def test_stopped_while_it_hands_over(start_mesh: Any) -> None:
    """Told to end while another supervisor takes over, it lets that one have the sidecar first: no call fails."""
    mesh = await start_mesh(sidecars=["intake"])
    first = await mesh.supervise("analyst", "--drain-secs", "2")
    async with load(mesh) as answers:
        await until(lambda: len(answers) > 10)
        second = await mesh.supervise("analyst", "--drain-secs", "2", ready=False)
        await mesh.said("analyst", "another supervisor asks for it")
        first.child.ask_to_end()
        assert await first.ended() == 0
        await second.until(lambda status: status["ready"])
        seen = len(answers)
        await until(lambda: len(answers) > seen + 10)


async def test_started_while_another_one_ends(start_mesh: Any) -> None:
    """Started while a supervisor drains, another one waits for its end, and starts afresh."""
    mesh = await start_mesh(sidecars=["intake"])
    first = await mesh.supervise("analyst")
    first.child.ask_to_end()
    await mesh.said("analyst", "draining")
    second = await mesh.supervise("analyst", ready=False)
    assert await first.ended() == 0
    await second.until(lambda status: status["ready"])
    assert await mesh.call("intake", "analyst") == b"hello"


async def test_old_envoy_that_dies_on_its_way_out(start_mesh: Any) -> None:
    """The new Envoy lives on though the old one is killed before its time: another takes the order that was meant for it."""
    mesh = await start_mesh(sidecars=["intake"])
    go_on = asyncio.Event()

    async def wait(request: bytes) -> bytes:
        if request == b"long":
            await go_on.wait()
        return request

    mesh.peers["analyst"].answer = wait
    analyst = await mesh.supervise("analyst", "--drain-secs", "3")
    old = analyst.status["envoy_pid"]
    long_call = asyncio.create_task(mesh.call("intake", "analyst", b"long", timeout=20))  # keeps the old one
    await until(lambda: len(mesh.peers["analyst"].calls) == 1)
    analyst.child.send(signal.SIGHUP)
    await analyst.until(lambda status: status["starts"] == 2)
    os.kill(old, signal.SIGKILL)
    with pytest.raises(grpc.aio.AioRpcError):
        await long_call
    go_on.set()
    end = time.monotonic() + 6  # its order comes after 4 s, and the wait for somebody to take it would begin
    while time.monotonic() < end:
        assert await mesh.call("intake", "analyst", b"short", timeout=2) == b"short"
        assert await analyst.admin.unready() is None
        await asyncio.sleep(0.1)
    assert analyst.status["starts"] == 2


async def test_stopped_while_it_waits(start_mesh: Any, certificates: Any) -> None:
    """SIGTERM ends it at once while it waits for a certificate."""
    mesh = await start_mesh(identities={"analyst": certificates.directory / "nodes" / "analyst"}, sidecars=[])
    analyst = await mesh.supervise("analyst", ready=False)
    await analyst.until(lambda status: status["state"] == "waiting")
    analyst.child.ask_to_end()
    assert await analyst.ended() == 0


async def test_successor_that_fails(start_mesh: Any, tmp_path: Path) -> None:
    """A second supervisor that cannot start Envoy goes away, and the first one goes on as before."""
    mesh = await start_mesh(sidecars=["intake"])
    first = await mesh.supervise("analyst")
    broken = tmp_path / "envoy"
    broken.write_text('#!/bin/sh\ncase "$*" in *validate*) exit 0;; esac\necho broken >&2; exit 1\n')
    broken.chmod(0o755)
    second = await mesh.supervise("analyst", "--envoy", str(broken), ready=False)
    assert await second.child.wait() == 1
    await first.until(lambda status: status["ready"] and status["starts"] == 2)
    assert await mesh.call("intake", "analyst") == b"hello"


async def test_successor_that_leaves_its_envoy(start_mesh: Any, envoy: Path) -> None:
    """The Envoy of a second supervisor that went away, or hung, is ended by the first one, which goes on with another."""
    mesh = await start_mesh(sidecars=["intake"])
    first = await mesh.supervise("analyst")
    reader, writer = await asyncio.open_unix_connection(first.home / "sidecar.sock")
    writer.write(b"POST /hand-over HTTP/1.1\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    turn = json.loads(await reader.readline())
    sidecar = await Sidecar.start(
        "second",
        envoy=envoy,
        config=first.home / "envoy.json",
        admin_socket=first.home / "admin.sock",
        on_line=lambda *_: None,
        hot_restart=HotRestart(turn["base_id"], turn["epoch"] + 1, first.home / "hot", 30),
    )
    try:
        await sidecar.wait_ready(WAIT_SECS)
        writer.close()
        await first.until(lambda status: status["ready"] and status["starts"] == 2)
        assert await sidecar.child.ends(WAIT_SECS)
        assert await mesh.call("intake", "analyst") == b"hello"
    finally:
        await sidecar.child.kill()


async def test_ready_file_that_cannot_be_written(start_mesh: Any) -> None:
    """It serves on without its ready file, says why that is missing, and writes it once it can."""
    mesh = await start_mesh(sidecars=["intake"])
    blocked = mesh.root / "blocked"
    blocked.touch()
    analyst = await mesh.supervise("analyst", "--ready-file", str(blocked / "ready"))
    (problem,) = analyst.status["degraded"]
    assert problem.startswith("cannot say how it is: ")
    assert str(blocked) in problem
    assert await mesh.call("intake", "analyst") == b"hello"
    blocked.unlink()
    status = await analyst.until(lambda status: not status["degraded"])
    assert json.loads((blocked / "ready").read_text()) == status
    assert len(mesh.log("analyst", message=problem)) == 1


async def test_log_that_cannot_be_written(start_mesh: Any, envoy: Path) -> None:
    """A full disk under its log costs the log, and neither its start nor its orderly end."""
    mesh = await start_mesh(sidecars=["intake"])
    argv = ["--node", "analyst", "--mesh", str(mesh.write_toml()), "--identity-dir", str(mesh.identities["analyst"])]
    argv += ["--config-dir", str(mesh.root / "analyst"), "--envoy", str(envoy), "--drain-secs", "0"]
    full = os.open("/dev/full", os.O_WRONLY)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "blazen_mesh", "sidecar", *argv, stdout=full)
    os.close(full)
    try:
        async with asyncio.timeout(WAIT_SECS):
            while not (await asyncio.to_thread(readiness, mesh.root / "analyst"))["ready"]:
                assert process.returncode is None
                await asyncio.sleep(0.02)
        assert await mesh.call("intake", "analyst") == b"hello"
        process.terminate()
        await asyncio.wait_for(process.wait(), WAIT_SECS)
        assert not (mesh.root / "analyst" / "sidecar.sock").exists()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_successor_that_says_nothing(tmp_path: Path) -> None:
    """One that asks, and then neither serves nor goes away, is waited for no longer than it is given."""
    served: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.set_result(await hand_over("analyst", Turn(7, 2), reader, writer, within_secs=0.2))
        writer.close()

    path = str(tmp_path / "sock")
    async with await asyncio.start_unix_server(asked, path), asyncio.timeout(WAIT_SECS):
        reader, writer = await asyncio.open_unix_connection(path)
        assert not await served
        assert (await reader.read()).endswith(b'{"node": "analyst", "base_id": 7, "epoch": 2}\n')
        writer.close()


def test_ready_command(tmp_path: Path) -> None:
    """Both forms of the healthcheck say the same where nobody answers, with exit code 1."""
    for argv in (["blazen_mesh", "ready", "--config-dir", str(tmp_path)], ["blazen_mesh.ready", str(tmp_path)]):
        done = subprocess.run([sys.executable, "-m", *argv], capture_output=True, text=True, timeout=WAIT_SECS, check=False)
        assert done.returncode == 1
        assert done.stdout.startswith(f"not ready: gone: no supervisor answers in {tmp_path}")


ORPHANS = """
import os, sys, time
from pathlib import Path
from blazen_mesh.init import run_as_init
run_as_init()
for _ in range(3):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
def zombies():
    return [path for path in Path("/proc").glob("[0-9]*/stat") if path.read_text().rpartition(")")[2].split()[0] == "Z"]
deadline = time.monotonic() + 20
while zombies() and time.monotonic() < deadline:
    time.sleep(0.01)
sys.exit(7 if os.getpid() != 1 and not zombies() else 1)
"""


def test_process_one() -> None:
    """As process 1 it reaps orphans, and ends with the exit code of the command."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a process namespace")
    done = subprocess.run([*unshare, sys.executable, "-c", ORPHANS], timeout=WAIT_SECS, check=False)
    assert done.returncode == 7
