"""What the bench runs, built on the spot: the C programs, the gadgets, a store with their images, the containers."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
GADGETS = {
    "bench_events": HERE / "gadgets/bench_events",
    "bench_entries": HERE / "gadgets/bench_entries",
    "trace_open": HERE.parents[1] / "gadgets/trace_open",
}
PATHS, PATH_BYTES = 256, 256
CONTAINERS, FIRST_MNTNS = 64, 4_026_600_000
KNOWN = 48
"""So many of the mount namespaces that bench_events names are those of containers."""
ODD_NAMES = (
    b'/tmp/"quoted" name',
    rb"/tmp/back\slash",
    b"/tmp/bell\x07tab\t",
    b"/tmp/not \xff\xfe UTF-8",
    "/tmp/größe→".encode(),
)
REF_NAME = "org.opencontainers.image.ref.name"
GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Made:
    """Where things are.

    ig:      `ig run`, with the store and the config of the bench
    objects: gadget -> its compiled eBPF object
    compiler: what the C programs were compiled by
    """

    folder: Path
    ig: tuple[str, ...]
    objects: dict[str, Path]
    consume: Path
    produce: Path
    compiler: str


def make(folder: Path, gadgets: Iterable[str]) -> Made:
    """Build the programs and these gadgets below the folder."""
    compiler = c_compiler()
    consume, produce = (c_program(compiler, folder, name) for name in ("consume", "produce"))
    plain = (sys.executable, "-m", "igrun")
    var = folder / "var-lib-ig"
    var.mkdir()
    Path("/var/lib/ig").mkdir(mode=0o755, exist_ok=True)
    apart = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /var/lib/ig && exec "$@"', str(var))
    objects = {}
    for name in gadgets:
        copied = folder / name
        shutil.copytree(GADGETS[name], copied)
        (copied / "table.h").write_text(table_h())
        out = folder / f"{name}.out"
        out.mkdir()
        build = (*apart, *plain, "image", "build", str(copied), "-t", f"{name}:bench", "-o", str(out), "--local")
        run_quietly(build)
        objects[name] = next(path for path in out.iterdir() if path.name.startswith(GOARCH[os.uname().machine]))
    config = folder / "config.yaml"
    config.write_text(json.dumps({"plugins": ["bench_containers"]}))
    ig = (*apart, *plain, "run", "--config", str(config), "--host", "--pull", "never", "--verify-image=false")
    version = subprocess.run((compiler, "--version"), capture_output=True, text=True).stdout.partition("\n")[0]
    return Made(folder, ig, objects, consume, produce, version)


def with_tracefs(command: Sequence[str]) -> tuple[str, ...]:
    """The command, where libbpf finds the tracepoints: igrun mounts what it needs, and takes it away again."""
    if Path("/sys/kernel/tracing/events").exists():
        return tuple(command)
    mounted = 'mount -t tracefs tracefs /sys/kernel/tracing && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", mounted, "sh", *command)


def environment() -> dict[str, str]:
    """What the processes of the bench are started with."""
    paths = [str(HERE), *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("IG_", "INSPEKTOR_GADGET_"))}
    return {**kept, "PYTHONPATH": ":".join(paths), "PYTHONSAFEPATH": "1", "TZ": "UTC"}


def run_quietly(command: Sequence[str]) -> None:
    """SystemExit with what it said, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")


def c_compiler() -> str:
    """The machine's, else the clang that gadgets are built with."""
    found = next((one for one in ("cc", "gcc", "clang", "clang-14", "clang-16", "clang-19") if shutil.which(one)), None)
    if found is None:
        sys.exit("no C compiler: install gcc")
    return found


def c_program(compiler: str, folder: Path, name: str) -> Path:
    run_quietly((compiler, "-O2", "-o", str(folder / name), str(HERE / "c" / f"{name}.c"), "-lbpf"))
    return folder / name


def table_h() -> str:
    """The names of files and the mount namespaces that bench_events tells of."""
    return "\n".join(
        (
            f"#define PATHS {PATHS}",
            f"#define PATH_BYTES {PATH_BYTES}",
            f"#define CONTAINERS {CONTAINERS}",
            f"#define FIRST_MNTNS {FIRST_MNTNS}ULL",
            "static const char paths[PATHS][PATH_BYTES] = {",
            *(f"\t{{ {', '.join(map(str, name))} }}," for name in map(path, range(PATHS))),
            "};",
            "",
        )
    )


def path(number: int) -> bytes:
    """A file's name of 36 bytes or so."""
    if number < len(ODD_NAMES):
        return ODD_NAMES[number]
    folders = (b"/usr/lib/python3.11", b"/etc", b"/var/lib/containers/storage/overlay", b"/proc/self", b"/srv/data")
    return b"%s/%s%03d.%s" % (folders[number % 5], b"x" * (number * 7 % 20), number, (b"so", b"conf")[number % 2])


def containers(folder: Path, name: str, namespaces: Iterable[int], *, cluster: bool) -> Path:
    """The file of a container for each of these mount namespaces, with names as long as real ones.

    cluster: they are in pods
    """
    lines = []
    for number, namespace in enumerate(namespaces):
        identity = f"{(number + 1) * 0x9E3779B97F4A7C15 << 190:064x}"
        pod = f"web-{number:02}-7d9c5b8f6d"
        k8s = (
            f"web-{number:02}",
            "production",
            "node-17",
            "ReplicaSet",
            pod,
            f"app=web,tier={number:02}",
            f"{pod}-x7k2p",
        )
        runtime = (identity, "", "registry.example.org/shop/web:1.27.3", f"web-{number:02}", str(10_000 + number))
        started = str(1_795_217_294_451_871_000 + number)
        of = ("false", *(k8s if cluster else [""] * len(k8s)), *runtime, started, "docker")
        lines.append("\t".join((str(namespace), *of)))
    file = folder / f"{name}.tsv"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file
