"""Where the results of ADDs are cached: libcni's own files, so that cnitool can DEL what this command added.

What a file says is in conf/cached_attachment.py.

Source: containernetworking/cni libcni/api.go getCacheFilePath, cacheAdd, GetCachedAttachments.
"""

from __future__ import annotations

import json
from glob import escape
from pathlib import Path

from cni.attachments import delete_durably, write_durably
from conf.cached_attachment import CachedAttachment
from conf.errors import CniError, DecodeFailure, IoFailure
from conf.section import decode, read

CACHE = Path("/var/lib/cni")


class Results:
    """The cached attachments below one cache directory."""

    def __init__(self, cache: Path = CACHE) -> None:
        self._folder = cache / "results"

    def load(self, network: str, container_id: str, ifname: str) -> CachedAttachment | None:
        """Return one attachment, None when there is none.

        Raises: IoFailure when its file cannot be read, DecodeFailure when it is not libcni's.
        """
        return _load(self._path(network, container_id, ifname))

    def write(self, cached: CachedAttachment) -> None:
        """Write or replace an attachment. Undo: ``delete``. Raises: IoFailure."""
        path = self._path(cached.network, cached.container_id, cached.ifname)
        write_durably(path, json.dumps(cached.to_json(), separators=(",", ":")).encode())

    def delete(self, network: str, container_id: str, ifname: str) -> None:
        """Delete an attachment that may be absent."""
        delete_durably(self._path(network, container_id, ifname))

    def of_network(self, network: str) -> list[CachedAttachment]:
        """Return the attachments of one network; as libcni does, pass over files that are no such thing.

        Raises: IoFailure when the directory cannot be listed.
        """
        try:
            listed = sorted(self._folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise IoFailure(f"cannot list {self._folder}", details=str(error)) from error
        found = []
        for path in listed:
            # The name alone does not tell the network: all its parts may hold '-'.
            if not path.name.startswith(f"{network}-"):
                continue
            try:
                cached = _load(path)
            except CniError:
                continue
            if cached is not None and cached.network == network:
                found.append(cached)
        return found

    def of_owner(self, container_id: str, ifname: str) -> list[CachedAttachment]:
        """Return the attachments of one interface of one container, of all its interfaces where none is named.

        Raises: IoFailure, DecodeFailure: what cannot be read must not be taken for absent.
        """
        wanted = escape(ifname) if ifname else "*"
        found = map(_load, sorted(self._folder.glob(f"*-{escape(container_id)}-{wanted}")))
        return [each for each in found if each and each.container_id == container_id and ifname in ("", each.ifname)]

    def every(self) -> list[CachedAttachment]:
        """Return all attachments; what is no such thing is passed over."""
        found = []
        for path in sorted(self._folder.glob("*")):
            try:
                found.append(_load(path))
            except CniError:
                continue
        return [each for each in found if each is not None]

    def _path(self, network: str, container_id: str, ifname: str) -> Path:
        return self._folder / f"{network}-{container_id}-{ifname}"


def _load(path: Path) -> CachedAttachment | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IoFailure(f"cannot read the cached result {path}", details=error.strerror or "") from error
    where = f"the cached result {path}"
    return read(CachedAttachment, decode(content, where), where=where, error=DecodeFailure)
