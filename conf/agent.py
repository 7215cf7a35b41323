"""The keys of [agent] in /etc/vferry/vferry.toml; the agent itself is cni/agent/.

The command line of ``vferry agent`` wins over the file, and the file over what stands here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from conf.defaults import read_table
from conf.section import Section, read

LogFormat = Literal["text", "json"]
_ADDRESS = re.compile(r"(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})\Z")


def _address(text: str) -> str:
    match = _ADDRESS.match(text)
    if text and (match is None or int(match["port"]) > 65535):
        raise ValueError("it is not HOST:PORT, such as 127.0.0.1:9477")
    return text


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class AgentConf(Section):
    """How one agent runs."""

    max_children: int = Field(
        default_factory=lambda: 4 * _cores(),
        ge=1,
        le=1000,
        description="requests served at once, further ones wait in their order; default four for each core",
    )
    max_waiting: int = Field(
        default=1000, ge=0, le=10000, description="requests that may wait; further ones run in their own process"
    )
    spare_children: int = Field(
        default_factory=_cores,
        ge=0,
        le=100,
        description="children made ready while nothing is to be done; default one for each core",
    )
    request_timeout_s: int = Field(
        default=180, ge=1, le=220, description="seconds from a request's arrival until it is interrupted and undone"
    )
    log_format: LogFormat = Field(default="text", description="one line an event on stderr, text or json")
    metrics: Annotated[str, AfterValidator(_address)] = Field(
        default="", description="HOST:PORT for /metrics, /healthz and /readyz; absent: none"
    )
    stand_by: bool = Field(
        default=False,
        description="once replaced by another agent, end only when nobody listens any more: for a supervisor that "
        "starts anew whatever ends, and would have the two replace each other for ever",
    )
    host_mounts: str = Field(
        default="",
        description="the mount namespace that requests are served in, where it is not the agent's: /proc/1/ns/mnt in a "
        "container that sees the processes of its host",
    )


def read_agent(given: Mapping[str, Any]) -> AgentConf:
    """Read the table [agent], with what the command line gave in its place.

    Raises: InvalidNetworkConfig.
    """
    return read(AgentConf, {**read_table("agent"), **given}, where="[agent]")
