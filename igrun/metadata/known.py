"""What annotations there are, the templates that stand for several of them, and how a field gets its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Annotations = Mapping[str, str]

BASE: Annotations = MappingProxyType({"columns.width": "16", "columns.ellipsis": "end", "columns.alignment": "left"})
HIDDEN: Annotations = MappingProxyType({"columns.hidden": "true"})


def template(
    description: str = "",
    *,
    width: int = 0,
    shortest: int = 0,
    longest: int = 0,
    ellipsis: str = "",
    right: bool = False,
    hidden: bool = False,
) -> Annotations:
    """The annotations that one template stands for."""
    all_of_them = {
        "description": description,
        "columns.width": str(width or ""),
        "columns.minwidth": str(shortest or ""),
        "columns.maxwidth": str(longest or ""),
        "columns.ellipsis": ellipsis,
        "columns.alignment": "right" if right else "",
        "columns.hidden": "true" if hidden else "",
    }
    return MappingProxyType({key: value for key, value in all_of_them.items() if value})


TEMPLATES: Mapping[str, Annotations] = MappingProxyType(
    {
        "timestamp": template("Microseconds since Unix epoch", width=35, longest=35, ellipsis="end", hidden=True),
        "bytes": template(width=10, right=True),
        "duration": template(width=20, right=True),
        "node": template(width=30, ellipsis="middle"),
        "pod": template(width=30, ellipsis="middle"),
        "container": template(width=30),
        "namespace": template(width=30),
        "containerImageName": template(width=30),
        "containerImageDigest": template(width=30),
        "containerPid": template(width=6, right=True, hidden=True),
        "containerStartedAt": template(width=35, hidden=True),
        "comm": template("Process name", longest=16),
        "pcomm": template("Parent process name", longest=16, hidden=True),
        "pid": template("Process ID", shortest=7, right=True),
        "ppid": template("Parent process ID", shortest=7, right=True, hidden=True),
        "tid": template("Thread ID", shortest=7, right=True),
        "ptid": template("Parent thread ID", shortest=7, right=True, hidden=True),
        "uid": template("User ID", shortest=8, right=True),
        "gid": template("Group ID", shortest=8, right=True),
        "ns": template(width=12, right=True, hidden=True),
        "mntns_id": template("Mount namespace ID", width=12, right=True, hidden=True),
        "netns_id": template("Network namespace ID", width=12, right=True, hidden=True),
        "l4endpoint": template(shortest=22, width=40, longest=52, ellipsis="middle"),
        "syscall": template("Syscall", width=18, longest=28),
        "errorString": template(width=12),
        "user_stack": template("User stack trace", hidden=True),
    }
)

# C types whose template applies without being asked for. The ecosystem leaves gadget_ptid out and so prints a second
# column TID beside the first one.
BY_TYPE: Mapping[str, Annotations] = MappingProxyType(
    {
        **{
            f"gadget_{name}": TEMPLATES[name]
            for name in (
                *("comm", "uid", "gid", "pid", "tid", "timestamp", "mntns_id", "netns_id"),
                *("pcomm", "ppid", "ptid", "user_stack"),
            )
        },
        "gadget_process": HIDDEN,
        "gadget_creds": HIDDEN,
        "gadget_parent": HIDDEN,
    }
)

ANNOTATIONS = """
description template value.one-of content-type fetch-interval fetch-count
columns.width columns.minwidth columns.maxwidth columns.alignment columns.ellipsis columns.hidden columns.fixed
columns.hex columns.alias columns.precision columns.replace
json.skip
formatters.timestamp.target formatters.syscall.target formatters.signal.target formatters.errno.target
formatters.bytes.target formatters.duration.target formatters.file_mode.target formatters.file_flags.target
formatters.timestamp.format
ebpf.formatter.enum ebpf.formatter.bitfield.separator ebpf.formatter.kstack
ebpf.rest.name ebpf.rest.len ebpf.map.flush-on-stop ebpf.map.keep-entries ebpf.iter.fetch-on-stop
uidgidresolver.target
metrics.type metrics.name metrics.description metrics.unit metrics.boundaries metrics.collect metrics.print
metrics.implicit-counter.name metrics.implicit-counter.description
logs.name logs.body logs.severity logs.array-handling
profiles.sample-attribute profiles.stack-fields profiles.value-field profiles.name profiles.type profiles.unit
pcap.interface-key pcap.interface-var pcap.payload pcap.timestamp pcap.packet-length
flamegraph.level flamegraph.type
cli.supported-output-modes cli.default-output-mode cli.clear-screen-before cli.raw.fields
kubenameresolver.enable generate_networkpolicy.enable
env.fields.* views.*
"""
KNOWN = frozenset(ANNOTATIONS.split())
"""Annotations that somebody reads; `*` stands for any text."""
SPACES = frozenset(key.partition(".")[0] for key in KNOWN if "." in key)
"""First parts of the known keys: an unknown key under one of them is a mistake, any other is somebody else's."""


def unknown(key: str) -> str | None:
    """None if the annotation is known or somebody else's, else the nearest known key ("" if none is near)."""
    lower = key.lower()
    if lower in KNOWN or any(lower.startswith(known[:-1]) for known in KNOWN if known.endswith("*")):
        return None
    from difflib import get_close_matches

    space = lower.partition(".")[0]
    if space in SPACES and "." in lower:
        same_space = [known for known in KNOWN if known.startswith(f"{space}.")]
        return next(iter(get_close_matches(lower, same_space, 1, 0.5)), "")
    return next(iter(get_close_matches(lower, KNOWN, 1, 0.85)), None)


SIZES = frozenset(("columns.width", "columns.minwidth", "columns.maxwidth"))
ONE_OF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "columns.alignment": ("left", "right"),
        "columns.ellipsis": ("", "none", "start", "middle", "end"),
        "columns.hidden": ("true", "false"),
        "columns.fixed": ("true", "false"),
        "columns.hex": ("true", "false"),
        "json.skip": ("true", "false"),
        "metrics.type": ("key", "counter", "gauge", "histogram"),
        "template": tuple(TEMPLATES),
    }
)


def value_problem(key: str, value: str) -> str:
    """What is wrong with the value of a known annotation, "" if nothing."""
    choices = ONE_OF.get(key)
    if choices is not None and value not in choices:
        return f"invalid value {value!r}, it is one of: {', '.join(filter(None, choices))}"
    if key in SIZES and value != "type" and not value.isdigit():
        return f"invalid value {value!r}, it is a number of characters or the word type"
    if key == "columns.precision" and not value.isdigit():
        return f"invalid value {value!r}, it is a number of decimals"
    return ""
