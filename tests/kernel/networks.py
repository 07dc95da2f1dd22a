"""A network namespace like a container's, joined to this machine by a pair of interfaces; and what goes through it."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from struct import pack
from typing import TypeVar

from igrun.attach.namespaces import Namespace, inside
from igrun.bpfcall import program_ids, program_name, program_of_id
from igrun.errors import KernelError
from igrun.host import Target
from igrun.netlink import DUMP, GETQDISC, TRAFFIC, Netlink

T = TypeVar("T")
RTPROT_KERNEL = 2
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


def command(*words: str, given: str = "") -> str:
    """What the command prints. given: its input."""
    done = subprocess.run(words, input=given, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Net:
    """A namespace `name` with address `subnet`.2 at `inner`, and this machine's `subnet`.1 at `outer`."""

    name: str
    outer: str
    subnet: str
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

    def ip(self, *lines: str) -> None:
        """ip(8) in the namespace."""
        command("ip", "-n", self.name, "-batch", "-", given="\n".join(lines))

    def packets_in(self, number: int = 1, port: int = 7777) -> None:
        """Datagrams that nobody waits for, into the namespace."""
        send(f"{self.subnet}.2", number, port)

    def packets_out(self, number: int = 1, port: int = 7777) -> None:
        """Datagrams out of it."""
        self.do(lambda: send(f"{self.subnet}.1", number, port))

    def state(self) -> list[object]:
        """All that programs can be attached to, here and in the namespace."""
        return [*listed(), *self.do(listed)]


def listed() -> list[object]:
    """Interfaces with their XDP programs, qdiscs, filters and routes."""
    with Netlink() as netlink:
        interfaces = netlink.interfaces()
        qdiscs = sorted(one[:20] for one in netlink.ask(GETQDISC, DUMP, pack(TRAFFIC, 0, 0, 0, 0, 0), "qdiscs"))
        filters = [netlink.filters(one) for one in netlink.with_clsact()]
        # without those that the kernel makes itself, in its own time
        routes = [
            sorted(one for one in netlink.routes(family) if one[5] != RTPROT_KERNEL)
            for family in (socket.AF_INET, socket.AF_INET6)
        ]
    return [[(one.name, one.up, one.xdp) for one in interfaces], qdiscs, filters, routes]


def send(address: str, number: int, port: int = 7777) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as one:
        for _ in range(number):
            try:
                one.sendto(b"hello", (address, port))
            except OSError:  # nobody waits, or a program has dropped it
                continue


made = 0


@contextmanager
def network() -> Iterator[Net]:
    """A new one, gone at the end."""
    global made
    made += 1
    net = Net(f"igtest{os.getpid()}-{made}", f"ig{os.getpid()}-{made}", f"10.77.{made}")
    here, there = "02:00:00:00:77:01", "02:00:00:00:77:02"
    command("ip", "netns", "add", net.name)
    try:
        pair = f"link add {net.outer} address {here} type veth peer name {net.inner} address {there} netns {net.name}"
        command("ip", "-batch", "-", given=pair)
        for batch, device, address, other, mac in (
            (["ip", "-batch", "-"], net.outer, 1, 2, there),
            (["ip", "-n", net.name, "-batch", "-"], net.inner, 2, 1, here),
        ):
            # No neighbour is to be asked for, no router to be looked for: only what a test sends is seen.
            lines = [
                f"link set {device} addrgenmode none",
                f"link set {device} up",
                f"address add {net.subnet}.{address}/24 dev {device}",
                f"neigh replace {net.subnet}.{other} lladdr {mac} dev {device} nud permanent",
                *(["link set lo up"] if address == 2 else []),
            ]
            command(*batch, given="\n".join(lines))
        end = time.monotonic() + 5
        while Path(f"/sys/class/net/{net.outer}/operstate").read_text() != "up\n" and time.monotonic() < end:
            time.sleep(0.01)
        yield net
    finally:
        subprocess.run(["ip", "link", "del", net.outer], capture_output=True)
        command("ip", "netns", "del", net.name)


def programs(*names: str) -> list[str]:
    """Names of the loaded programs that are among these."""
    found = []
    for number in program_ids():
        try:
            fd = program_of_id(number)
        except KernelError:  # gone since
            continue
        try:
            name = program_name(fd)
        finally:
            os.close(fd)
        if name in names:
            found.append(name)
    return found
