"""Make a container engine and stand-ins for the images that our compose files name, where images cannot be pulled.

    eval "$(.venv/bin/python tests/compose/stand_ins start)"     the engine runs; docker and docker compose find it
    .venv/bin/python tests/compose/stand_ins stop                it has stopped, and this machine is as before

For Debian, as root. The parts are real: Debian's engine and base system, Envoy from its wheel, Jaeger compiled from its
Go module. What was made is kept below XDG_CACHE_HOME (some GB) and made again when what it was made from has changed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time

from engine import environment, start, stop
from images import make_images
from store import StandInError, say


def main() -> int:
    """Do what the command line says; 0 done, 1 failed."""
    parser = argparse.ArgumentParser(
        prog="stand_ins", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["start", "stop", "env"])
    action = parser.parse_args().action
    began = time.monotonic()
    try:
        if action == "stop":
            stop()
            return 0
        env = environment()
        if action == "start":
            env = start()
            make_images(env)
            say(f"ready after {time.monotonic() - began:.0f} s")
    except StandInError as error:
        say(str(error))
        return 1
    sys.stdout.write("".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
