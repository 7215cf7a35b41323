"""pyroute2's messages come without pyroute2, and leave it whole for whoever wants it; each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "asyncio",
    "multiprocessing",
    "pyroute2.netlink.rtnl.ifinfmsg",
    "pyroute2.ndb",
    "pyroute2.iproute",
    "pyroute2.ipdb",
    "pyroute2.nftables",
)


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_rest_of_pyroute2_is_not_imported() -> None:
    loaded = run("import cni.linux.rtnetlink, cni.linux.announce, cni.linux.dad, sys; print(*sys.modules)")
    assert "pyroute2.netlink.rtnl.rtmsg" in loaded
    assert not [module for module in loaded if module in HEAVY]


def test_using_the_messages_does_not_import_it_later() -> None:
    loaded = run(
        "import sys; from cni.linux.rtnetlink import Rtnetlink\n"
        "with Rtnetlink() as rtnl: rtnl.links(); rtnl.addresses(1); rtnl.routes(1)\n"
        "print(*sys.modules)"
    )
    assert not [module for module in loaded if module in HEAVY]


@pytest.mark.parametrize("first", ["import cni.linux.pyroute2_messages", "import pyroute2"])
def test_pyroute2_is_whole_before_and_after(first: str) -> None:
    shown = run(
        f"{first}\nimport cni.linux.pyroute2_messages as ours, pyroute2\n"
        "from pyroute2 import IPRoute, netlink, config\n"
        "from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg\n"
        "assert pyroute2.NetlinkError is netlink.exceptions.NetlinkError\n"
        "assert issubclass(ifinfmsg, ours.nlmsg) and pyroute2.config is config\n"
        "with IPRoute() as ipr: print(ipr.link('get', index=1)[0].get('ifname'))"
    )
    assert shown == ["lo"]


def test_the_package_answers_like_any_module() -> None:
    shown = run(
        "import cni.linux.pyroute2_messages, sys, inspect; package = sys.modules['pyroute2']\n"
        "print(hasattr(package, '__wrapped__'), 'pyroute2.ndb' in sys.modules, inspect.getfile(package))\n"
        "try: package.absent\n"
        "except AttributeError as error: print(type(error).__name__)"
    )
    assert shown[:2] == ["False", "False"] and shown[2].endswith("pyroute2/__init__.py")
    assert shown[3] == "AttributeError"


def test_links_are_written_as_pyroute2_writes_them() -> None:
    shown = run(
        "from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg\n"
        "from cni.linux.link_message import linkmsg\n"
        "vf = [('MAC', {'vf': 3, 'mac': '02:00:00:00:00:0f'}), ('VLAN', {'vf': 3, 'vlan': 5, 'qos': 1}),\n"
        "      ('RATE', {'vf': 3, 'min_tx_rate': 1, 'max_tx_rate': 2}), ('TRUST', {'vf': 3, 'trust': 1}),\n"
        "      ('SPOOFCHK', {'vf': 3, 'spoofchk': 1}), ('LINK_STATE', {'vf': 3, 'link_state': 2})]\n"
        "said = [('IFLA_IFNAME', 'net1'), ('IFLA_MTU', 1450), ('IFLA_TXQLEN', 7), ('IFLA_IFALIAS', 'ens1'),\n"
        "        ('IFLA_NET_NS_FD', 4), ('IFLA_EXT_MASK', 9), ('IFLA_ADDRESS', '02:00:00:00:00:0f'),\n"
        "        ('IFLA_PROP_LIST', {'attrs': [('IFLA_ALT_IFNAME', 'a' * 20)]})]\n"
        "of = lambda n, v: {'attrs': [('IFLA_VF_INFO', {'attrs': [(f'IFLA_VF_{n}', v)]})]}\n"
        "said += [('IFLA_VFINFO_LIST', of(n, v)) for n, v in vf]\n"
        "def written(kind, attribute):\n"
        "    message = kind(); message['index'] = 7; message['attrs'] = [attribute]; message.encode()\n"
        "    return bytes(message.data)\n"
        "import copy\n"
        "for each in said: print(written(ifinfmsg, copy.deepcopy(each)) == written(linkmsg, copy.deepcopy(each)))"
    )
    assert shown == ["True"] * 14


def test_addresses_have_any_length() -> None:
    shown = run(
        "from cni.linux.link_message import linkmsg\n"
        "for mac in ('02:00:00:00:00:0f', ':'.join(['80', '0a'] * 10)):\n"
        "    sent = linkmsg(); sent['attrs'] = [('IFLA_ADDRESS', mac)]; sent.encode()\n"
        "    got = linkmsg(bytes(sent.data)); got.decode(); print(got.get_attr('IFLA_ADDRESS') == mac)"
    )
    assert shown == ["True", "True"]
