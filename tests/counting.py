"""A program that counts how often it runs, and what must be gone afterwards."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from igrun import bpfcall

Kept = dict[int, set[int]]


def counting(section: str, arguments: str = "void *ctx", condition: str = "1", body: str = "") -> str:
    """A program that counts in `hits[0]` how often it runs."""
    return f"""
struct {{
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
}} hits SEC(".maps");

const volatile __u32 only_pid = 0;

SEC("{section}")
int count({arguments})
{{
	__u32 zero = 0;
	__u64 *hit = bpf_map_lookup_elem(&hits, &zero);

	if (only_pid && bpf_get_current_pid_tgid() >> 32 != only_pid)
		return 0;
	{body}
	if (hit && ({condition}))
		__sync_fetch_and_add(hit, 1);
	return 0;
}}
"""


def hits(started: Any) -> int:
    return int.from_bytes(started.loaded.map("hits").lookup(bytes(4)) or b"", "little")


def mine() -> dict[str, int]:
    return {"only_pid": os.getpid()}


def held(started: Any) -> Kept:
    """Ids of the programs, links and maps that a run has, by the command that lists their kind."""
    loaded = started.loaded
    links = [link.fd for link in loaded.links if getattr(link, "fd", -1) >= 0]
    return {
        bpfcall.PROG_NEXT_ID: {bpfcall.id_of(hook.handle.fd) for hook in loaded.hooks},
        bpfcall.LINK_NEXT_ID: {bpfcall.id_of(fd) for fd in links if is_link(fd)},
        bpfcall.MAP_NEXT_ID: {bpfcall.id_of(loaded.map(name).fd) for name in loaded.plan.program.maps},
    }


def is_link(fd: int) -> bool:
    """Before Linux 5.15 what stands for a link of a perf event is the event."""
    return "bpf_link" in str(Path(f"/proc/self/fd/{fd}").readlink())


def close_and_check(started: Any) -> None:
    """End the run; nothing of it may be left in the kernel."""
    before = held(started)
    started.plan.stack.close()
    left: dict[int, set[int]] = {}

    def gone() -> bool:
        nonlocal left
        left = {kind: ids & set(bpfcall.ids_of(kind)) for kind, ids in before.items()}
        return not any(left.values())

    assert within(5, gone), left


def within(seconds: float, true: Callable[[], bool]) -> bool:
    """Wait until it is true: the kernel frees things after a grace period."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
