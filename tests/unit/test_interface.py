"""What ``sriov`` and ``host-device`` refuse alike, before they look at the sandbox or the device."""

from __future__ import annotations

import json
import re

import pytest

from cni.host_device import HostDevice
from cni.sriov import Sriov
from conf.errors import InvalidNetworkConfig
from conf.request import read_request

ENVIRON = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/nonexistent/netns", "CNI_IFNAME": "net1"}


@pytest.mark.parametrize("plugin", [Sriov, HostDevice])
@pytest.mark.parametrize("ipam_type", ["nobody", "../static", "a/b"])
def test_an_ipam_plugin_that_is_not_there_is_refused_before_anything_is_done(plugin, ipam_type):
    config = {"name": "n", "deviceID": "0000:01:10.0", "device": "eth9", "ipam": {"type": ipam_type}}
    request = read_request(ENVIRON, json.dumps(config).encode())
    # Not NetnsGone, which is what the next step would say here.
    with pytest.raises(InvalidNetworkConfig, match=re.escape(ipam_type)):
        plugin().add(request)
