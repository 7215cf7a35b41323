"""The keys every plugin's network configuration has; the keys of one plugin are in that plugin's own module.

Source: https://www.cni.dev/docs/spec/#section-1-network-configuration-format
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from conf.section import Section


class Dns(Section):
    """Name resolution as CNI writes it."""

    nameservers: list[str] = Field(default=[], description="addresses of name servers, best first")
    domain: str = Field(default="", description="the local domain")
    search: list[str] = Field(default=[], description="search list for host-name look-up")
    options: list[str] = Field(default=[], description="resolver options")

    def to_json(self) -> dict[str, Any]:
        """Return only what is set."""
        keys = ("nameservers", "domain", "search", "options")
        return {key: getattr(self, key) for key in keys if getattr(self, key)}


class IpamSelector(Section):
    """The one key of ``ipam`` that an interface plugin reads: who assigns the address."""

    type: str = Field(default="", description="name of the IPAM plugin; absent: the interface gets no address")


class NetConf(Section):
    """What every plugin of a network configuration may hold."""

    cni_version: str = Field(default="0.1.0", alias="cniVersion", description="version of the CNI specification")
    name: str = Field(description="the network's name, unique on the node")
    type: str = Field(default="", description="file name of the plugin")
    ipam: IpamSelector = Field(default=IpamSelector(), description="address assignment; its keys are the plugin's")
    dns: Dns = Field(default=Dns(), description="copied into the result")
    capabilities: dict[str, Any] = Field(default={}, description="capabilities the runtime may fill in")
    runtime_config: dict[str, Any] = Field(
        default={},
        alias="runtimeConfig",
        description="filled in by the runtime for the declared capabilities",
    )
    args: dict[str, Any] = Field(default={}, description="optional meta-data; args.cni is the conventional part")
    log_level: str = Field(default="warning", alias="logLevel", description="panic, error, warning, info or debug")
    log_file: str = Field(default="", alias="logFile", description="a file instead of stderr")
