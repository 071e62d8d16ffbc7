"""SOCKS 5 without I/O: what clients say, in pieces of any size, and what is nonsense."""

from __future__ import annotations

import ipaddress
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwsandbox.gateway.egress.socks import Handshake, Reply, SocksError, reply
from cwsandbox.gateway.egress.target import Target

GREETING = b"\5\1\0"


def request(host: str, port: int, command: int = 1) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        body = b"\3" + bytes([len(host)]) + host.encode()
    else:
        body = (b"\1" if address.version == 4 else b"\4") + address.packed
    return bytes([5, command, 0]) + body + struct.pack("!H", port)


def said(data: bytes, cuts: list[int]) -> Handshake:
    handshake = Handshake()
    places = sorted({0, *(cut % (len(data) + 1) for cut in cuts), len(data)})
    answers = b""
    for start, end in itertools.pairwise(places):
        if handshake.target is None:
            answers += handshake.feed(data[start:end])
        else:
            handshake._buffer += data[start:end]
    assert answers == b"\5\0"
    return handshake


@given(
    st.sampled_from([("example.com", 443), ("1.2.3.4", 1), ("2001:db8::1", 65535)]),
    st.binary(max_size=40),
    st.lists(st.integers(0, 1000), max_size=6),
)
def test_a_request_is_read_in_pieces_of_any_size(target: tuple[str, int], early: bytes, cuts: list[int]) -> None:
    handshake = said(GREETING + request(*target) + early, cuts)
    assert handshake.target == Target(*target)
    assert handshake.rest == early


def test_a_client_that_insists_on_a_password_is_told_no() -> None:
    with pytest.raises(SocksError) as caught:
        Handshake().feed(b"\5\1\2")
    assert caught.value.answer == b"\5\xff"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (request("1.2.3.4", 1, command=2), Reply.COMMAND_NOT_SUPPORTED),
        (request("1.2.3.4", 1, command=3), Reply.COMMAND_NOT_SUPPORTED),
        (b"\5\1\0\2\0\0", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
        (request("a b", 1), Reply.GENERAL_FAILURE),
        (b"\5\1\0\3\0\0\1", Reply.GENERAL_FAILURE),
        (b"\5\1\0\3\2\xff\xfe\0\1", Reply.GENERAL_FAILURE),
        (request("1.2.3.4", 0), Reply.GENERAL_FAILURE),
    ],
)
def test_what_is_not_done_is_answered_by_its_code(data: bytes, code: Reply) -> None:
    with pytest.raises(SocksError) as caught:
        Handshake().feed(GREETING + data)
    assert caught.value.answer == b"\5\0" + reply(code)


@pytest.mark.parametrize("data", [b"\4\1\0", GREETING + b"\4\1\0\1"])
def test_other_versions_get_no_answer(data: bytes) -> None:
    with pytest.raises(SocksError) as caught:
        Handshake().feed(data)
    assert caught.value.answer in {b"", b"\5\0"}


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_no_bytes_break_it_or_pile_up(pieces: list[bytes]) -> None:
    handshake = Handshake()
    try:
        for piece in pieces:
            handshake.feed(piece)
            if handshake.target is not None:
                return
            assert len(handshake.rest) < 5 + 255 + 2
    except SocksError:
        pass
