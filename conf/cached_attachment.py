"""libcni's record of an attachment, read for CHECK, DEL and GC; where it is kept is in cni/cli/results.py.

Every tool that is built on libcni (cnitool, containerd, podman) writes and reads this form.

Source: containernetworking/cni libcni/api.go cachedInfo.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Literal

from pydantic import Field

from conf.section import Json, Section


class CachedAttachment(Section):
    """One attachment as libcni caches it: what was asked of which network, and the result."""

    kind: Literal["cniCacheV1"] = "cniCacheV1"
    container_id: str = Field(alias="containerId")
    config: str = Field(default="", description="the network's document, base64")
    ifname: str = Field(alias="ifName")
    network: str = Field(alias="networkName")
    netns: str = ""
    cni_args: list[list[str]] = Field(default=[], alias="cniArgs")
    capability_args: dict[str, Any] = Field(default={}, alias="capabilityArgs")
    result: dict[str, Any] = {}

    def document(self) -> bytes:
        """Return the network's document, empty when it cannot be read."""
        try:
            return base64.b64decode(self.config, validate=True)
        except binascii.Error:
            return b""

    def to_json(self) -> Json:
        """Return it as Go writes it: what is empty is left out but for the first five."""
        every = self.model_dump(by_alias=True)
        always = ("kind", "containerId", "config", "ifName", "networkName")
        return {key: value for key, value in every.items() if value or key in always}


def encoded(document: bytes) -> str:
    """Return a document as Go writes bytes into JSON."""
    return base64.b64encode(document).decode("ascii")
