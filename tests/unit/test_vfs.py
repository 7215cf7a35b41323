"""The table of VFs: every column from its source, whoever wrote the record, and what is said where nothing is known."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from cni.attachments import Attachments
from cni.cli import vfs as command
from cni.cli.command import vferry
from cni.inventory import Inventory
from cni.kernel import Kernel
from cni.linux.link import Link, VfState
from cni.linux.sysfs import Sysfs
from cni.upstream_sriov import GoSriovFiles
from conf.attachment import Attachment, LinkRecord, SandboxRecord
from tests.unit.fake_sysfs import FakeSysfs

PF = "0000:3b:00.0"
FREE, OURS, GO, DPDK = (f"0000:3b:02.{number}" for number in range(4))
STATE = VfState(0, "00:00:00:00:00:00", 0, 0, "802.1q", 0, 0, spoofchk=True, trust=False, link_state="auto")


class Host:
    """An rtnetlink socket of the host, whose links are those of the dictionary."""

    def __init__(self, links: dict[str, Link]) -> None:
        self.links = links

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def link_get(self, ifname: str, *, vfs: bool = False) -> Link | None:
        link = self.links.get(ifname)
        return link if link is None or vfs else replace(link, vfs=())


def link(ifname: str, parent: str, **more: object) -> Link:
    return Link(
        7, ifname, "52:54:00:00:00:01", 1500, up=True, running=True, promisc=False, allmulti=False,
        parent_dev=parent, parent_bus="pci", **more,  # type: ignore[arg-type]
    )  # fmt: skip


class Node:
    """A machine with one PF and four VFs: free, ours, the Go plugin's, and one for DPDK."""

    def __init__(self, root: Path) -> None:
        self.sysfs = FakeSysfs(root / "sys")
        self.attachments = Attachments(root / "attachments")
        self.go_files = GoSriovFiles(root / "sriov")
        self.links: dict[str, Link] = {}

    def with_pf(self, *, vfs: bool = True) -> Node:
        self.sysfs.device(PF, sriov_totalvfs=8, sriov_numvfs=4 if vfs else 0, numa_node=1)
        self.sysfs.netdev(PF, "ens1")
        self.links["ens1"] = link("ens1", PF)
        return self.with_vfs() if vfs else self

    def with_vfs(self) -> Node:
        for index, address in enumerate((FREE, OURS, GO, DPDK)):
            self.sysfs.vf(PF, index, address, numa_node=1 if index < 3 else -1)
            self.sysfs.driver(address, "vfio-pci" if address == DPDK else "iavf")
        self.sysfs.netdev(FREE, "ens1v0")
        self.links["ens1v0"] = link("ens1v0", FREE)
        tagged = replace(STATE, index=1, mac="02:00:5e:10:00:01", vlan_id=100, vlan_qos=3, trust=True, spoofchk=None)
        double = replace(STATE, index=2, vlan_id=200, vlan_proto="802.1ad")
        self.links["ens1"] = link("ens1", PF, vfs=(STATE, tagged, double, replace(STATE, index=3)))
        return self

    def record(self, address: str, container_id: str, **more: object) -> Attachment:
        recorded = Attachment(
            plugin="sriov",
            network="rail",
            container_id=container_id,
            ifname="net1",
            sandbox=SandboxRecord(path=f"/run/netns/{container_id}", inode=1, device=1, boot_id="b"),
            device_id=address,
            link=LinkRecord(ifname="ens1v1", index=3, mac="", mtu_bytes=1500),
        ).model_copy(update=more)
        self.attachments.write(recorded)
        return recorded

    def inventory(self) -> Inventory:
        kernel = Kernel(sysfs=Sysfs(str(self.sysfs.root)), rtnetlink=lambda _netns: Host(self.links))  # type: ignore
        return Inventory(kernel, attachments=self.attachments, go_files=self.go_files)

    def lines(self) -> dict[str, dict[str, str]]:
        inventory = self.inventory()
        rows = [command.cells(vf, owners_known=inventory.owners_known) for vf in inventory.vfs()]
        return {row[2]: dict(zip(command.COLUMNS, row, strict=True)) for row in rows}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def vfs(node: Node, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr(command, "Inventory", node.inventory)
    return lambda *arguments: CliRunner().invoke(vferry, ["vfs", *arguments], prog_name="vferry")


def test_free_vf_is_told_from_sysfs_and_its_pf(node):
    assert node.with_pf().lines()[FREE] == {
        "PF": "ens1",
        "VF": "0",
        "PCI": FREE,
        "DRIVER": "iavf",
        "NETDEV": "ens1v0",
        "CONTAINER": "-",
        "IFNAME": "-",
        "NETNS": "-",
        "MAC": "52:54:00:00:00:01",
        "VLAN": "0",
        "TRUST": "off",
        "SPOOFCHK": "on",
        "NUMA": "1",
    }


def test_owner_is_the_records(node):
    node.with_pf().record(OURS, "c1")
    line = node.lines()[OURS]
    assert (line["NETDEV"], line["CONTAINER"], line["IFNAME"], line["NETNS"]) == ("-", "c1", "net1", "/run/netns/c1")
    assert (line["MAC"], line["VLAN"], line["TRUST"], line["SPOOFCHK"]) == ("02:00:5e:10:00:01", "100/3", "on", "-")


def test_returned_device_has_no_owner(node):
    node.with_pf().record(OURS, "c1", returned=True)
    assert node.lines()[OURS]["CONTAINER"] == "-"


def test_interface_is_named_before_its_rdma_device(node):
    node.with_pf()
    node.record(OURS, "c1")
    node.record(OURS, "c1", plugin="rdma", link=None, ifname="rdma0")
    assert node.lines()[OURS]["IFNAME"] == "net1"


def test_owner_is_the_go_plugins_too(node):
    recorded = node.with_pf().record(GO, "go1")
    node.attachments.delete(recorded)
    node.go_files.write(recorded)
    line = node.lines()[GO]
    assert (line["CONTAINER"], line["IFNAME"], line["NETNS"]) == ("go1", "net1", "/run/netns/go1")
    assert line["VLAN"] == "200@802.1ad"
    (node.go_files.root / "go1-net1").unlink()
    line = node.lines()[GO]
    assert (line["CONTAINER"], line["IFNAME"], line["NETNS"]) == ("-", "-", "/run/netns/go1")


def test_vf_without_numa_node_or_state_says_so(node):
    node.with_pf()
    assert node.lines()[DPDK]["NUMA"] == "-"
    del node.links["ens1"]
    line = node.lines()[FREE]
    assert (line["VLAN"], line["TRUST"], line["SPOOFCHK"]) == ("-", "-", "-")


def test_unreadable_records_are_not_taken_for_none(node):
    node.with_pf().record(OURS, "c1")
    # For root every directory is readable; a file in its place is not.
    node.go_files.root.write_text("")
    lines = node.lines()
    assert (lines[OURS]["CONTAINER"], lines[OURS]["NETNS"]) == ("?", "?")
    assert lines[FREE]["CONTAINER"] == "-"


def test_pipe_gets_aligned_columns_without_a_gap(node, vfs):
    node.with_pf().record(OURS, "c1")
    done = vfs()
    assert (done.exit_code, done.stderr) == (0, "")
    header, *lines = done.stdout.splitlines()
    assert header.split() == list(command.COLUMNS)
    assert [line.split()[2] for line in lines] == [FREE, OURS, GO, DPDK]
    assert {len(line.split()) for line in lines} == {len(command.COLUMNS)}
    assert len({line.index("0000:3b:02") for line in lines} | {header.index("PCI")}) == 1


def test_free_ones_are_those_an_add_could_take(node, vfs):
    node.with_pf().record(OURS, "c1")
    # GO has neither netdev nor record: somebody moved it by hand.
    assert [line.split()[2] for line in vfs("--free").stdout.splitlines()[1:]] == [FREE, DPDK]
    assert len(vfs("--pf", "ens1").stdout.splitlines()) == 5
    assert len(vfs("--pf", PF).stdout.splitlines()) == 5


def test_json_has_types(node, vfs):
    node.with_pf().record(OURS, "c1")
    free, ours, *_ = json.loads(vfs("--output", "json").stdout)
    assert (free["owner"], free["free"], free["vlan"], free["trust"], free["numaNode"]) == (None, True, 0, False, 1)
    assert ours["owner"] == {
        "containerID": "c1", "ifname": "net1", "netns": "/run/netns/c1", "recordedBy": "vferry"
    }  # fmt: skip
    assert (ours["free"], ours["netdev"], ours["mac"], ours["vlan"]) == (False, None, "02:00:5e:10:00:01", 100)


def test_without_a_nic_it_says_what_was_looked_for(vfs):
    done = vfs()
    assert (done.exit_code, done.stdout) == (1, "")
    assert "vferry: this machine has no SR-IOV NIC; looked for PCI functions with sriov_totalvfs" in done.stderr
    assert vfs("--output", "json").stdout == "[]\n"


def test_without_vfs_it_says_how_to_make_them(node, vfs):
    node.with_pf(vfs=False)
    done = vfs()
    assert done.exit_code == 1
    assert f"ens1 ({PF}, up to 8)" in done.stderr
    assert f"echo 4 > /sys/bus/pci/devices/{PF}/sriov_numvfs" in done.stderr


def test_unknown_pf_is_an_error_that_names_the_known(node, vfs):
    node.with_pf()
    done = vfs("--pf", "ens2")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"vferry: there is no PF ens2; PFs: ens1 ({PF}, up to 8)" in done.stderr


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_narrow_terminal_gets_every_cell_unwrapped_and_by_its_vf(node, capsys, width):
    node.with_pf().record(OURS, "c" * 30)
    rows = [command.cells(vf, owners_known=True) for vf in node.inventory().vfs()]
    command.show(rows, Console(file=io.StringIO(), force_terminal=True, width=width))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    groups = [block.splitlines() for block in printed.split("\n\n")]
    seen: dict[str, dict[str, str]] = {address: {} for address in (FREE, OURS, GO, DPDK)}
    for header, *lines in groups:
        for line in lines:
            told = dict(zip(header.split(), line.split(), strict=True))
            seen[told["PCI"]].update(told)
    assert [tuple(told[name] for name in command.COLUMNS) for told in seen.values()] == rows


@pytest.mark.parametrize(("width", "drawn"), [(200, True), (60, False)])
def test_terminal_gets_a_drawing_where_it_fits(node, capsys, width, drawn):
    node.with_pf()
    rows = [command.cells(vf, owners_known=True) for vf in node.inventory().vfs()]
    screen = io.StringIO()
    command.show(rows, Console(file=screen, force_terminal=True, width=width))
    printed = screen.getvalue() + capsys.readouterr().out
    assert ("│" in printed) is drawn
    assert all(row[2] in printed for row in rows)
