"""The keys of ``rdma``; what is done with them is in cni/rdma.py.

Source: k8snetworkplumbingwg/rdma-cni README, pkg/types/types.go; reference 4.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from conf import device
from conf.defaults import filled, read_table
from conf.netconf import NetConf
from conf.request import Request
from conf.section import read, tell_misspelt


class RdmaConf(NetConf):
    """The network configuration of ``rdma``, a chained plugin."""

    device_id: Annotated[str, AfterValidator(device.device_id)] | None = Field(
        default=None,
        alias="deviceID",
        description="PCI address or auxiliary device name of the interface's function, filled in by Multus; "
        "absent: the device behind CNI_IFNAME in the sandbox",
    )
    shared_mode: Literal["refuse", "ignore"] = Field(
        default="refuse",
        alias="sharedMode",
        description="what to do when the node's RDMA netns mode is shared, in which no device can be isolated: "
        "refuse: fail; ignore: pass the result on, the pod then sees every RDMA device of the node",
    )


def load(request: Request) -> RdmaConf:
    """Read the configuration of one request. Raises: InvalidNetworkConfig with key and value."""
    conf = read(RdmaConf, filled(request.config, read_table("rdma")), where="rdma")
    tell_misspelt(conf, where="rdma")
    return conf
