"""A network namespace like a container's, joined to this machine by a pair of interfaces; and what goes through it."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from igrun.attach.namespaces import Namespace, inside
from igrun.host import Target

T = TypeVar("T")
HEADS = """
#include <bpf/bpf_endian.h>
"""
HITS = """
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} hits SEC(".maps");

static __always_inline void hit(__u32 at, __u64 add)
{
	__u64 *value = bpf_map_lookup_elem(&hits, &at);

	if (value)
		__sync_fetch_and_add(value, add);
}

static __always_inline void see(__u32 at, __u64 what)
{
	bpf_map_update_elem(&hits, &at, &what, 0);
}
"""


def command(*words: str) -> str:
    """What the command prints."""
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Net:
    """A namespace `name` with address 10.77.0.2 at `inner`, and this machine's 10.77.0.1 at `outer`."""

    name: str
    outer: str
    inner: str = "eth0"

    @property
    def path(self) -> Path:
        return Path("/run/netns") / self.name

    @property
    def inode(self) -> int:
        return self.path.stat().st_ino

    @property
    def target(self) -> Target:
        return Target(self.name, netns=self.path)

    def do(self, function: Callable[[], T]) -> T:
        """Call it in the namespace."""
        return inside(Namespace.at(self.path), function)

    def packets_in(self, number: int = 1, port: int = 7777) -> None:
        """Datagrams that nobody waits for, into the namespace."""
        send("10.77.0.2", number, port)

    def packets_out(self, number: int = 1, port: int = 7777) -> None:
        """Datagrams out of it."""
        self.do(lambda: send("10.77.0.1", number, port))

    def state(self) -> str:
        """All that programs can be attached to here."""
        parts = []
        for prefix in ([], ["ip", "netns", "exec", self.name]):
            for words in (["tc", "qdisc", "show"], ["ip", "route"], ["ip", "-6", "route"], ["ip", "-br", "link"]):
                parts.append(command(*prefix, *words))
        parts.append(command("tc", "filter", "show", "dev", self.outer, "ingress"))
        parts.append(command("tc", "filter", "show", "dev", self.outer, "egress"))
        return "\n".join(parts)


def send(address: str, number: int, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for _ in range(number):
            try:
                one.sendto(b"hello", (address, port))
            except OSError:  # nobody waits, or a program has dropped it
                continue


@contextmanager
def network(name: str = "") -> Iterator[Net]:
    """A new one, gone at the end."""
    name = name or f"igtest{os.getpid()}"
    net = Net(name, f"ig{os.getpid()}"[:15])
    command("ip", "netns", "add", name)
    try:
        command("ip", "link", "add", net.outer, "type", "veth", "peer", "name", net.inner, "netns", name)
        for prefix, device, address in (([], net.outer, 1), (["ip", "netns", "exec", name], net.inner, 2)):
            command(*prefix, "ip", "address", "add", f"10.77.0.{address}/24", "dev", device)
            command(*prefix, "ip", "link", "set", device, "up")
        command("ip", "netns", "exec", name, "ip", "link", "set", "lo", "up")
        # No neighbour is to be asked for, no router to be looked for: only what a test sends is seen.
        for prefix, device in (([], net.outer), (["ip", "netns", "exec", name], net.inner)):
            quiet = (
                f"[ ! -e /proc/sys/net/ipv6/conf/{device} ] || echo 1 >/proc/sys/net/ipv6/conf/{device}/disable_ipv6"
            )
            command(*prefix, "sh", "-c", quiet)
        for prefix, device, other in (([], net.outer, 2), (["ip", "netns", "exec", name], net.inner, 1)):
            there = ["ip", "netns", "exec", name] if not prefix else []
            mac = command(*there, "cat", f"/sys/class/net/{net.inner if there else net.outer}/address").strip()
            neighbour = ["ip", "neigh", "replace", f"10.77.0.{other}", "lladdr", mac, "dev", device, "nud", "permanent"]
            command(*prefix, *neighbour)
        yield net
    finally:
        subprocess.run(["ip", "link", "del", net.outer], capture_output=True)
        command("ip", "netns", "del", name)


def programs(*names: str) -> list[str]:
    """Names of the loaded programs that are among these."""
    told = command("bpftool", "prog", "show")
    return [name for name in names for line in told.splitlines() if f" name {name} " in f"{line} "]
