"""The Go ``rdma`` plugin's state files on this node: read so that a node can be upgraded, written so it can go back.

Source: k8snetworkplumbingwg/rdma-cni pkg/cache/cache.go; reference 4.
"""

from __future__ import annotations

import json
from pathlib import Path

from cni.attachments import delete_durably, write_durably
from conf.attachment import Attachment
from conf.errors import DecodeFailure, IoFailure
from conf.section import decode
from conf.upstream_rdma import from_upstream, to_upstream

ROOT = Path("/var/lib/cni/rdma")


class GoRdmaFiles:
    """The state files below one folder."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    def load(self, network: str, container_id: str, ifname: str, *, netns_path: str) -> Attachment | None:
        """Return the attachment that the Go plugin recorded, None when it recorded none. Raises: IoFailure."""
        path = self._path(network, container_id, ifname)
        try:
            document = decode(path.read_bytes(), "it")
        except FileNotFoundError:
            return None
        except (OSError, DecodeFailure) as error:
            raise IoFailure(f"cannot read the Go plugin's state file {path}", details=str(error)) from error
        return from_upstream(
            document,
            network=network,
            container_id=container_id,
            ifname=ifname,
            netns_path=netns_path,
            where=f"the state file {path}",
        )

    def write(self, attachment: Attachment) -> None:
        """Write what the Go plugin needs to DEL this attachment. Undo: ``delete``."""
        write_durably(self._path(attachment.network, *attachment.owner), json.dumps(to_upstream(attachment)).encode())

    def delete(self, attachment: Attachment) -> None:
        """Delete an attachment's state file."""
        delete_durably(self._path(attachment.network, *attachment.owner))

    def _path(self, network: str, container_id: str, ifname: str) -> Path:
        return self.root / f"{network}-{container_id}-{ifname}"
