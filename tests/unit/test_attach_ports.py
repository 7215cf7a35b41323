"""Which of several netdevs on one PCI function is an attachment's: the permanent MAC tells them apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cni.attach import home_link, link_record
from cni.attachments import Attachments
from cni.holding import require_unheld
from cni.kernel import Kernel
from cni.linux.link import Link
from cni.linux.sysfs import Sysfs
from conf.attachment import Attachment, SandboxRecord
from tests.unit.fake_sysfs import FakeSysfs

CARD = "0000:3b:00.0"
FIRST = Link(
    index=4,
    ifname="ens1",
    mac="aa:00:00:00:00:01",
    mtu_bytes=1500,
    up=True,
    running=True,
    promisc=False,
    allmulti=False,
    parent_dev=CARD,
    parent_bus="pci",
    perm_mac="aa:00:00:00:00:01",
)
SECOND = replace(FIRST, index=5, ifname="ens1d1", mac="aa:00:00:00:00:02", perm_mac="aa:00:00:00:00:02")


class Host:
    def __init__(self, *links: Link) -> None:
        self._links = links

    def links(self) -> tuple[Link, ...]:
        return self._links

    def link_get(self, ifname: str) -> Link | None:
        return next((link for link in self._links if link.ifname == ifname), None)


def node(tmp_path: Path, *links: Link) -> tuple[Kernel, Any]:
    sysfs = FakeSysfs(tmp_path / "sys")
    sysfs.device(CARD)
    for link in links:
        sysfs.netdev(CARD, link.ifname)
    return Kernel(sysfs=Sysfs(str(tmp_path / "sys"))), Host(*links)


def attachment(link: Link, *, shares_device: bool, sandbox: str = "/nonexistent") -> Attachment:
    return Attachment(
        plugin="host-device",
        network="rail",
        container_id=link.ifname,
        ifname="net1",
        sandbox=SandboxRecord(path=sandbox, inode=1, device=4, boot_id=""),
        device_id=CARD,
        link=link_record(link).model_copy(update={"shares_device": shares_device}),
    )


def test_port_on_the_host_is_not_taken_for_the_one_in_a_pod(tmp_path: Path) -> None:
    kernel, host = node(tmp_path, SECOND)
    assert home_link(kernel, host, attachment(FIRST, shares_device=True)) is None
    assert home_link(kernel, host, attachment(SECOND, shares_device=True)) == SECOND


def test_port_that_came_back_under_another_name_is_found(tmp_path: Path) -> None:
    returned = replace(FIRST, ifname="net1", index=9)
    kernel, host = node(tmp_path, SECOND, returned)
    assert home_link(kernel, host, attachment(FIRST, shares_device=True)) == returned


def test_only_netdev_is_found_whatever_its_permanent_mac_says(tmp_path: Path) -> None:
    """igbvf reports the MAC of its last reset."""
    reset = replace(FIRST, perm_mac="aa:00:00:00:00:99")
    kernel, host = node(tmp_path, reset)
    assert home_link(kernel, host, attachment(FIRST, shares_device=False)) == reset


def test_port_is_free_while_another_port_is_in_a_pod(tmp_path: Path) -> None:
    kernel, host = node(tmp_path, SECOND)
    attachments = Attachments(tmp_path / "attachments")
    attachments.write(attachment(FIRST, shares_device=True, sandbox="/proc/thread-self/ns/net"))
    files = SimpleNamespace(holding=lambda _device: [], allocated_to=lambda _device: None, delete=lambda _record: None)
    require_unheld(kernel, host, CARD, attachments=attachments, go_files=files, link=SECOND)
    assert [record.container_id for record in attachments.holding(CARD)] == ["ens1"]
