"""Where attachment records are kept: one file an attachment, durable before the first change of the node.

What a record says is in conf/attachment.py. A record is deleted only when its device is back.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from conf.attachment import Attachment
from conf.errors import DamagedRecord, DecodeFailure, IoFailure
from conf.section import Json, decode, lookup, read

LOG = logging.getLogger("vferry.attachments")
ROOT = Path("/var/lib/cni/vferry/attachments")
_NAME_BYTES = 200  # below NAME_MAX of linux/limits.h with room for ifname and suffix
# How model_dump_json with an indent writes a key and the beginning of its text.
_DEVICE_KEY = b'"device_id": "'
_READ_BYTES = 65536

# A record is written in milliseconds; what is so old nobody is writing any more.
_ABANDONED_S = 3600


def private_folder(folder: Path) -> None:
    """Make a folder for root alone, and those above it that are missing. Raises: OSError."""
    # mkdir(parents=True) makes those above it as the umask says, and the runtime's may be 0.
    for missing in [each for each in (*reversed(folder.parents), folder) if not each.exists()]:
        missing.mkdir(mode=0o700, exist_ok=True)


def write_durably(path: Path, content: bytes) -> None:
    """Write a private file so that after a crash it is there in whole, or as it was before.

    Raises: IoFailure.
    """
    beside = _beside(path)
    try:
        private_folder(path.parent)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        beside.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise IoFailure(
            f"cannot write {path}", details=str(error), hint="is the file system full or read-only?"
        ) from error


def delete_durably(path: Path) -> None:
    """Delete a file that may be absent, and what a killed writer left beside it.

    Raises: IoFailure.
    """
    try:
        _beside(path).unlink(missing_ok=True)
        path.unlink()
        _sync_folder(path.parent)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise IoFailure(f"cannot delete {path}", details=str(error)) from error


def _beside(path: Path) -> Path:
    # One name, not one a process, so that what a kill leaves is found; who writes a record holds its device's lock.
    return path.with_name(f".{path.name}.new")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Attachments:
    """The records of this node, of every plugin that attaches a device."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    def write(self, attachment: Attachment) -> None:
        """Write or replace a record, durably. Undo: ``delete``."""
        content = attachment.model_dump_json(indent=1).encode() + b"\n"
        write_durably(self._path(attachment.plugin, *attachment.owner), content)

    def delete(self, attachment: Attachment) -> None:
        """Delete a record; its device must be back."""
        delete_durably(self._path(attachment.plugin, *attachment.owner))

    def delete_unfinished(self, plugin: str, container_id: str, ifname: str) -> None:
        """Delete what is left of a record whose writer was killed before it was one; nothing was changed then."""
        delete_durably(self._path(plugin, container_id, ifname))

    def delete_abandoned(self, plugin: str, *, now: float) -> None:
        """Delete what writers that were killed have left and no DEL came for. Raises: IoFailure."""
        for path in self.root.glob(f"{plugin}/.*.json.new"):
            try:
                if now - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue  # its writer is alive
            except OSError as error:
                raise IoFailure(f"cannot delete {path}", details=str(error)) from error

    def load(self, plugin: str, container_id: str, ifname: str) -> Attachment | None:
        """Return one record, None when there is none.

        Raises: IoFailure when it cannot be read, which must not be taken for absence.
        """
        path = self._path(plugin, container_id, ifname)
        document = _document(path)
        return None if document is None else _record(document, path)

    def load_for_delete(
        self, plugin: str, container_id: str, ifname: str, *, upstreams: Callable[[], Attachment | None]
    ) -> Attachment | None:
        """Return what a DEL goes by: our record, or what there is for upstream's plugin, None when there is neither.

        We write upstream's as well, so that with ours damaged the device still comes back; the damaged file is kept.
        Raises: DamagedRecord when there is no other word on the device, IoFailure.
        """
        try:
            return self.load(plugin, container_id, ifname) or upstreams()
        except DamagedRecord as damage:
            found = upstreams()
            if found is None:
                raise
            path = self._path(plugin, container_id, ifname)
            path.replace(aside := path.with_name(f"{path.name}.damaged"))
            LOG.warning(
                "%s (%s): %s is given back by the record of upstream's plugin, which says less; ours is kept as %s",
                damage.msg, damage.details, found.device_id or ifname, aside,
            )  # fmt: skip
            return found

    def of_owner(self, container_id: str, ifname: str) -> list[Attachment]:
        """Return the records of one attachment, a plugin each; one that cannot be read is passed over."""
        found = []
        for folder in sorted(self.root.glob("*/")):
            with suppress(IoFailure):  # said by who goes by it
                record = self.load(folder.name, container_id, ifname)
                found += [record] if record else []
        return found

    def every(self, plugin: str = "*", *, device_id: str | None = None) -> list[Attachment]:
        """Return all records, or those of one device; one that cannot be read is logged and left where it is."""
        found = []
        for path in self._files(plugin):
            try:
                content = _content(path)
                # Before it is decoded: a node has hundreds, and an ADD looks for one.
                if content is None or (device_id is not None and _is_of_another(content, device_id)):
                    continue
                document = _decoded(content, path)
                if device_id in (None, lookup(document, "device_id")):
                    found.append(_record(document, path))
            except IoFailure as error:
                LOG.warning("%s", error)
        return found

    def holding(self, device_id: str) -> list[Attachment]:
        """Return the records of one device that is not back yet, for ``""`` those of all links without a device."""
        return [record for record in self.every(device_id=device_id) if not record.returned]

    def _files(self, plugin: str) -> Iterator[str]:
        # No Path each: that alone takes as long as reading one.
        for folder in sorted(self.root.glob(f"{plugin}/")):
            names: list[str] = []
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
                names = sorted(entry.name for entry in entries)
            yield from (f"{folder}/{name}" for name in names if name.endswith(".json") and not name.startswith("."))

    def _path(self, plugin: str, container_id: str, ifname: str) -> Path:
        # ':' can be in neither, so two attachments never share a file.
        if len(container_id) > _NAME_BYTES:
            container_id = hashlib.sha256(container_id.encode()).hexdigest()
        return self.root / plugin / f"{container_id}:{ifname}.json"


def _document(path: Path | str) -> Json | None:
    content = _content(path)
    return None if content is None else _decoded(content, path)


def _content(path: Path | str) -> bytes | None:
    try:
        # pathlib takes twice as long, for hundreds of records.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return b"".join(iter(lambda: os.read(descriptor, _READ_BYTES), b""))
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IoFailure(f"cannot read the record {path}", details=str(error)) from error


def _is_of_another(content: bytes, device_id: str) -> bool:
    """Tell whether a record, as ``write`` writes it, certainly names another device."""
    return _DEVICE_KEY in content and _DEVICE_KEY + device_id.encode() + b'"' not in content


def _decoded(content: bytes, path: Path | str) -> Json:
    try:
        return decode(content, "it")
    except DecodeFailure as error:
        raise DamagedRecord(
            f"the record {path} is damaged",
            details=str(error),
            hint="see that its device is on the host and as it should be, then move the file away: the next DEL "
            "releases the address",
        ) from error


def _record(document: Json, path: Path | str) -> Attachment:
    return read(Attachment, document, where=f"the record {path}", error=IoFailure)
