"""The keys of ``host-device``; what is done with them is in cni/host_device.py.

Source: containernetworking/plugins plugins/main/host-device/host-device.go; reference 3.1.
"""

from __future__ import annotations

import posixpath
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from conf.defaults import filled, read_table
from conf.device import device_id, hardware_address
from conf.errors import InvalidNetworkConfig
from conf.netconf import NetConf
from conf.request import Request
from conf.section import read, tell_misspelt

_KERNELPATH_ROOT = "/sys/devices/"
_ALTNAME_BYTES = 127  # ALTIFNAMSIZ of linux/if.h, less the terminating NUL


def _kernelpath(text: str) -> str:
    if not text.startswith(_KERNELPATH_ROOT) or posixpath.normpath(text) != text.rstrip("/"):
        raise ValueError(f"an absolute path below {_KERNELPATH_ROOT}, without '..'")
    return text.rstrip("/")


def _ifname(text: str) -> str:
    if len(text.encode()) > _ALTNAME_BYTES or "/" in text or text in (".", ".."):
        raise ValueError("the name of an interface of the host")
    return text


class HostDeviceConf(NetConf):
    """The network configuration of ``host-device``: the first of the selectors that is given decides."""

    device: Annotated[str, AfterValidator(_ifname)] | None = Field(
        default=None, description="name or altname of the host's interface"
    )
    hwaddr: Annotated[str, AfterValidator(hardware_address)] | None = Field(
        default=None, description="MAC of the host's interface"
    )
    kernelpath: Annotated[str, AfterValidator(_kernelpath)] | None = Field(
        default=None, description="the device's folder below /sys/devices"
    )
    pci_bus_id: Annotated[str, AfterValidator(device_id)] | None = Field(
        default=None,
        alias="pciBusID",
        description="PCI address of the device, or auxiliary name; Multus fills it in",
    )
    use_interface_network: bool = Field(
        default=False,
        alias="useInterfaceNetwork",
        description="the interface keeps in the pod the global addresses and the routes that it has on the host",
    )
    rdma_isolation: bool = Field(
        default=False,
        alias="rdmaIsolation",
        description="move the device's RDMA device into the pod too; needs the RDMA netns mode exclusive, "
        "and no rdma plugin in the chain",
    )

    @field_validator("device", "hwaddr", "kernelpath", "pci_bus_id", mode="before")
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        return None if value == "" else value

    @property
    def runtime_device_id(self) -> str | None:
        """The runtime's choice of a device, PCI or auxiliary."""
        value = self.runtime_config.get("deviceID")
        return device_id(value) if value else None


def load(request: Request) -> HostDeviceConf:
    """Read the configuration of one request. Raises: InvalidNetworkConfig with key and value."""
    conf = read(HostDeviceConf, filled(request.config, read_table("host-device")), where="host-device")
    tell_misspelt(conf, where="host-device")
    try:
        chosen = conf.runtime_device_id
    except (ValueError, AttributeError) as error:
        raise InvalidNetworkConfig(
            f"host-device: runtimeConfig.deviceID: {conf.runtime_config.get('deviceID')!r} is not valid",
            details=str(error),
        ) from error
    if not (conf.device or conf.hwaddr or conf.kernelpath or conf.pci_bus_id or chosen):
        raise InvalidNetworkConfig(
            'specify either "device", "hwaddr", "kernelpath" or "pciBusID"',
            hint="or let the runtime choose: capability deviceID, which the NAD's resourceName annotation fills in",
        )
    return conf
