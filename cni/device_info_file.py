"""The device-info file: which PCI and RDMA device an interface is, for Multus to put into the pod's network status.

Multus copies the device plugin's own file there before the ADD; ours is written only where there is none.

Source: k8snetworkplumbingwg/device-info-spec SPEC.md 1.1.0; reference 7.1.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cni.linux.sysfs import Sysfs, is_pci_address
from conf.attachment import Attachment
from conf.errors import InvalidNetworkConfig, IoFailure
from conf.section import lookup, shown

LOG = logging.getLogger("vferry.device_info")
_VERSION = "1.1.0"


def wanted_path(config: Mapping[str, Any], device_id: str) -> str:
    """Return where a device-info file is asked for and missing, else "".

    Raises: InvalidNetworkConfig when the runtime gave no absolute path.
    """
    runtime_config = lookup(config, "runtimeConfig")
    path = lookup(runtime_config, "CNIDeviceInfoFile", "") if isinstance(runtime_config, dict) else ""
    if not path or not is_pci_address(device_id):
        return ""
    if not isinstance(path, str) or not Path(path).is_absolute():
        raise InvalidNetworkConfig(f"runtimeConfig: {shown('CNIDeviceInfoFile', path)} is not an absolute path")
    return "" if os.path.lexists(path) else path


def write(attachment: Attachment, sysfs: Sysfs) -> None:
    """Write the file that the record names, with the RDMA device, moved or not. Undo: ``delete``. Raises: IoFailure."""
    path = attachment.device_info_file
    if not path:
        return
    pci = {"pci-address": attachment.device_id}
    rdma = (attachment.rdma.name,) if attachment.rdma else sysfs.rdma_devices(attachment.device_id)
    if rdma:
        pci["rdma-device"] = ",".join(rdma)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8", opener=_readable_by_all) as file:
            json.dump({"type": "pci", "version": _VERSION, "pci": pci}, file)
    except OSError as error:
        if os.path.lexists(path) and error.errno == errno.EEXIST:
            LOG.info("%s is there by now", path)
            return
        raise IoFailure(f"cannot write the device-info file {path}", details=str(error)) from error


def _readable_by_all(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o444)


def delete(attachment: Attachment) -> None:
    """Delete the file that the record names; absent is fine. Raises: IoFailure."""
    if not attachment.device_info_file:
        return
    try:
        Path(attachment.device_info_file).unlink(missing_ok=True)
    except OSError as error:
        raise IoFailure(f"cannot delete {attachment.device_info_file}", details=str(error)) from error
