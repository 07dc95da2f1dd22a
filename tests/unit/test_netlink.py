"""rtnetlink's bytes."""

from errno import EBUSY
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrun.errors import KernelError
from igrun.netlink import (
    ACK_TLVS,
    CAPPED,
    ERROR,
    Interface,
    attribute,
    attributes,
    each_attribute,
    filter_of,
    interface,
    raise_refused,
)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40))))
def test_attributes_come_back_as_they_were_written(pairs):
    assert list(each_attribute(b"".join(attribute(kind, value) for kind, value in pairs))) == pairs


@given(st.binary(max_size=80))
def test_any_bytes_are_read_to_their_end(data):
    assert all(len(value) <= len(data) for value in attributes(data).values())


def test_an_interface_tells_its_peer_and_its_xdp_programs():
    head = pack("=BxHiII", 0, 1, 7, 1, 0)
    xdp = attribute(2, b"\x01") + attribute(4, pack("=I", 33)) + attribute(5, pack("=I", 33))
    body = attribute(3, b"veth0\0") + attribute(5, pack("=I", 9)) + attribute(37, pack("=I", 2))
    body += attribute(18, attribute(1, b"veth\0")) + attribute(43, xdp)

    assert interface(head + body) == Interface(
        7, "veth0", "veth", up=True, peer=9, peer_namespace=2, xdp=(("native", 33),)
    )


def test_an_interface_without_attributes_is_one():
    assert interface(pack("=BxHiII", 0, 1, 3, 8, 0)) == Interface(3, "", loopback=True)


def test_a_filter_of_another_kind_has_no_program():
    data = (
        pack("=BxxxiIII", 0, 1, 5, 0xFFFFFFF2, 0x10300) + attribute(1, b"u32\0") + attribute(2, attribute(11, bytes(4)))
    )

    assert filter_of(data).program == 0
    assert filter_of(data).kind == "u32"


def test_a_refusal_has_the_kernels_words():
    request = pack("=IHHII", 16, 16, 0, 1, 0)
    words = attribute(1, b"XDP program already attached\0")

    with pytest.raises(KernelError, match=r"attach \(XDP program already attached\)") as error:
        raise_refused(pack("=i", -EBUSY) + request + words, ERROR, ACK_TLVS | CAPPED, "attach")

    assert error.value.errno == EBUSY


def test_an_acknowledgement_is_no_refusal():
    raise_refused(bytes(20), ERROR, 0, "attach")
