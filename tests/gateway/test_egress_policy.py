"""Which addresses sandboxes may reach, and what the proxy's clients may ask for."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cwsandbox.gateway.egress.policy import Allowed, Policy, RefusedError, is_own_address
from cwsandbox.gateway.egress.target import Target, TargetError, split_http_url

OWN = ipaddress.ip_address("8.8.4.4"), ipaddress.ip_address("10.9.9.9")


def policy(*allowed: str) -> Policy:
    return Policy(tuple(Allowed.parse(text) for text in allowed), is_own=OWN.__contains__)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_global_addresses_are_allowed(address: str) -> None:
    assert policy().check(address, 443) == address


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::7f00:1", "loopback"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("::ffff:192.168.1.1", "private"),
        ("fd00::1", "private"),
        ("fec0::1", "private"),
        ("100.64.0.1", "shared"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("169.254.169.254", "metadata"),
        ("::ffff:169.254.169.254", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("100.100.100.200", "metadata"),
        ("168.63.129.16", "metadata"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("ff02::1", "multicast"),
        ("192.0.2.1", "reserved"),
        ("198.18.0.1", "reserved"),
        ("240.0.0.1", "reserved"),
        ("2001:db8::1", "reserved"),
        ("2002:7f00:1::", "reserved"),
        ("2001:0:7f00:1::", "reserved"),
        ("::127.0.0.1", "not a global"),
        ("64:ff9b:1::1", "not a global"),
        ("8.8.4.4", "machine that the gateway runs on"),
        ("::ffff:8.8.4.4", "machine that the gateway runs on"),
        ("localhost", "that can be judged"),
        ("", "that can be judged"),
    ],
)
def test_all_others_are_refused_with_a_reason(address: str, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason):
        policy().check(address, 443)


def test_an_operator_can_allow_blocks_and_ports() -> None:
    allowing = policy("10.0.0.0/8", "192.168.1.5:5432", "[fd12::/48]:443")
    assert allowing.check("10.1.2.3", 1) == "10.1.2.3"
    assert allowing.check("::ffff:10.1.2.3", 1) == "10.1.2.3"
    assert allowing.check("192.168.1.5", 5432) == "192.168.1.5"
    assert allowing.check("fd12::7", 443) == "fd12::7"
    for address, port in (("192.168.1.5", 80), ("192.168.1.6", 5432), ("fd12::7", 80), ("fd13::7", 443)):
        with pytest.raises(RefusedError):
            allowing.check(address, port)


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "10.9.9.9", "8.8.4.4", "fd00:ec2::254", "::1"])
def test_dangerous_addresses_need_an_exception_of_their_own(address: str) -> None:
    with pytest.raises(RefusedError):
        policy("0.0.0.0/0", "::/0", "127.0.0.0/8", "10.0.0.0/8", "169.254.0.0/16").check(address, 80)
    assert policy(address).check(address, 80) == address


@pytest.mark.parametrize("text", ["", "example.com", "10.0.0.1/8", "10.0.0.1:0", "10.0.0.1:70000", "[::1", "1.2.3.4:x"])
def test_a_wrong_exception_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"not an address|a port is"):
        Allowed.parse(text)


def test_a_list_of_exceptions_is_read() -> None:
    assert [str(each.block) for each in Policy.parse(" 10.0.0.0/8, ::1 ,").allowed] == ["10.0.0.0/8", "::1/128"]
    assert Policy.parse("").allowed == ()


def test_this_machines_own_addresses_are_known() -> None:
    assert is_own_address(ipaddress.ip_address("127.0.0.1"))
    assert not is_own_address(ipaddress.ip_address("192.0.2.77"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.77", 9))
        except OSError:
            return
        assert is_own_address(ipaddress.ip_address(probe.getsockname()[0]))


@given(st.ip_addresses())
def test_what_is_allowed_is_global_by_the_standard_librarys_word_too(address: object) -> None:
    try:
        allowed = ipaddress.ip_address(policy().check(str(address), 1))
    except RefusedError:
        return
    assert allowed.is_global
    assert not allowed.is_multicast


@given(st.integers(0, 2**32 - 1))
def test_no_disguise_helps_an_ipv4_address(number: int) -> None:
    plain = ipaddress.IPv4Address(number)
    refused = False
    try:
        policy().check(str(plain), 1)
    except RefusedError:
        refused = True
    for disguise in (ipaddress.IPv6Address((0xFFFF << 32) | number), ipaddress.IPv6Address((0x64FF9B << 96) | number)):
        if refused:
            with pytest.raises(RefusedError):
                policy().check(str(disguise), 1)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("example.com:443", Target("example.com", 443)),
        ("a_b.example.:1", Target("a_b.example.", 1)),
        ("[::1]:80", Target("::1", 80)),
        ("1.2.3.4:5", Target("1.2.3.4", 5)),
    ],
)
def test_targets_are_read(text: str, target: Target) -> None:
    assert Target.from_authority(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", ":80", "host", "host:", "host:0", "host:65536", "host:1:2", "user@host:1", "[::1]", "[::1:80", "::1:80"),
        *("[x]:1", "a..b:1", "-a:1", ".a:1", "h ost:1", "host:٣", f"{'a' * 254}:1", "[::ffff:1.2.3]:1", "host:8\n"),
    ],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(TargetError):
        Target.from_authority(text)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://a.b/c?d#e", None),
        ("http://a.b/c?d", (Target("a.b", 80), "a.b", "/c?d")),
        ("HTTP://a.b:8080", (Target("a.b", 8080), "a.b:8080", "/")),
        ("http://a.b?q", (Target("a.b", 80), "a.b", "/?q")),
        ("http://[::1]:1/", (Target("::1", 1), "[::1]:1", "/")),
        ("https://a.b/", None),
        ("ftp://a.b/", None),
        ("/path", None),
        ("*", None),
        ("http:///path", None),
        ("http://user:pw@a.b/", None),
    ],
)
def test_urls_are_split(url: str, parts: object) -> None:
    if parts is None:
        with pytest.raises(TargetError):
            split_http_url(url)
    else:
        assert split_http_url(url) == parts


@given(st.text(max_size=300))
def test_no_text_breaks_the_readers(text: str) -> None:
    for read in (Target.from_authority, split_http_url):
        with contextlib.suppress(TargetError):
            read(text)
