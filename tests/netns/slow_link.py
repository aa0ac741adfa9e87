"""A TCP relay that holds every byte for a while, each way: ``slow_link.py LISTEN TARGET SECS``, addresses as ``host:port``.

For kernels without ``netem``. It says ``listens on ADDRESS`` once it does, and ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secs: float) -> None:
    """Pass on what comes, *secs* after it came, in its order."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1024)

    async def take() -> None:
        data = b"-"
        while data:
            try:
                data = await reader.read(65536)
            except OSError:
                data = b""
            await waiting.put((loop.time() + secs, data))

    taking = asyncio.create_task(take())
    with contextlib.suppress(OSError):
        while True:
            due, data = await waiting.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                break
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    taking.cancel()


async def main(listen: str, target: str, secs: float) -> None:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = target.rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, far_writer, secs), pump(far_reader, writer, secs))
        writer.close()
        far_writer.close()

    host, _, port = listen.rpartition(":")
    server = await asyncio.start_server(relay, host, int(port))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    sys.stdout.write("listens on {}:{}\n".format(*server.sockets[0].getsockname()))
    sys.stdout.flush()
    await stop.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
