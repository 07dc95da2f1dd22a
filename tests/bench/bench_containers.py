"""An operator that shows the containers of a file: what they are called, not how they are found, is what it takes.

`plugins: [bench_containers]` in the config, `--bench-containers FILE` in the run. Each line of the file has a mount
namespace and a value for each of PARTS, between tabs. It stands in for the containers of a real machine, so that the
bench has as many as it wants.
"""

from pathlib import Path

from igrun.metadata import TEXT, Param
from igrun.operators import Given, Stage, Step
from igrun.record import DataSource, Derived, Field, Key, Lookup, Value

NAME = "bench-containers"
STAGE = Stage.ENRICH
FILE = Param("bench-containers", TEXT, "", "File with the containers to show", group="operator.bench")
PARAMS = (FILE,)

TABLE = "bench_container"
PARTS = (
    ("k8s.hostnetwork", "?"),
    ("k8s.containerName", "T"),
    ("k8s.namespace", "T"),
    ("k8s.node", "T"),
    ("k8s.owner.kind", "T"),
    ("k8s.owner.name", "T"),
    ("k8s.podLabels", "T"),
    ("k8s.podName", "T"),
    ("runtime.containerId", "T"),
    ("runtime.containerImageDigest", "T"),
    ("runtime.containerImageName", "T"),
    ("runtime.containerName", "T"),
    ("runtime.containerPid", "<u4"),
    ("runtime.containerStartedAt", "<u8"),
    ("runtime.runtimeName", "T"),
)
SHOWN = "runtime.containerName"
EMPTY = {"?": False, "T": "", "<u4": 0, "<u8": 0}


def bind(given: Given) -> tuple[Step, ...]:
    path = given.value(FILE)
    if not path:
        return ()
    nobody = tuple(EMPTY[dtype] for _, dtype in PARTS)
    known = dict(map(parsed, Path(path).read_text().splitlines()))

    def container(key: Key) -> tuple[Value, ...]:
        return known.get(key, nobody)

    def prepare(plan) -> None:
        plan.tables[TABLE] = container

    return (Step(sources={name: enriched(one) for name, one in given.sources.items()}, prepare=prepare),)


def enriched(source: DataSource) -> DataSource:
    """The source with the container of its first mount namespace."""
    namespace = next((field for field in source.fields if field.has_type("gadget_mntns_id")), None)
    if namespace is None:
        return source
    return source.having(
        *(
            Field(name, dtype, Derived((namespace,), Lookup(TABLE, part)), hidden=name != SHOWN, order=-1)
            for part, (name, dtype) in enumerate(PARTS)
        )
    )


def parsed(line: str) -> tuple[int, tuple[Value, ...]]:
    """A line of the file: the mount namespace, and the values."""
    namespace, *texts = line.split("\t")
    values = [value(text, dtype) for text, (_, dtype) in zip(texts, PARTS, strict=True)]
    return int(namespace), tuple(values)


def value(text: str, dtype: str) -> Value:
    if dtype == "T":
        return text
    return text == "true" if dtype == "?" else int(text)
