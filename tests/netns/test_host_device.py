"""``host-device``'s ADD between scratch namespaces: what it moves and refuses, and what the pod gets.

What comes back is in test_host_device_del, CHECK, STATUS and GC in test_host_device_check, errors in the middle, kills
and races in test_host_device_undo, the Go plugin in test_host_device_go. What has a PCI device is in tests/vm, how
one is found in tests/unit/test_host_device_find.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cni.linux.announce import garp_packet
from cni.linux.link import Link
from tests.netns.host_device_node import LINK, give_network, static, take_network
from tests.netns.node import Node, Pod, config

pytest_plugins = ["tests.netns.node", "tests.netns.host_device_node"]
pytestmark = pytest.mark.usefixtures("host_is_as_before")


def test_add_check_del_and_the_result_with_mac_mtu_and_sandbox(node: Node, pod: Pod, veth: Link) -> None:
    conf = config(device="ens1v0", **static("10.7.7.1/24", "fd00::1/64", routes=[{"dst": "10.8.0.0/16"}]))
    conf["ipam"]["addresses"][0]["gateway"] = "10.7.7.9"
    result = pod.add(conf)
    assert result == {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "net1", "mac": veth.mac, "mtu": 1450, "sandbox": pod.net.path}],
        "ips": [
            {"interface": 0, "address": "10.7.7.1/24", "gateway": "10.7.7.9"},
            {"interface": 0, "address": "fd00::1/64"},
        ],
        "routes": [{"dst": "10.8.0.0/16"}],
    }
    link = pod.net.link("net1")
    assert (link.up, link.alias, link.mtu_bytes) == (True, "ens1v0", 1450)
    assert "10.8.0.0/16 via 10.7.7.9" in pod.net.ip("route")
    assert "fd00::1/64" in pod.net.ip("addr")
    assert node.net.rtnl.link_get("ens1v0") is None
    pod.check(conf, result)
    pod.delete(conf)
    assert pod.net.rtnl.link_get("net1") is None


def test_add_without_ipam_sets_the_link_up(pod: Pod) -> None:
    result = pod.add(LINK)
    assert [interface["name"] for interface in result["interfaces"]] == ["net1"]
    assert "ips" not in result
    assert pod.net.link("net1").up
    pod.check(LINK, result)
    pod.delete(LINK)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_version_with_interfaces(pod: Pod, version: str) -> None:
    conf = {**config(device="ens1v0", **static("10.7.7.1/24")), "cniVersion": version}
    result = pod.add(conf)
    assert (result["cniVersion"], result["ips"][0]["address"]) == (version, "10.7.7.1/24")
    pod.delete(conf)


def test_device_by_hwaddr_in_any_spelling(pod: Pod, veth: Link) -> None:
    for spelling in (veth.mac, veth.mac.upper(), veth.mac.replace(":", "-")):
        conf = config(hwaddr=spelling)
        pod.add(conf)
        pod.delete(conf)


def test_hwaddr_of_several_links_is_refused_and_names_them(node: Node, pod: Pod, veth: Link) -> None:
    node.net.ip("link", "add", "twin", "type", "veth", "peer", "name", "other")
    node.net.ip("link", "set", "twin", "address", veth.mac)
    refusal = pod.refused("ADD", config(hwaddr=veth.mac))
    assert (refusal["code"], "ens1v0, twin" in refusal["msg"]) == (7, True)
    node.net.ip("link", "del", "twin")


def test_device_by_kernelpath(node: Node, pod: Pod) -> None:
    peer = node.net.link("ens1p0")
    # Only virtual links here, and they share one folder; the first by name is the VF's peer.
    conf = config(kernelpath="/sys/devices/virtual/")
    result = pod.add(conf)
    assert result["interfaces"][0]["mac"] == peer.mac
    pod.delete(conf)
    assert pod.refused("ADD", config(kernelpath="/sys/devices/none"))["code"] == 11


def test_device_by_altname(pod: Pod) -> None:
    conf = config(device="a-long-altname-of-the-rail")
    pod.add(conf)
    assert "a-long-altname-of-the-rail" in pod.net.link("net1").altnames
    pod.delete(conf)


def test_device_goes_before_the_other_selectors(pod: Pod) -> None:
    conf = config(device="ens1v0", hwaddr="02:00:00:00:00:99", kernelpath="/sys/devices/none", pciBusID="0000:ff:1f.7")
    pod.add(conf)
    pod.delete(conf)


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ({}, 7, 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"'),
        ({"device": ""}, 7, "specify either"),
        ({"device": "absent"}, 11, '"device": "absent"'),
        ({"hwaddr": "02:00:00:00:00:99"}, 11, '"hwaddr": "02:00:00:00:00:99"'),
        ({"hwaddr": "02:00"}, 7, '"hwaddr": "02:00"'),
        ({"kernelpath": "/sys/class/net/ens1v0"}, 7, "/sys/class/net/ens1v0"),
        ({"kernelpath": "/sys/devices/../../etc"}, 7, "/sys/devices/../../etc"),
        ({"pciBusID": "../../etc"}, 7, '"pciBusID": "../../etc"'),
        ({"pciBusID": "0000:ff:1f.7"}, 100, '"pciBusID": "0000:ff:1f.7" is not found'),
        ({"runtimeConfig": {"deviceID": "mlx5_core.sf.99"}}, 100, '"mlx5_core.sf.99" is not found or unsupported'),
        ({"runtimeConfig": {"deviceID": "17"}}, 7, "runtimeConfig.deviceID: '17' is not valid"),
        ({"device": "ens1v0", "useInterfaceNetwork": "yes"}, 7, '"useInterfaceNetwork": "yes"'),
        ({"device": "ens1v0", "rdmaIsolation": True}, 7, "a virtual link has no RDMA device"),
    ],
)
def test_add_refuses_and_names_key_and_value(pod: Pod, keys: dict[str, Any], code: int, said: str) -> None:
    refusal = pod.refused("ADD", config(**keys))
    assert (refusal["code"], said in refusal["msg"]) == (code, True), refusal


def test_prev_result_is_merged_into_and_passed_on(pod: Pod) -> None:
    previous = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": pod.net.path}],
        "ips": [{"interface": 0, "address": "10.1.1.1/24"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.1.254"}],
        "dns": {"nameservers": ["10.1.1.53"]},
    }
    conf = config(device="ens1v0", prevResult=previous, **static("10.7.7.1/24"))
    result = pod.add(conf)
    assert [interface["name"] for interface in result["interfaces"]] == ["eth0", "net1"]
    assert result["ips"] == [
        {"interface": 0, "address": "10.1.1.1/24"},
        {"interface": 1, "address": "10.7.7.1/24"},
    ]
    assert (result["routes"], result["dns"]) == (previous["routes"], previous["dns"])
    pod.delete(conf)


@pytest.mark.parametrize("ipam", [{}, static("10.7.7.1/24")])
def test_dns_of_the_configuration_is_in_the_result(pod: Pod, ipam: dict[str, Any]) -> None:
    dns = {"nameservers": ["10.7.7.53"], "search": ["rail.local"]}
    conf = config(device="ens1v0", dns=dns, **ipam)
    assert pod.add(conf)["dns"] == dns
    pod.delete(conf)


def test_move_device_back_if_ipam_fails(pod: Pod) -> None:
    refusal = pod.refused("ADD", config(device="ens1v0", ipam={"type": "static", "addresses": [{"address": "x"}]}))
    assert refusal["code"] == 7


def test_move_device_back_and_ipam_del_if_a_foreign_ipam_fails(node: Node, pod: Pod) -> None:
    asked = node.folder.parent / f"{node.folder.name}-asked"
    plugin = asked.with_name("picky")
    plugin.write_text(
        f"#!/bin/sh\necho $CNI_COMMAND >>{asked}\n[ $CNI_COMMAND = DEL ] && exit\n"
        'echo \'{"code": 11, "msg": "no", "details": "later"}\'; exit 1\n'
    )
    plugin.chmod(0o755)
    refusal = pod.refused("ADD", config(device="ens1v0", ipam={"type": "picky"}), CNI_PATH=str(plugin.parent))
    assert (refusal["code"], refusal["msg"], asked.read_text()) == (11, "picky: no", "ADD\nDEL\n")


def test_ifname_taken_leaves_the_foreign_link_untouched(node: Node, pod: Pod) -> None:
    pod.net.ip("link", "add", "net1", "type", "veth", "peer", "name", "other")
    pod.net.ip("link", "set", "net1", "alias", "uplink")
    there = pod.net.rtnl.links()
    refusal = pod.refused("ADD", LINK)
    assert refusal["code"] == 101
    pod.delete(LINK)  # what a runtime sends after the refusal
    assert pod.net.rtnl.links() == there
    assert node.net.rtnl.link_get("uplink") is None


def test_foreign_link_with_an_alias_is_not_taken_for_the_go_plugins(node: Node, pod: Pod) -> None:
    pod.net.ip("link", "add", "net1", "type", "veth", "peer", "name", "other")
    pod.net.ip("link", "set", "net1", "alias", "uplink")
    for conf in (LINK, config(hwaddr="02:00:00:00:00:99"), config(pciBusID="0000:ff:1f.7")):
        pod.delete(conf)
    assert pod.net.link("net1").alias == "uplink"


def test_host_link_whose_name_exists_in_the_pod(pod: Pod, veth: Link) -> None:
    pod.net.ip("link", "add", "ens1v0", "type", "veth", "peer", "name", "other")
    pod.add(LINK)
    assert pod.net.link("net1").mac == veth.mac
    pod.delete(LINK)
    assert pod.net.link("ens1v0").mac != veth.mac


def test_ifname_that_is_another_host_links_name(node: Node, pod: Pod, veth: Link) -> None:
    pod.add(LINK, ifname="ens1p0")
    assert pod.net.link("ens1p0").mac == veth.mac
    pod.delete(LINK, ifname="ens1p0")


def test_ifname_that_is_the_host_links_own_name_or_altname(node: Node, pod: Pod) -> None:
    node.net.ip("link", "property", "add", "dev", "ens1v0", "altname", "net1")
    for ifname in ("ens1v0", "net1"):
        pod.add(LINK, ifname=ifname)
        pod.delete(LINK, ifname=ifname)
    assert "net1" in node.net.link("ens1v0").altnames
    node.net.ip("link", "property", "del", "dev", "ens1v0", "altname", "net1")


def test_altname_that_the_pod_has_too(node: Node, pod: Pod, veth: Link) -> None:
    pod.net.ip("link", "add", "held", "type", "veth", "peer", "name", "other")
    pod.net.ip("link", "property", "add", "dev", "held", "altname", "a-long-altname-of-the-rail")
    pod.add(LINK)
    assert pod.net.link("net1").mac == veth.mac
    pod.delete(LINK)


def test_second_add_of_the_attachment_is_refused_and_changes_nothing(node: Node, pod: Pod) -> None:
    node.net.ip("link", "add", "ens2v0", "type", "veth", "peer", "name", "ens2p0")
    pod.add(LINK)
    assert pod.refused("ADD", LINK)["code"] == 101
    pod.net.ip("link", "set", "net1", "down")
    pod.net.ip("link", "set", "net1", "name", "mine")
    # Now the name is free, but the record is that of a link in use: it must not be written over.
    refusal = pod.refused("ADD", config(device="ens2v0"))
    assert (refusal["code"], "ens1v0 is already allocated" in refusal["msg"]) == (11, True), refusal
    pod.delete(LINK)
    node.net.ip("link", "del", "ens2v0")


def test_link_that_another_pod_has_is_refused_and_says_who_has_it(pods: Callable[[], Pod], veth: Link) -> None:
    blue, green = pods(), pods()
    blue.add(LINK)
    for conf in (LINK, config(hwaddr=veth.mac)):
        refusal = green.refused("ADD", conf)
        assert (refusal["code"], refusal["msg"]) == (11, "device ens1v0 is already allocated")
        assert f"container {blue.net.name} has it as net1" in refusal["details"]
    green.delete(LINK)
    assert blue.net.link("net1").up
    blue.delete(LINK)


def test_use_interface_network_keeps_addresses_and_routes_inside(node: Node, pod: Pod) -> None:
    give_network(node)
    before = node.snapshot()
    conf = config(device="ens1v0", useInterfaceNetwork=True, **static("10.7.7.1/24", "10.9.0.5/24"))
    conf["ipam"]["addresses"][0]["gateway"] = "10.7.7.9"
    result = pod.add(conf)
    assert [ip["address"] for ip in result["ips"]] == ["10.9.0.5/24", "10.9.0.6/24", "fd09::5/64", "10.7.7.1/24"]
    routes = pod.net.ip("route", "show", "table", "all")
    for way in ("10.20.0.0/16 via 10.9.0.1 dev net1 metric 7 mtu 1300", "10.21.0.0/16 dev net1 scope link"):
        assert way in routes.replace(" proto boot", ""), routes
    assert "10.22.0.0/16 via 10.21.0.1 dev net1 table 77" in routes
    assert "fd20::/64 via fd09::1 dev net1" in pod.net.ip("-6", "route")
    pod.check(conf, result)
    pod.delete(conf)
    assert node.snapshot() == before
    take_network(node)


def test_use_interface_network_without_ipam(node: Node, pod: Pod) -> None:
    give_network(node)
    before = node.snapshot()
    conf = config(device="ens1v0", useInterfaceNetwork=True)
    result = pod.add(conf)
    assert [ip["address"] for ip in result["ips"]] == ["10.9.0.5/24", "10.9.0.6/24", "fd09::5/64"]
    pod.check(conf, result)
    pod.delete(conf)
    assert node.snapshot() == before
    take_network(node)


def test_announces_its_addresses(node: Node, pod: Pod, veth: Link) -> None:
    with node.net.netns.entered():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))  # ETH_P_ALL
    conf = config(device="ens1v0", **static("10.7.7.1/24", "fd00::1/64"))
    with wire:
        wire.bind(("ens1p0", 0x0003))
        wire.settimeout(120)  # the kernel advertises an IPv6 address when DAD is done
        pod.add(conf)
        # Kernel: in a gratuitous ARP of its own the hardware address asked for is 0.
        garp = garp_packet(bytes.fromhex(veth.mac.replace(":", "")), ipaddress.IPv4Address("10.7.7.1"))
        garp = garp[:18] + bytes(6) + garp[24:]
        seen = set()
        while seen != {"ARP", "NA"}:
            packet = wire.recv(2048)
            if packet == garp:
                seen.add("ARP")
            if packet[40:41] == b"\x88" and ipaddress.IPv6Address("fd00::1").packed in packet[48:]:
                seen.add("NA")
    pod.delete(conf)


def test_route_mtu_and_advmss(pod: Pod) -> None:
    route = {"dst": "10.8.0.0/16", "gw": "10.7.7.9", "mtu": 1400, "advmss": 1360, "priority": 7, "table": 77}
    conf = config(device="ens1v0", **static("10.7.7.1/24", routes=[route]))
    result = pod.add(conf)
    assert result["routes"] == [route]
    assert "10.8.0.0/16 via 10.7.7.9 dev net1 metric 7 mtu 1400 advmss 1360" in pod.net.ip(
        "route", "show", "table", "77"
    )
    pod.check(conf, result)
    pod.delete(conf)


def test_log_has_the_container_id_ifname_and_network(pod: Pod, tmp_path: Path) -> None:
    log = tmp_path / "log"
    pod.refused("ADD", config(device="absent", logFile=str(log)))
    assert f"ERROR host-device ADD {pod.net.name} net1 rail: " in log.read_text()
