"""How addresses are read from text: strictly, as ADDRESS or ADDRESS/LENGTH; the only door from text to netaddr.

What an address is used for, and which of a range may be handed out, is not decided here. An IPv4 address mapped into
IPv6 (``::ffff:10.0.0.1``) is IPv4 everywhere, as it is in Go; otherwise one address would have two names.
Every function raises ValueError with a short text that a pydantic validator, or a caller who knows the key, completes.

Source: Go net.ParseIP, net.ParseCIDR; k8s.io/utils/net ParseIPSloppy (``sloppy``).
"""

from __future__ import annotations

from typing import Annotated, Any

from netaddr import ZEROFILL, AddrFormatError, IPAddress, IPNetwork
from pydantic import PlainValidator, WithJsonSchema

BITS = {4: 32, 6: 128}
_MAPPED_BITS = 96
_DOTTED_DECIMAL = frozenset("0123456789.")


def parse_address(text: str, *, sloppy: bool = False) -> IPAddress:
    """Return one address; ``sloppy`` takes IPv4 octets with leading zeros as decimal (010 is 10)."""
    try:
        # netaddr's ZEROFILL reads octets by int(), which also takes signs, spaces and the digits of other scripts.
        zerofill = sloppy and set(text) <= _DOTTED_DECIMAL
        address = IPAddress(text, flags=ZEROFILL if zerofill else 0)
    except (AddrFormatError, ValueError) as error:
        raise ValueError(f'"{text}" is not an IP address') from error
    return address.ipv4() if address.is_ipv4_mapped() else address


def parse_cidr(text: str, *, sloppy: bool = False) -> IPNetwork:
    """Return ADDRESS/LENGTH with its host bits: ``.ip`` is the address, ``.cidr`` the network."""
    address_text, slash, length_text = text.partition("/")
    if not slash:
        raise ValueError(f'"{text}" has no prefix length, write it as ADDRESS/LENGTH')
    address = parse_address(address_text, sloppy=sloppy)
    bits = BITS[address.version]
    length = int(length_text) if length_text.isascii() and length_text.isdigit() else -1
    if length >= 0 and address.version == 4 and ":" in address_text:
        length -= _MAPPED_BITS
    if not 0 <= length <= bits:
        raise ValueError(f'"{text}" has no prefix length of 0 to {bits}')
    return IPNetwork((address.value, length), version=address.version)


def parse_block(text: str) -> IPNetwork:
    """Return a network; a bare address is the network of that one address."""
    return parse_cidr(text).cidr if "/" in text else IPNetwork(parse_address(text))


def parse_host(text: str) -> IPNetwork:
    """Return ADDRESS/LENGTH of an address that an interface can bear."""
    cidr = parse_cidr(text)
    if cidr.ip.is_multicast():
        raise ValueError(f"{cidr.ip} is a multicast address")
    if cidr.ip.value == 0:
        raise ValueError(f"{cidr.ip} is the unspecified address")
    return cidr


def _text(given: Any) -> str:
    if not isinstance(given, str):
        raise ValueError("it is not a string")
    return given


def _read_address(given: Any) -> IPAddress:
    return given if isinstance(given, IPAddress) else parse_address(_text(given))


def _read_optional_address(given: Any) -> IPAddress | None:
    # Go's net.IP reads the empty string as no address.
    return None if given == "" else _read_address(given)


def _read_host(given: Any) -> IPNetwork:
    return given if isinstance(given, IPNetwork) else parse_host(_text(given))


def _read_block(given: Any) -> IPNetwork:
    return given if isinstance(given, IPNetwork) else parse_block(_text(given))


# The types of model fields; netaddr has no type stubs, so these names carry the meaning.
OptionalAddress = Annotated[Any, PlainValidator(_read_optional_address), WithJsonSchema({"type": "string"})]
Host = Annotated[Any, PlainValidator(_read_host), WithJsonSchema({"type": "string"})]
Block = Annotated[Any, PlainValidator(_read_block), WithJsonSchema({"type": "string"})]
