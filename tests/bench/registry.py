"""Push and pull of an image beside `skopeo copy`, through docker-registry: python registry.py [--mb N] [--runs N].

Each run sends an image of random bytes to a repository of its own and fetches it into an empty folder, first one tool,
then the other.
Prints the median of each and the ratio of ig to skopeo; 1 if ig is slower. Needs root: ig gets a store of its own.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Behind everything else: where igrun is installed, that one is measured.
sys.path.append(str(Path(__file__).parent.parent.parent))

from tests.registry import servers, tools
from tests.registry.machine import Ig, large

LAYERS = 4


def main() -> int:
    """Measure and print."""
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("--mb", type=int, default=100)
    read.add_argument("--runs", type=int, default=5)
    given = read.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        return compare(Path(folder), given.mb << 20, given.runs)


def compare(folder: Path, size: int, runs: int) -> int:
    """Print the table; 1 if ig is slower than skopeo at something."""
    skopeo = tools.find("skopeo")
    ig = Ig(folder / "var-lib-ig", folder)
    times: dict[tuple[str, str], list[float]] = {}

    def measure(tool: str, what: str, work: Callable[[], object]) -> None:
        os.sync()  # what the one has written is not for the other to wait for
        start = time.perf_counter()
        work()
        times.setdefault((what, tool), []).append(time.perf_counter() - start)

    with servers.docker_registry(folder / "registry") as registry:
        way = ("--insecure-registries", registry.address)
        copy = ("copy", "--all", "--preserve-digests")
        for number in range(runs + 1):  # the first is for the caches
            # New bytes each time: else skopeo remembers where the registry has them and sends nothing.
            ours, theirs = registry.named(f"ig/{number}"), registry.named(f"skopeo/{number}")
            with ig.store() as store:
                for name in (ours, theirs):
                    large(store, name, size, LAYERS)
            measure("ig", "push", lambda name=ours: ig("image", "push", name, *way))
            measure(
                "skopeo",
                "push",
                lambda name=theirs: skopeo(
                    *copy, "--dest-tls-verify=false", f"oci:{ig.root}:{name}", f"docker://{name}"
                ),
            )
            other = Ig(folder / "other", folder)
            measure("ig", "pull", lambda name=ours, other=other: other("image", "pull", name, *way))
            measure(
                "skopeo",
                "pull",
                lambda name=theirs: skopeo(
                    *copy, "--src-tls-verify=false", f"docker://{name}", f"oci:{folder}/layout:x"
                ),
            )
            for place in ("var-lib-ig", "other", "layout"):
                shutil.rmtree(folder / place)
    return table({key: found[1:] for key, found in times.items()}, size)


def table(times: dict[tuple[str, str], list[float]], size: int) -> int:
    """Print the medians; the exit code."""
    status = 0
    print(f"{size >> 20} MiB in {LAYERS} layers, {tools.version('docker-registry')} docker-registry")
    print(f"{'':6} {'ig':>9} {'skopeo':>9} {'ratio':>7} {'ig MB/s':>9}")
    for what in ("push", "pull"):
        ours, theirs = (statistics.median(times[what, tool]) for tool in ("ig", "skopeo"))
        print(f"{what:6} {ours:7.2f} s {theirs:7.2f} s {ours / theirs:7.2f} {size / ours / 1e6:9.0f}")
        status |= ours > theirs
    return status


if __name__ == "__main__":
    sys.exit(main())
