"""The pytest plug-in that looks after every test of the kernel: nothing that it made may be left there.

Programs, maps, links, pins and the places of tc's filters; what a test or its fixtures made goes before it ends, what a
module's or the session's fixtures made was there before it began.
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from igrun import bpfcall
from igrun.attach.namespaces import Namespace, inside
from igrun.errors import KernelError
from igrun.netlink import Netlink

PINS = Path("/sys/fs/bpf")
NAMESPACES = Path("/run/netns")
KINDS = {"program": bpfcall.PROG_NEXT_ID, "map": bpfcall.MAP_NEXT_ID, "link": bpfcall.LINK_NEXT_ID}
HELD = re.compile(r"^(prog|map|link)_id:\s*(\d+)$", re.MULTILINE)
MARK = f"IGRUN_TESTS_OF={os.getpid()}".encode()  # in the environment of what tests start
OF_TESTS = re.compile(r"ig(?:test)?(\d+)-\d+")  # interfaces and namespaces, with the process that made them
PATIENCE_S = 10.0  # the kernel frees things after grace periods, a guest's being long
OTHERS_S = 0.2  # after this time what is left may be another process's
Found = frozenset[tuple[str, int | str]]


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test after which the kernel holds more than before."""
    if not any(map(request.node.get_closest_marker, ("kernel", "guest"))):
        yield
        return
    name, _, value = MARK.decode().partition("=")
    os.environ[name] = value
    before = there()
    yield
    left = left_since(before)
    assert not left, f"left in the kernel: {described(left)}"


def there() -> Found:
    """What the kernel holds: (kind, id or name)."""
    return frozenset({*loaded(), *pins(), *places_of_filters()})


def left_since(before: Found, patience_s: float | None = None) -> Found:
    """What was not there before and stays, unless it belongs to a process that is none of ours."""
    patience_s = PATIENCE_S if patience_s is None else patience_s
    began = time.monotonic()
    left = there() - before
    while left:
        waited = time.monotonic() - began
        if waited > OTHERS_S or waited > patience_s:
            left -= of_others()
        if not left or waited > patience_s:
            break
        time.sleep(min(0.01 + waited / 4, 0.5))
        left &= there()
    return left


def loaded() -> Iterator[tuple[str, int]]:
    for kind, command in KINDS.items():
        try:
            yield from ((kind, number) for number in bpfcall.ids_of(command))
        except KernelError:
            # Before Linux 5.8 (f2e10bff16a0, "bpf: Add support for BPF_OBJ_GET_INFO_BY_FD for bpf_link") links have
            # no ids.
            if kind != "link":
                raise


def pins() -> Iterator[tuple[str, str]]:
    for folder, _, files in os.walk(PINS):
        yield from (("pin", f"{folder}/{name}") for name in files)


def places_of_filters() -> Iterator[tuple[str, str]]:
    """The clsact qdiscs here, and in the namespaces of this process's tests."""
    yield from (("clsact", name) for name in interfaces_with_filters() if not of_another_test(name))
    for path in NAMESPACES.glob(f"igtest{os.getpid()}-*"):
        try:
            names = inside(Namespace.at(path), interfaces_with_filters)
        except (OSError, KernelError):  # it goes just now
            continue
        yield from (("clsact", f"{path.name}/{name}") for name in names)


def interfaces_with_filters() -> list[str]:
    with Netlink() as netlink:
        names = {one.index: one.name for one in netlink.interfaces()}
        return [names.get(index, str(index)) for index in netlink.with_clsact()]


def of_another_test(interface: str) -> bool:
    """Whether another process's tests made that interface."""
    made = OF_TESTS.fullmatch(interface)
    return made is not None and int(made[1]) != os.getpid()


def of_others() -> Found:
    """Programs, maps and links that other processes hold, those of tests that run beside these for example."""
    kinds = {"prog": "program", "map": "map", "link": "link"}
    found: set[tuple[str, int | str]] = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if MARK in (process / "environ").read_bytes().split(b"\0") or process.name == str(os.getpid()):
                continue
            for told in (process / "fdinfo").iterdir():
                found |= {(kinds[kind], int(number)) for kind, number in HELD.findall(told.read_text())}
        except OSError:  # it is gone, or has closed that descriptor
            continue
    return frozenset(found)


def described(left: Found) -> str:
    return ", ".join(f"{kind} {what} {named(kind, what)}".strip() for kind, what in sorted(left, key=str))


def named(kind: str, what: int | str) -> str:
    if kind != "program" or not isinstance(what, int):
        return ""
    try:
        fd = bpfcall.program_of_id(what)
    except KernelError:  # gone since
        return ""
    try:
        return f"({bpfcall.program_name(fd)})"
    finally:
        os.close(fd)
