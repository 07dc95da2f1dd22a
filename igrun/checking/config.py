"""The kernel's configuration: where it is told, and which options each type of program needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from igrun.checking.table import CONFIG_FILE, HERE, MISSING, UNKNOWN, WORKS, Row
from igrun.dataclass import dataclass
from igrun.errors import ImageError, ParamError
from igrun.sections import program_type

if TYPE_CHECKING:
    from igrun.program import Hook

PLACES = (
    "proc/config.gz",
    "boot/config-{}",
    "lib/modules/{}/config",
    "usr/lib/modules/{}/config",
    "usr/lib/kernel/config-{}",
    "lib/modules/{}/build/.config",
)
LARGEST = 1 << 23
LINE = re.compile(r"^(?:CONFIG_(\w+)=(.*)|# CONFIG_(\w+) is not set)$", re.MULTILINE)
GZIP = b"\x1f\x8b"
Either = tuple[tuple[str, ...], ...]
"""Sets of options, one of which must be on."""

TRAMPOLINE = ("BPF_JIT", "DEBUG_INFO_BTF", "BPF_EVENTS", "DYNAMIC_FTRACE")
IN_KERNEL_BTF = ("BPF_JIT", "DEBUG_INFO_BTF", "BPF_EVENTS")
KPROBE = ("KPROBES", "KPROBE_EVENTS", "BPF_EVENTS")
CLSACT = ("NET_CLS_BPF", "NET_SCH_INGRESS")
# First word of a section, else the family -> options
NEEDED: Mapping[str, Either] = {
    "tracepoint": (("BPF_EVENTS",),),
    "tp": (("BPF_EVENTS",),),
    "raw_tracepoint": (("BPF_EVENTS",),),
    "raw_tp": (("BPF_EVENTS",),),
    "raw_tracepoint.w": (("BPF_EVENTS",),),
    "raw_tp.w": (("BPF_EVENTS",),),
    "tp_btf": (IN_KERNEL_BTF,),
    "iter": (IN_KERNEL_BTF,),
    "fentry": (TRAMPOLINE,),
    "fexit": (TRAMPOLINE,),
    "fmod_ret": (TRAMPOLINE,),
    "freplace": (("BPF_JIT", "DEBUG_INFO_BTF"),),
    "lsm": ((*TRAMPOLINE, "BPF_LSM"),),
    "lsm_cgroup": ((*TRAMPOLINE, "BPF_LSM", "CGROUP_BPF"),),
    "kprobe": (KPROBE,),
    "kprobe.multi": (("FPROBE", "BPF_EVENTS"), KPROBE),
    "kretprobe.multi": (("FPROBE", "BPF_EVENTS"), KPROBE),
    "kprobe.session": (("FPROBE", "BPF_EVENTS"),),
    "uprobe": (("UPROBE_EVENTS", "BPF_EVENTS"),),
    "perf": (("PERF_EVENTS", "BPF_EVENTS"),),
    "socket": (("PACKET",),),
    "tc": (("NET_XGRESS",), CLSACT),
    "action": (("NET_ACT_BPF", *CLSACT),),
    "netkit": ((),),  # where there is none, there is no interface of that kind to attach to
    "cgroup": (("CGROUP_BPF",),),
    "netfilter": (("NETFILTER_BPF_LINK",),),
    "lwt_seg6local": (("IPV6_SEG6_BPF",),),
    "lwt": (("LWTUNNEL_BPF",),),
    "sk_skb/stream_parser": (("BPF_STREAM_PARSER",),),
    "reuseport": (("INET",),),
    "struct_ops": (("BPF_JIT", "DEBUG_INFO_BTF"),),
}
EVERYTHING: Either = (("BPF_SYSCALL",),)
SYSCALL_EVENTS: Either = (("FTRACE_SYSCALLS",),)


@dataclass(frozen=True, slots=True)
class Config:
    """What a kernel was built with.

    values: option without CONFIG_ -> y, m, n, a number or a text; None: that is not told anywhere
    place:  the file; or where it was looked for
    """

    values: Mapping[str, str] | None
    place: str
    of: str = HERE

    def is_on(self, option: str) -> bool | None:
        """Whether an option is on, as a module too; None: nobody tells. One that is not there is off."""
        if self.values is None:
            return None
        return self.values.get(option, "n") in ("y", "m")

    @classmethod
    def here(cls, root: Path, release: str) -> Config:
        """The running kernel's."""
        places = [root / place.replace("{}", release) for place in PLACES]
        for path in places:
            try:
                return cls(parsed(contents(path)), str(path))
            except (OSError, ImageError):
                continue
        return cls(None, f"{places[0]}, {places[1]} and {len(places) - 2} other places")

    @classmethod
    def untold(cls) -> Config:
        """That of another kernel, of which nobody gave it."""
        return cls(None, "--kernel-config, which was not given", CONFIG_FILE)

    @classmethod
    def at(cls, path: str) -> Config:
        """That of a file. ParamError: it is none."""
        try:
            values = parsed(contents(Path(path)))
        except OSError as error:
            raise ParamError("kernel-config", path, f"cannot read {path}: {error.strerror}") from None
        except ImageError as error:
            hint = "give a kernel's .config, /boot/config-<release> or /proc/config.gz"
            raise ParamError("kernel-config", path, f"{path}: {error}", hint=hint) from None
        return cls(values, path, CONFIG_FILE)


def contents(path: Path) -> str:
    """A file's text, unpacked. OSError; ImageError: it is too large, or broken."""
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if data.startswith(GZIP):
        import zlib

        try:
            data = zlib.decompressobj(31).decompress(data, LARGEST + 1)
        except zlib.error as error:
            raise ImageError(f"it cannot be unpacked: {error}") from None
    if len(data) > LARGEST:
        raise ImageError(f"it has more than {LARGEST >> 20} MiB")
    return data.decode(errors="replace")


def parsed(text: str) -> dict[str, str]:
    """Option without CONFIG_ -> its value. ImageError: there is none."""
    found = {}
    for one in LINE.finditer(text):
        name, value, off = one.groups()
        found[off or name] = "n" if off else value.strip('"')
    if not found:
        raise ImageError("no kernel's configuration: it has no line CONFIG_...=")
    return found


# ------------------------------------------------------------------------------------------------ what is needed


def needed(hook: Hook) -> list[Either]:
    """What a program needs."""
    section = hook.section.removeprefix("?")
    row = program_type(section)
    if row is None:
        return []
    word = section.partition("/")[0].removesuffix(".s")
    options = next((NEEDED[key] for key in (section, word, row.family) if key in NEEDED), None)
    found = [options] if options else []
    if word in ("tracepoint", "tp") and hook.attach_to.startswith("syscalls/"):
        found.append(SYSCALL_EVENTS)
    if word in ("classifier", "tc") and hook.options.get("tc.attach") == "clsact":
        found = [(CLSACT,)]
    return found


def rows(config: Config, hooks: list[Hook]) -> Iterator[Row]:
    """A row for each option; where one of several sets is enough, for the options of the first that is on."""
    users: dict[Either, list[str]] = {EVERYTHING: []}
    for hook in hooks:
        for either in needed(hook):
            users.setdefault(either, []).append(hook.program)
    if config.values is None:
        hint = "give it by --kernel-config"
        yield Row(
            "config",
            config.place,
            UNKNOWN,
            "the kernel's configuration is not told there",
            hint,
            needed=False,
            of=config.of,
        )
        return
    by_option: dict[str, list[str]] = {}
    for either, programs in users.items():
        if either is EVERYTHING:
            by_option.setdefault(either[0][0], [])
            continue
        chosen = next((options for options in either if all(map(config.is_on, options))), either[0])
        for option in chosen:
            by_option.setdefault(option, []).extend(programs)
    for option, programs in by_option.items():
        value = config.values.get(option, "n")
        names = tuple(dict.fromkeys(programs))
        if config.is_on(option):
            why = f"set to {value} in {config.place}"
            yield Row("config", f"CONFIG_{option}", WORKS, why, programs=names, of=config.of)
        else:
            why = f"not set in {config.place}"
            hint = "a kernel is needed that was built with it"
            yield Row("config", f"CONFIG_{option}", MISSING, why, hint, names, of=config.of)
