"""snapshot_socket shows the sockets of this process, and of others."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

LISTEN, ESTABLISHED, CLOSE = 10, 1, 7  # include/net/tcp_states.h
NETNS = Path("/proc/self/ns/net")
ELSEWHERE = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 8080))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def shown(rows_of):
    """The rows, by the socket's inode."""
    return lambda **params: {row["ino"]: row for row in rows_of("snapshot_socket", **params)}


def inode(one: socket.socket) -> int:
    return os.fstat(one.fileno()).st_ino


def test_a_listening_tcp_socket_is_shown(shown):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        row = shown()[inode(listener)]
        port = listener.getsockname()[1]

    assert (row["src.addr"], row["src.port"], row["src.proto"], row["src.version"]) == ("127.0.0.1", port, "TCP", 4)
    assert (row["dst.addr"], row["dst.port"]) == ("0.0.0.0", 0)
    assert row["state"] == LISTEN
    assert row["netns_id"] == NETNS.stat().st_ino
    assert row["src.endpoint"] == f"127.0.0.1:{port}"


def test_both_ends_of_a_connection_are_shown(shown):
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):
        rows = shown()
        ports = (client.getsockname()[1], server.getsockname()[1])
        ends = [rows[inode(client)], rows[inode(server)]]

    assert [(row["src.port"], row["dst.port"]) for row in ends] == [ports, ports[::-1]]
    assert {row["state"] for row in ends} == {ESTABLISHED}


def test_a_connection_nobody_holds_any_more_has_no_inode(rows_of):
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as server,
    ):
        port = client.getsockname()[1]
        client.close()
        server.close()

        rows = [row for row in rows_of("snapshot_socket") if row["src.port"] == port]

    assert [row["ino"] for row in rows] == [0] * len(rows)


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_an_ipv6_socket_is_shown(shown):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        row = shown()[inode(listener)]
        port = listener.getsockname()[1]

    assert (row["src.addr"], row["src.version"], row["src.endpoint"]) == ("::1", 6, f"::1:{port}")


def test_a_udp_socket_is_shown(shown):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        row = shown()[inode(one)]
        port = one.getsockname()[1]

    assert (row["src.addr"], row["src.port"], row["src.proto"]) == ("127.0.0.1", port, "UDP")
    assert row["state"] == CLOSE


def test_sockets_of_other_network_namespaces_are_shown(rows_of):
    command = [
        "unshare",
        "-n",
        "sh",
        "-c",
        'ip link set lo up 2>/dev/null; exec "$0" -c "$1"',
        sys.executable,
        ELSEWHERE,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        netns = Path(f"/proc/{other.pid}/ns/net").stat().st_ino
        rows = rows_of("snapshot_socket")
        other.stdin.close()

    assert netns != NETNS.stat().st_ino
    assert [(row["src.endpoint"], row["state"]) for row in rows if row["netns_id"] == netns] == [
        ("127.0.0.1:8080", LISTEN)
    ]


def test_the_command_prints_json_and_columns(ig, ig_json):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        rows = ig_json("snapshot_socket")
        head, *lines = ig("snapshot_socket")
        ino, port = inode(listener), listener.getsockname()[1]

    (row,) = [row for row in rows if row["ino"] == ino]
    assert row["src"] == {"addr": "127.0.0.1", "port": port, "proto": "TCP", "proto_raw": 6, "version": 4}
    assert sorted(row) == ["dst", "ino", "netns_id", "src", "state"]
    assert head.split() == ["SRC", "DST", "STATE"]
    assert [f"127.0.0.1:{port}", "0.0.0.0:0", "10"] in [line.split() for line in lines]
