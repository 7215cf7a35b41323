"""The Go ``sriov`` plugin's files on this node: read so that a node can be upgraded under running pods, written so
that it can go back.

What they say is in conf/upstream_sriov.py.

Source: k8snetworkplumbingwg/sriov-cni pkg/utils/pci_allocator.go, pkg/config/config.go; reference 2.5.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from cni.attachments import delete_durably, write_durably
from conf.attachment import Attachment
from conf.errors import DecodeFailure, IoFailure
from conf.section import decode
from conf.upstream_sriov import from_upstream, to_upstream

LOG = logging.getLogger("vferry.upstream_sriov")
ROOT = Path("/var/lib/cni/sriov")
_NAME_BYTES = 245  # below NAME_MAX of linux/limits.h with room for what write_durably puts beside


class GoSriovFiles:
    """The state and allocation files below one folder."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    def load(self, container_id: str, ifname: str) -> Attachment | None:
        """Return the attachment that the Go plugin recorded, None when it recorded none.

        It is marked returned when a later one has its device: the Go plugin records no owner there, and the
        allocation names the sandbox of the last one. Raises: IoFailure.
        """
        found = self._read(container_id, ifname)
        if found is None:
            return None
        last, *_earlier = self.holding(found.device_id) or [found]
        # By the file: where a name is to be split into container ID and ifname, holding can but guess.
        return found.model_copy(update={"returned": self._state(*last.owner) != self._state(*found.owner)})

    def _read(self, container_id: str, ifname: str) -> Attachment | None:
        path = self._state(container_id, ifname)
        if path is None:
            return None
        try:
            document = decode(path.read_bytes(), "it")
        except FileNotFoundError:
            return None
        except (OSError, DecodeFailure) as error:
            raise IoFailure(f"cannot read the Go plugin's state file {path}", details=str(error)) from error
        found = from_upstream(
            document, container_id=container_id, ifname=ifname, netns_path="", where=f"the state file {path}"
        )
        netns_path = self.allocated_to(found.device_id) or ""
        return found.model_copy(update={"sandbox": found.sandbox.model_copy(update={"path": netns_path})})

    def allocated_to(self, pci_address: str) -> str | None:
        """Return the netns path that a device is allocated to, None when it is not; a virtual link never is."""
        if not pci_address:
            return None
        try:
            return self._allocation(pci_address).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IoFailure(f"cannot read {self._allocation(pci_address)}", details=str(error)) from error

    def holding(self, pci_address: str) -> list[Attachment]:
        """Return the Go plugin's attachments of one device, the last one first, as they are to be taken back."""
        found: list[tuple[int, Attachment]] = []
        for path in self.root.glob("[!.]*-*"):
            # An ifname may hold '-', but so may a container ID: try every place where it can be split.
            for at in (index for index, letter in enumerate(path.name) if letter == "-"):
                container_id, ifname = path.name[:at], path.name[at + 1 :]
                if len(ifname) > 15 or not container_id or not ifname or not path.is_file():
                    continue
                try:
                    attachment = self._read(container_id, ifname)
                    if attachment and attachment.device_id == pci_address:
                        found.append((path.stat().st_mtime_ns, attachment))
                except (IoFailure, FileNotFoundError) as error:
                    LOG.warning("%s", error)
                break
        return [attachment for _mtime, attachment in sorted(found, key=lambda each: each[0], reverse=True)]

    def write(self, attachment: Attachment) -> None:
        """Write what the Go plugin needs to DEL this attachment. Undo: ``delete``."""
        path = self._state(*attachment.owner)
        if path is not None:
            write_durably(path, json.dumps(to_upstream(attachment)).encode())
        write_durably(self._allocation(attachment.device_id), attachment.sandbox.path.encode())

    def delete(self, attachment: Attachment) -> None:
        """Delete an attachment's files; an allocation that has become another netns's stays."""
        device_id = attachment.device_id  # a virtual link has none, and no allocation
        # None: there may be what a killed writer has left beside it.
        if device_id and self.allocated_to(device_id) in (attachment.sandbox.path, None):
            delete_durably(self._allocation(device_id))
        self.delete_state(attachment)

    def delete_state(self, attachment: Attachment) -> None:
        """Delete an attachment's state file only: its device is another's, or was given back before."""
        path = self._state(*attachment.owner)
        if path is not None:
            delete_durably(path)

    def forget_allocation(self, pci_address: str) -> None:
        """Delete an allocation whose netns is gone."""
        delete_durably(self._allocation(pci_address))

    def _state(self, container_id: str, ifname: str) -> Path | None:
        """Return where a state file lies, None when no file can have that name: then Go has none either."""
        name = f"{container_id}-{ifname}"
        return self.root / name if len(name) <= _NAME_BYTES else None

    def _allocation(self, pci_address: str) -> Path:
        return self.root / "pci" / pci_address
