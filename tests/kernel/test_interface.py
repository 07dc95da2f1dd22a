"""A whole run with `--iface`: a gadget that sees packets, built and run by the command line."""

import json
import os
import shlex
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import packaged
from tests.kernel.networks import command, network

pytestmark = pytest.mark.kernel
PROGRAM = """// SPDX-License-Identifier: GPL-2.0
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <gadget/buffer.h>
#include <gadget/macros.h>
#include <gadget/types.h>

struct event {
	gadget_netns_id netns_id;
	__u16 port;
	__u32 ifindex;
};

GADGET_TRACER_MAP(packets, 1024 * 256);
GADGET_TRACER(packet, packets, event);

static __always_inline int seen(struct __sk_buff *skb)
{
	struct event *event;
	__u16 to = 0;

	if (bpf_skb_load_bytes(skb, 36, &to, 2) || to != bpf_htons(7780))
		return -1;
	event = gadget_reserve_buf(&packets, sizeof(*event));
	if (!event)
		return -1;
	event->netns_id = skb->cb[0];
	event->port = bpf_ntohs(to);
	event->ifindex = skb->ifindex;
	gadget_submit_buf(skb, &packets, event, sizeof(*event));
	return -1;
}

SEC("classifier/ingress/main")
int see_packets(struct __sk_buff *skb)
{
	return seen(skb);
}

char LICENSE[] SEC("license") = "GPL";
"""
YAML = "name: packets\ndatasources:\n  packet: {}\n"


@pytest.fixture
def running(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Build the gadget and run it with these flags, with an image store that nobody else sees."""
    packaged.bpf()
    (tmp_path / "program.bpf.c").write_text(PROGRAM)
    (tmp_path / "gadget.yaml").write_text(YAML)
    env = {**os.environ}
    if (packaged.ROOT / "hatch_build.py").exists():
        env["PYTHONPATH"] = str(packaged.ROOT)
    ig = f"{shlex.quote(sys.executable)} -m igrun"
    script = f"""
        set -e
        mkdir -p /var/lib/ig
        mount -t tmpfs -o mode=755 store /var/lib/ig
        {ig} image build {shlex.quote(str(tmp_path))} -t packets --local >&2
        exec {ig} run packets "$@"
    """

    def run(*flags: str) -> "subprocess.Popen[str]":
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *flags]
        return subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run


def test_the_packets_of_the_interface_that_is_named_are_printed(running):
    with running("--iface", "lo", "--host", "-o", "json") as run:
        assert run.stdout is not None and run.stderr is not None
        line = ""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            os.set_blocking(run.stdout.fileno(), False)
            end = time.monotonic() + 60
            while not line and run.poll() is None and time.monotonic() < end:
                one.sendto(b"hello", ("127.0.0.1", 7780))
                time.sleep(0.1)
                line = run.stdout.readline()
        run.terminate()
        os.set_blocking(run.stdout.fileno(), True)
        run.stdout.read()
        assert run.wait(20) == 0, run.stderr.read()
    event = json.loads(line)

    assert event["port"] == 7780
    assert event["ifindex"] == socket.if_nametoindex("lo")
    assert event["netns_id"] == Path("/proc/self/ns/net").stat().st_ino
    assert "clsact" not in command("tc", "qdisc", "show", "dev", "lo")


def test_a_run_goes_on_when_the_interface_goes_away_and_comes_back(running):
    name = f"ig{os.getpid()}l"

    def pair() -> int:
        command("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        for end in (name, f"{name}p"):
            command("ip", "link", "set", end, "up")
        return socket.if_nametoindex(name)

    def seen(run: "subprocess.Popen[str]", index: int) -> bool:
        """Frames that come out of the other end until one is told."""
        frame = bytes.fromhex("ffffffffffff 020000007702 0800 4500002100000000 4011 0000 0a4d0001 0a4d0002")
        frame += struct.pack(">HHHH", 9, 7780, 13, 0) + b"hello"
        assert run.stdout is not None
        os.set_blocking(run.stdout.fileno(), False)
        end = time.monotonic() + 60
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind((f"{name}p", 0))
            while run.poll() is None and time.monotonic() < end:
                raw.send(frame)
                time.sleep(0.1)
                if any(json.loads(line)["ifindex"] == index for line in iter(run.stdout.readline, "")):
                    return True
        return False

    try:
        first = pair()
        with running("--iface", name, "--host", "-o", "json") as run:
            assert seen(run, first)
            command("ip", "link", "del", name)
            assert seen(run, pair())
            run.terminate()
            assert run.stdout is not None and run.stderr is not None
            os.set_blocking(run.stdout.fileno(), True)
            run.stdout.read()
            assert run.wait(20) == 0
            said = run.stderr.read()
    finally:
        command("ip", "link", "del", name)

    assert f"interface {name} is gone" in said
    assert f"interface {name} is there" in said


def test_an_interface_that_is_not_there_is_told_with_its_neighbours(running):
    with network() as net, running("--iface", net.outer[:-1]) as run:
        _, said = run.communicate(timeout=60)

    assert run.returncode == 1
    assert "this machine has no such interface" in said
    assert net.outer in said
