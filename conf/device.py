"""How devices are written in configurations: PCI addresses, auxiliary device names, MACs; syntax only.

Source: Documentation/driver-api/auxiliary_bus.rst; reference 7.2.
"""

from __future__ import annotations

import re

_PCI_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")
_AUXILIARY = re.compile(r"[A-Za-z0-9_]+\.[A-Za-z0-9_\-]+\.[0-9]+\Z")
_MAC = re.compile(r"(?:[0-9a-f]{2}[:-]){5}[0-9a-f]{2}\Z|(?:[0-9a-f]{4}\.){2}[0-9a-f]{4}\Z", re.IGNORECASE)
_INFINIBAND = re.compile(r"(?:[0-9a-f]{2}[:-]){19}[0-9a-f]{2}\Z", re.IGNORECASE)


def pci_address(text: str) -> str:
    """Return a PCI address in the kernel's spelling; ValueError for anything else, a path above all."""
    if not _PCI_ADDRESS.match(text.lower()):
        raise ValueError("a PCI address is written 0000:3b:02.1")
    return text.lower()


def device_id(text: str) -> str:
    """Return a PCI address or an auxiliary device name; ValueError for anything else, a path above all."""
    if _PCI_ADDRESS.match(text.lower()):
        return text.lower()
    if not _AUXILIARY.match(text):
        raise ValueError("a device is written 0000:3b:02.1 (PCI) or mlx5_core.sf.4 (auxiliary)")
    return text


def mac(text: str) -> str:
    """Return a MAC in the kernel's spelling; ValueError when it is none."""
    if not _MAC.match(text):
        raise ValueError("a MAC is written 02:00:5e:10:00:01")
    digits = re.sub(r"[:.\-]", "", text).lower()
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def hardware_address(text: str) -> str:
    """Return a MAC, or the 20 bytes of an IPoIB interface, in the kernel's spelling; ValueError when it is neither."""
    return text.replace("-", ":").lower() if _INFINIBAND.match(text) else mac(text)


def unicast_mac(text: str) -> str:
    """Return a MAC in the kernel's spelling; ValueError when it can't be an interface's own."""
    spelt = mac(text)
    if int(spelt[:2], 16) & 1:
        raise ValueError("it is a multicast address; the lowest bit of the first byte must be 0")
    if spelt == "00:00:00:00:00:00":
        raise ValueError("it is all zeros")
    return spelt
