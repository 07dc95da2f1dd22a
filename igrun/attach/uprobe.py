"""uprobes: programs at functions and USDT probes of programs and libraries, the host's or a container's."""

from __future__ import annotations

import os
from ctypes import addressof, create_string_buffer
from errno import E2BIG, EINVAL, ENOENT, ESTALE
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from igrun.attach.common import Links, cookie_of, feature, handle_of, linked, refused
from igrun.attach.functions import expression, is_pattern, words
from igrun.attach.inodes import Inode, inode_of
from igrun.attach.usdt import Arguments, has_cookies
from igrun.bpfcall import uprobe_multi
from igrun.choosing import kind_of
from igrun.clib import perf_event_open
from igrun.dataclass import dataclass, field
from igrun.errors import AttachError, GadgetError, ImageError, KernelError, NotFoundError, UnsupportedError
from igrun.host import HOST_TARGET
from igrun.logs import Logger
from igrun.symbols import Opened, paths
from igrun.symbols.rooted import Root

if TYPE_CHECKING:
    from igrun.host import Target
    from igrun.libbpf import BpfLink
    from igrun.load import Closable
    from igrun.program import Hook

UPROBE_PMU = Path("/sys/bus/event_source/devices/uprobe")
AT_RETURN = ("uretprobe", "uretprobe.multi")
MULTI = ("uprobe.multi", "uretprobe.multi", "uprobe.session")
# So many functions are probed one by one where the kernel has no uprobe.multi; each takes a moment and some memory.
MOST_ONE_BY_ONE = 100
MOST_SPOTS = 1024  # of one probe or function; each takes a descriptor, and a container may bring any file
MOST_COUNTER = 1 << 32  # the kernel has 32 bits for where a semaphore is
RETURN = 1  # BPF_F_UPROBE_MULTI_RETURN; the bit of the uprobe PMU's config
COUNTER_SHIFT = 32  # in that config
MISSING = (NotFoundError, ImageError, KernelError)


class Spot(NamedTuple):
    """Where in a file. counter: offset of its semaphore, 0: none; address, arguments: of a USDT probe."""

    offset: int
    counter: int = 0
    address: int = 0
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Spots in one file. The same file by other ways, in other containers, is the same place.

    machine:    EM_* of the file; fixed: its code runs at the addresses that the file says
    root, path: one of the ways to it; seen: device and inode number that stat(2) tells by this way
    strict:     that it is gone meanwhile is an error
    """

    inode: Inode
    spots: tuple[Spot, ...]
    machine: int = field(compare=False)
    fixed: bool = field(compare=False)
    root: Path = field(compare=False)
    path: str = field(compare=False)
    seen: tuple[int, int] = field(compare=False)
    strict: bool = field(compare=False)


def places(hook: Hook, target: Target) -> tuple[Place, ...]:
    """One in each file that the target means; none where a container does not have it.

    AttachError: the host does not have it; UnsupportedError: this kernel has no uprobes
    """
    if not UPROBE_PMU.exists():
        # Before Linux 4.17 (33ea4b24277b, "perf/core: Implement the 'perf_uprobe' PMU") there were other ways.
        raise UnsupportedError(feature(hook), "this kernel was built without uprobes (CONFIG_UPROBE_EVENTS)")
    strict = target.name == HOST_TARGET.name
    file, what = parts_of(hook)
    found: dict[Place, None] = {}
    failures: list[GadgetError] = []
    machine = os.uname().machine
    try:
        with Root(target.root) as root:
            for path in paths(root, file, machine):
                try:
                    with Opened(root, path, machine) as binary:
                        found[place_of(binary, spots(hook, binary, what), target.root, path, strict=strict)] = None
                except MISSING as error:
                    failures.append(error)
                    if path not in str(error):
                        failures[-1] = NotFoundError(f"{path}: {error}", hint=error.hint)
    except MISSING as error:
        failures.append(error)
    if not found:
        # Of several the first one is this machine's own, and others may well lack what is meant.
        told = AttachError(
            ENOENT, hook.program, hook.section, hook.attach_to, reason=str(failures[0]), hint=failures[0].hint
        )
        if strict:
            raise told
        Logger(__name__).debug("%s: %s", target.name, told)
    return tuple(found)


def attach(hook: Hook, place: Place) -> Closable:
    """Attach the program. AttachError; UnsupportedError: the kernel cannot do it; MetadataError: an option."""
    try:
        root = Root(place.root)
    except KernelError as error:
        return gone(hook, place, error)
    with root:
        try:
            file = root.open(place.path)
        except KernelError as error:
            return gone(hook, place, error)
        with file:
            about = os.fstat(file.fd)
            if (about.st_dev, about.st_ino) != place.seen:
                return gone(hook, place, KernelError(ESTALE, f"{place.path} became another file"))
            # The kernel keeps what it needs of the file; the descriptor is for this moment.
            return attached(hook, place, f"/proc/self/fd/{file.fd}")


def gone(hook: Hook, place: Place, error: KernelError) -> Links:
    """What keeps nothing attached, where that is no error. AttachError."""
    told = AttachError(error.errno or ENOENT, hook.program, hook.section, hook.attach_to, reason=str(error))
    if place.strict:
        raise told
    Logger(__name__).debug("%s", told)
    return Links()


# ------------------------------------------------------------------------------------------------ what is meant


def parts_of(hook: Hook) -> tuple[str, str]:
    """FILE, and what is meant in it: FUNCTION[+OFFSET], 0xOFFSET, a pattern, or PROVIDER:PROBE. AttachError."""
    if kind_of(hook) == "usdt":
        parts, form = hook.attach_to.rsplit(":", 2), "FILE:PROVIDER:PROBE"
        good = len(parts) == 3
    else:
        parts, form = hook.attach_to.split(":", 1), "FILE:FUNCTION"
        good = len(parts) == 2
    if not good or not all(parts):
        raise AttachError(EINVAL, hook.program, hook.section, hook.attach_to, reason=f"it is not of the form {form}")
    return parts[0], ":".join(parts[1:])


def spots(hook: Hook, binary: Opened, what: str) -> tuple[Spot, ...]:
    """Where that is in a file. NotFoundError: nowhere, or nowhere that it could be; ImageError."""
    kind = kind_of(hook)
    if kind == "usdt":
        provider, _, name = what.partition(":")
        probes = binary.probe(provider, name)
        return tuple(Spot(one.offset, one.counter, one.address, one.arguments) for one in probes)
    at_return = kind in AT_RETURN or kind == "uprobe.session"
    if kind in MULTI:
        offsets = matching(binary, what)
        if at_return and is_pattern(what) and not all(map(binary.is_go, offsets)):
            offsets = [one for one in offsets if not binary.is_go(one)]
    else:
        offsets = at_offset(binary, what, at_return=at_return)
    if at_return and any(map(binary.is_go, offsets)):
        raise NotFoundError(
            "the return of a Go function cannot be probed: its stack moves, and the process would crash",
            hint="attach to the function itself with uprobe/",
        )
    return tuple(map(Spot, offsets))


def at_offset(binary: Opened, what: str, *, at_return: bool) -> list[int]:
    """Of FUNCTION[+OFFSET] or 0xOFFSET. NotFoundError."""
    function, plus, text = what.partition("+")
    try:
        if function[:2].lower() == "0x" and not plus:
            return binary.at(int(function, 16))
        offset = int(text, 0) if plus else 0
    except ValueError:
        offset = -1
    if offset < 0 or (offset and at_return):
        reason = "a return has no offset" if offset > 0 else f"{text or what!r} is no offset"
        raise NotFoundError(reason)
    return [one for start in binary.function(function) for one in (binary.at(start + offset) if offset else [start])]


def matching(binary: Opened, pattern: str) -> list[int]:
    """Of all functions that a pattern names. NotFoundError: none."""
    listed = words(pattern)
    if listed:
        found = [one for name in listed for one in binary.function(name)]
    else:
        try:
            fits = expression(pattern).fullmatch
        except ValueError as error:
            raise NotFoundError(f"{pattern!r} is no pattern ({error})") from None
        found = [one for offsets in binary.functions(fits).values() for one in offsets]
    if not found:
        raise NotFoundError(f"no function in it fits {pattern!r}")
    return sorted(set(found))


def place_of(binary: Opened, found: tuple[Spot, ...], root: Path, path: str, *, strict: bool) -> Place:
    """The place of spots in a binary."""
    fd = binary.file.fd
    about = os.fstat(fd)
    machine, fixed = binary.binary.machine, binary.binary.fixed
    return Place(inode_of(fd), found, machine, fixed, root, path, (about.st_dev, about.st_ino), strict)


# ------------------------------------------------------------------------------------------------ attaching


def attached(hook: Hook, place: Place, path: str) -> Closable:
    """At all spots of a file. path: of this moment."""
    kind = handle_of(hook).attach_type
    if kind:  # as `load` found out
        return at_once(hook, place, path, kind)
    if kind_of(hook) in MULTI and len(place.spots) > MOST_ONE_BY_ONE:
        few = f"more than the {MOST_ONE_BY_ONE} that can be probed one by one"
        lacks = f"this kernel has no uprobe.multi, and {hook.attach_to!r} names {len(place.spots)} functions, {few}"
        raise UnsupportedError(feature(hook), lacks, since="6.6")
    if len(place.spots) > MOST_SPOTS:
        reason = f"it is at {len(place.spots)} places, more than the {MOST_SPOTS} that are probed"
        raise AttachError(E2BIG, hook.program, hook.section, hook.attach_to, reason=reason)
    arguments = Arguments.of(hook) if kind_of(hook) == "usdt" else None
    links: list[Closable] = []
    try:
        for spot in place.spots:
            cookie = cookie_of(hook)
            if arguments:
                cookie = arguments.number(place.machine, spot.arguments)
                if not has_cookies():
                    links.append(arguments.at_address(spot.address, cookie, fixed=place.fixed))
                    cookie = 0
            links.append(probe(hook, path, spot, cookie))
    except BaseException:
        Links(links).close()
        raise
    return links[0] if len(links) == 1 else Links(links)


def at_once(hook: Hook, place: Place, path: str, kind: int) -> BpfLink:
    """One link at all of the spots."""
    cookie = cookie_of(hook)
    extra = uprobe_multi(
        path,
        [spot.offset for spot in place.spots],
        cookies=[cookie] * len(place.spots) if cookie else (),
        flags=RETURN if kind_of(hook) in AT_RETURN else 0,
    )
    try:
        return linked(hook, 0, kind, extra)
    except KernelError as error:
        raise explained(error, hook) from None


def probe(hook: Hook, path: str, spot: Spot, cookie: int) -> BpfLink:
    """One uprobe. AttachError, UnsupportedError."""
    if spot.counter >= MOST_COUNTER:
        reason = f"its semaphore is at {spot.counter:#x}, too far behind for the kernel"
        raise AttachError(EINVAL, hook.program, hook.section, hook.attach_to, reason=reason)
    name = create_string_buffer(os.fsencode(path))
    at_return = RETURN if kind_of(hook) in AT_RETURN else 0
    try:
        event = perf_event_open(
            0,
            type=int((UPROBE_PMU / "type").read_text()),
            config=at_return | spot.counter << COUNTER_SHIFT,
            config1=addressof(name),
            config2=spot.offset,
        )
        try:
            return handle_of(hook).attach_perf_event(event, cookie)
        except KernelError:
            os.close(event)
            raise
    except KernelError as error:
        raise explained(error, hook) from None


def explained(error: KernelError, hook: Hook) -> GadgetError:
    """The kernel's refusal, with what is behind it where that is known."""
    if error.errno == EINVAL and not cookie_of(hook):
        reason = "the kernel cannot put a breakpoint there"
        hint = "the file must lie on a file system whose pages are cached, and an instruction must begin there"
        return AttachError(EINVAL, hook.program, hook.section, hook.attach_to, reason=reason, hint=hint)
    return refused(error, hook)
