"""Processes that run a gadget and are killed."""

import os
import signal
from contextlib import ExitStack

from igrun import attach
from igrun.errors import UnsupportedError
from igrun.host import HOST_TARGET, Host, Target
from igrun.load import load
from igrun.metadata import GadgetMetadata
from igrun.program import Plan, Program


def killed(elf: bytes, yaml: str = "name: test\n", target: Target = HOST_TARGET) -> None:
    """Attach the programs of an object in a process that is killed then."""
    program = Program.open(elf, GadgetMetadata.parse(yaml.encode(), strict=False))
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            loaded = load(Plan(program, Host.current(), program.sources, ExitStack()))
            attach.attach(loaded.hooks, target, loaded)
            os.write(write, b"attached")
        except UnsupportedError as error:
            os.write(write, f"unsupported:{error}".encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(write)
    with open(read, "rb") as told:
        said = told.read().decode()
    os.waitpid(child, 0)
    if said.startswith("unsupported:"):
        raise UnsupportedError("here", said)
    assert said == "attached"
