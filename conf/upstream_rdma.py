"""The Go ``rdma`` plugin's state file, both ways; where it lies is in cni/upstream_rdma.py.

Source: k8snetworkplumbingwg/rdma-cni pkg/types/types.go RdmaNetState, pkg/cache/cache.go; reference 4.
"""

from __future__ import annotations

from pydantic import Field

from conf.attachment import Attachment, RdmaRecord, SandboxRecord
from conf.errors import IoFailure
from conf.section import Json, Section, read

_VERSION = "1.0"


class _State(Section):
    version: str = ""
    device_id: str = Field(default="", alias="deviceID")
    sandbox_name: str = Field(alias="sandboxRdmaDevName")
    container_name: str = Field(default="", alias="containerRdmaDevName")


def from_upstream(
    document: Json, *, network: str, container_id: str, ifname: str, netns_path: str, where: str
) -> Attachment:
    """Return the attachment that a state file of the Go plugin describes; it names no netns. Raises: IoFailure."""
    # "sandbox" is the Go plugin's word for the host's side, "container" for the pod's.
    state = read(_State, document, where=where, error=IoFailure)
    return Attachment(
        plugin="rdma",
        network=network,
        container_id=container_id,
        ifname=ifname,
        sandbox=SandboxRecord(path=netns_path, inode=0, device=0, boot_id=""),
        device_id=state.device_id,
        rdma=RdmaRecord(name=state.sandbox_name),
    )


def to_upstream(attachment: Attachment) -> Json:
    """Return the state file with which the Go plugin can DEL this attachment."""
    name = attachment.rdma.name if attachment.rdma else ""
    return {
        "version": _VERSION,
        "deviceID": attachment.device_id,
        "sandboxRdmaDevName": name,
        "containerRdmaDevName": name,
    }
