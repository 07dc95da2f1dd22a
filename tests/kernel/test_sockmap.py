"""Programs of maps that hold sockets see what goes through these sockets."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from igrun import attach, bpfcall
from igrun.attach.sockmap import Attached
from igrun.errors import AttachError, KernelError, MetadataError, UnsupportedError
from igrun.host import HOST_TARGET
from tests.kernel.killing import killed
from tests.kernel.networks import HITS, programs
from tests.kernel.test_network import hits, waited

pytestmark = pytest.mark.kernel


def maps(kind: str, *names: str) -> str:
    return HITS + "".join(
        f"""
struct {{
	__uint(type, BPF_MAP_TYPE_{kind});
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
}} {name} SEC(".maps");
"""
        for name in names
    )


def seeing(section: str, context: str, result: str, name: str = "count") -> str:
    size = "skb->len" if context == "__sk_buff" else "skb->size"
    return f"""
SEC("{section}")
int {name}(struct {context} *skb)
{{
	hit(0, 1);
	see(1, {size});
	return {result};
}}
"""


VERDICT = ("__sk_buff", "SK_PASS")
VERDICT_BESIDE = """
SEC("sk_skb/stream_verdict")
int other(struct __sk_buff *skb)
{
	return SK_PASS;
}
"""
# section -> context, result, the others that have to be there too
TYPES = {
    "sk_skb/verdict": (*VERDICT, ""),
    "sk_skb/stream_verdict": (*VERDICT, ""),
    "sk_skb": (*VERDICT, ""),
    "sk_skb/stream_parser": (
        "__sk_buff",
        "skb->len",
        seeing("sk_skb/stream_verdict", *VERDICT, "other").replace("hit", "//"),
    ),
    "sk_msg": ("sk_msg_md", "SK_PASS", ""),
}


@contextmanager
def pair(started, name: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection, the first of which is in the map."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
        server.accept()[0] as other,
    ):
        one.settimeout(5)
        other.settimeout(5)
        started.loaded.map(name).update(bytes(4), one.fileno().to_bytes(8, "little"))
        yield one, other


@pytest.mark.fires
@pytest.mark.parametrize("kind", ["SOCKMAP", "SOCKHASH"])
@pytest.mark.parametrize("section", TYPES)
def test_a_program_sees_what_goes_through_the_sockets_of_its_map(start, kind, section):
    context, result, others = TYPES[section]
    marker = f"GADGET_SK_TARGET_MAP(count, socks);\n{'GADGET_SK_TARGET_MAP(other, socks);' if others else ''}"
    started = start(maps(kind, "socks") + marker + seeing(section, context, result) + others)

    with pair(started, "socks") as (one, other):
        if section == "sk_msg":
            one.sendall(b"hello")
            assert other.recv(9) == b"hello"
        else:
            other.sendall(b"hello")
            assert one.recv(9) == b"hello"
        # when the connection ends, it may run once more
        assert (hits(started), hits(started, 1)) == (1, 5)

    started.plan.stack.close()
    assert waited(lambda: not programs("count", "other"))


def test_the_only_map_that_holds_sockets_needs_no_marker(start):
    started = start(maps("SOCKMAP", "socks") + seeing("sk_msg", "sk_msg_md", "SK_PASS"))

    with pair(started, "socks") as (one, other):
        one.sendall(b"hello")
        assert other.recv(9) == b"hello"
    assert hits(started) == 1


def test_a_program_that_is_detached_sees_nothing_more(start):
    started = start(maps("SOCKMAP", "socks") + seeing("sk_msg", "sk_msg_md", "SK_PASS"))
    started.loaded.detach()

    with pair(started, "socks") as (one, other):
        one.sendall(b"hello")
        assert other.recv(9) == b"hello"
    assert hits(started) == 0


def test_of_several_maps_somebody_has_to_say_which(start):
    with pytest.raises(MetadataError, match="nothing says which of a, b it is for"):
        start(maps("SOCKMAP", "a", "b") + seeing("sk_msg", "sk_msg_md", "SK_PASS"))


def test_a_program_without_a_map_is_told(start):
    with pytest.raises(MetadataError, match="no map holds sockets"):
        start(HITS + seeing("sk_msg", "sk_msg_md", "SK_PASS"))


def test_gadget_yaml_may_say_which(start):
    source = maps("SOCKMAP", "a", "b") + seeing("sk_msg", "sk_msg_md", "SK_PASS")
    started = start(source, yaml="name: test\nprograms: {count: {attach_to: b}}\n")

    with pair(started, "a") as (one, other):
        one.sendall(b"hello")
        assert other.recv(9) == b"hello"
    assert hits(started) == 0
    with pair(started, "b") as (one, other):
        one.sendall(b"hello")
        assert other.recv(9) == b"hello"
    assert hits(started) == 1


def test_a_program_does_not_replace_another_one(start):
    message = seeing("sk_msg", "sk_msg_md", "SK_PASS")
    source = maps("SOCKMAP", "socks") + message + message.replace("count", "other")
    try:
        # Before Linux 5.17 the kernel does not tell what a map has.
        started = start(source, target=None)
        bpfcall.prog_query(started.loaded.map("socks").fd, 7)
    except KernelError as error:
        raise UnsupportedError("here", str(error)) from None

    with pytest.raises(AttachError, match=r"attach 'other' \(sk_msg\) to 'socks': the map has program 'count'"):
        attach.attach(started.loaded.hooks, HOST_TARGET, started.loaded)


def test_the_kernel_of_today_has_a_link(start):
    started = start(maps("SOCKMAP", "socks") + seeing("sk_msg", "sk_msg_md", "SK_PASS"))
    (link,) = started.loaded.links
    if isinstance(link, Attached):
        raise UnsupportedError("sk_msg", "this kernel has no links of maps", since="6.10")

    number = bpfcall.id_of(link.fd)
    assert number in bpfcall.ids_of(bpfcall.LINK_NEXT_ID)
    started.loaded.detach()
    assert waited(lambda: number not in bpfcall.ids_of(bpfcall.LINK_NEXT_ID))


@pytest.mark.parametrize("section", TYPES)
def test_a_connection_outlives_the_program(start, section):
    context, result, others = TYPES[section]
    markers = "".join(f"GADGET_SK_TARGET_MAP({name}, socks);\n" for name in ("count", "other")[: 1 + bool(others)])
    started = start(maps("SOCKMAP", "socks") + markers + seeing(section, context, result) + others)

    with pair(started, "socks") as (one, other):
        started.plan.stack.close()
        for to, back in ((other, one), (one, other)):
            back.sendall(b"hello")
            assert to.recv(9) == b"hello"
        assert waited(lambda: not programs("count", "other"))


def test_two_programs_of_one_kind_on_a_map_are_told(start):
    other = seeing("sk_skb/verdict", *VERDICT, "other")
    with pytest.raises(AttachError, match=r"exclude each other|busy"):
        start(maps("SOCKMAP", "socks") + seeing("sk_skb/stream_verdict", *VERDICT) + other)


def test_a_program_ends_with_a_process_that_is_killed(compiled):
    killed(compiled(maps("SOCKMAP", "socks") + seeing("sk_msg", "sk_msg_md", "SK_PASS")))

    assert waited(lambda: not programs("count"))
