"""What sandboxes may reach: global unicast addresses, and what the operator allows beyond them.

Addresses are judged, never names: whatever a name resolves to, the address that is going to be connected to is the one
that was checked. The blocks are those of IANA's special-purpose registries that are not globally reachable; they are
written out here because `ipaddress.is_global` had some of them wrong until Python 3.12.4 (CVE-2024-4032).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import TYPE_CHECKING, Final, Self

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Callable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Block = ipaddress.IPv4Network | ipaddress.IPv6Network

_BLOCKS: Final[tuple[tuple[Block, str], ...]] = tuple(
    (ipaddress.ip_network(block), reason)
    for reason, blocks in {
        "a loopback address": ("127.0.0.0/8", "::1/128"),
        "a link-local address": ("169.254.0.0/16", "fe80::/10"),
        "a private address": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"),
        "an address of a provider's shared network": ("100.64.0.0/10",),
        "an unspecified address": ("0.0.0.0/8", "::/128"),
        "a multicast or broadcast address": ("224.0.0.0/4", "255.255.255.255/32", "ff00::/8"),
        "a reserved address": (
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "240.0.0.0/4",
            "2001::/23",  # IETF protocol assignments, Teredo among them
            "2001:db8::/32",
            "2002::/16",  # 6to4: an IPv4 address in disguise
            "3fff::/20",
        ),
    }.items()
    for block in blocks
)
_GLOBAL_V6: Final = ipaddress.IPv6Network("2000::/3")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
# Where cloud providers answer questions about the machine, credentials included.
_METADATA: Final = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",  # Amazon, Google, Azure, Oracle and others
        "169.254.170.2",  # Amazon ECS
        "169.254.170.23",  # Amazon EKS
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's WireServer, which is a global address
        "fd00:ec2::254",
        "fd00:ec2::23",
    )
)
_ENTRY: Final = re.compile(
    r"\[(?P<v6>[^\[\]]+)\](?::(?P<port6>\d{1,5}))?|(?P<v4>[\d./]+)(?::(?P<port4>\d{1,5}))?|(?P<bare>.+)"
)


class RefusedError(Exception):
    """The policy says no; the message is a reason such as "a private address"."""


@frozen
class Allowed:
    """An exception that the operator makes: a block of addresses, and one port or (None) all."""

    block: Block
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `10.1.0.0/16`, `10.1.2.3:5432`, `fd12::/48` or `[fd12::7]:443`.

        Raises:
            ValueError: It is none of these.
        """
        match = _ENTRY.fullmatch(text.strip())
        parts = match.groupdict() if match is not None else {}
        port = parts.get("port4") or parts.get("port6")
        try:
            block = ipaddress.ip_network(parts.get("v6") or parts.get("v4") or parts.get("bare") or "")
        except ValueError as problem:
            raise ValueError(
                f"{text!r} is not an address or a block of them, with or without a port: {problem}"
            ) from None
        if port is not None and not 1 <= int(port) <= 65535:
            raise ValueError(f"{text!r}: a port is from 1 to 65535")
        return cls(block, int(port) if port is not None else None)

    def covers(self, address: Address, port: int) -> bool:
        """Return whether the exception is for this address and port."""
        return address in self.block and self.port in {None, port}


def is_own_address(address: Address) -> bool:
    """Return whether an address is one of this machine's: a packet to it would come from itself. Sends nothing."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            source = probe.getsockname()[0]
    except OSError:
        return False  # No way there at all.
    return ipaddress.ip_address(source.partition("%")[0]) == address


@frozen
class Policy:
    """What a gateway's sandboxes may reach.

    Attributes:
        allowed: Exceptions. Loopback, this machine's own and metadata addresses are so dangerous that only an exception
            for that one address covers them, never one for a block.
        is_own: Tells this machine's own addresses.
    """

    allowed: tuple[Allowed, ...] = ()
    is_own: Callable[[Address], bool] = field(default=is_own_address, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a comma-separated list of exceptions; "" has none.

        Raises:
            ValueError: Names the entry that is wrong.
        """
        return cls(tuple(Allowed.parse(entry) for entry in text.split(",") if entry.strip()))

    def check(self, text: str, port: int) -> str:
        """Return the numeric address to connect to, in its plain form.

        Raises:
            RefusedError: Not this one.
        """
        try:
            address = _plain(ipaddress.ip_address(text))
        except ValueError:
            raise RefusedError("not an address that can be judged") from None
        if address.version == 6 and address.scope_id is not None:
            raise RefusedError("a link-local address")
        reason, single = self._objection(address)
        if reason is None:
            return str(address)
        for exception in self.allowed:
            if exception.covers(address, port) and (not single or exception.block.num_addresses == 1):
                return str(address)
        raise RefusedError(reason)

    def _objection(self, address: Address) -> tuple[str | None, bool]:
        """Return why an address is refused (None: it is not), and whether only an exception of its own counts."""
        if address in _METADATA:
            return "an address of a cloud's metadata service", True
        judged = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF) if address in _NAT64 else address
        for block, reason in _BLOCKS:
            if judged in block:
                return reason, judged.is_loopback or self.is_own(address)
        if judged.version == 6 and judged not in _GLOBAL_V6:
            return "not a global address", self.is_own(address)
        if self.is_own(address):
            return "an address of the machine that the gateway runs on", True
        return None, False


def _plain(address: Address) -> Address:
    """An IPv4 address that came as an IPv6 one is what the kernel would connect to."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or address
    return address
