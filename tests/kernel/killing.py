"""Processes that run a gadget and are ended."""

import os
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

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


@contextmanager
def elsewhere(elf: bytes, target: Target, *, listens: bool = True) -> Iterator[Callable[[int], None]]:
    """Run it in another process, which is ended by the signal that is given to what this yields.

    listens: to what happens to its interfaces
    """
    program = Program.open(elf, GadgetMetadata())
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            with ExitStack() as stack:
                loaded = load(Plan(program, Host.current(), program.sources, stack))
                attach.follow(loaded)
                attach.attach(loaded.hooks, target, loaded)
                os.write(write, b"attached")
                try:
                    while True:
                        select.select([loaded.following] if listens else [], [], [])
                        list(loaded.following.read())
                except KeyboardInterrupt:
                    pass
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        os._exit(0)
    os.close(write)
    ended = False

    def end(number: int) -> None:
        nonlocal ended
        ended = True
        os.kill(child, number)
        os.waitpid(child, 0)

    with open(read, "rb", buffering=0) as told:
        try:
            assert told.read(10000) == b"attached"
            yield end
        finally:
            if not ended:
                end(signal.SIGTERM)
        assert not told.read(10000).decode()
