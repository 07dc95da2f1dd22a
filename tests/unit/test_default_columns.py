"""What the gadgets of the ecosystem show by default, from the object to the columns."""

from pathlib import Path

import pytest

from igrun import plugins
from igrun.metadata import GadgetMetadata
from igrun.operators import Given
from igrun.program import Program
from tests.compiled import compiled

GADGETS = Path(__file__).parent.parent.parent / "gadgets"
# As their own runtime prints them, without the container's name and proc.parent.tid, which we hide
DEFAULTS = {
    "trace_open": "proc.comm,proc.pid,proc.tid,fd,fname,fpath,error,mode",
    "trace_exec": "proc.comm,proc.pid,proc.tid,tty,args,error",
    "trace_signal": "proc.comm,proc.pid,proc.tid,tpid,sig,error",
    "snapshot_process": "comm,pid,tid",
    "snapshot_socket": "src,dst,state",
}


def default_columns(program: Program, metadata: GadgetMetadata) -> list[str]:
    sources = program.sources
    for operator in plugins.operators():
        for step in operator.bind(Given(metadata, program, sources, {})):
            sources = step.sources
    (source,) = sources.values()
    fields = sorted(source.fields, key=lambda one: one.order)
    return [one.name for one in fields if not one.hidden and one.place is not None]


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_gadget_shows_the_columns_of_the_ecosystems(name):
    folder = GADGETS / name
    metadata = GadgetMetadata.parse((folder / "gadget.yaml").read_bytes(), strict=True)
    program = Program.open(compiled((folder / "program.bpf.c").read_text(), head=""), metadata)
    program.check(metadata)

    assert default_columns(program, metadata) == DEFAULTS[name].split(",")
