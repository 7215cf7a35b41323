"""A machine as ``vferry ipam reconcile`` finds it: records of what was attached there, and nothing that still is."""

from __future__ import annotations

import json
from collections import Counter

from click.testing import CliRunner

from cni.attachments import Attachments
from cni.cli import reconcile as command
from cni.cli.command import vferry
from cni.cli.results import Results
from cni.sandboxes import Sandboxes
from conf.attachment import Attachment, SandboxRecord
from tests.stores.conftest import EtcdLab, LocalLab


class Node:
    """One node whose sandboxes are all gone, and its command, for a network with these ranges in a lab's store."""

    name = "n1"

    def __init__(self, make, blocks, tmp_path, monkeypatch):
        self.attachments = Attachments(tmp_path / "attachments")
        sandboxes = Sandboxes(self.name, attachments=self.attachments, results=Results(tmp_path / "cache"))
        monkeypatch.setattr(command, "Sandboxes", lambda name: sandboxes)
        (tmp_path / "netns").mkdir()
        self._gone = str(tmp_path / "netns" / "gone")
        with open("/proc/sys/kernel/random/boot_id") as file:
            self._boot_id = file.read().strip()
        self._conf_dir = tmp_path / "net.d"
        self._conf_dir.mkdir()
        block, *others = blocks
        ipam = {"type": "whereabouts", "range": block, "ipRanges": [{"range": other} for other in others]}
        ipam |= {"cooldownSeconds": 0}
        if isinstance(make, EtcdLab):
            ipam |= {"datastore": "etcd", "etcd": {"endpoints": [make.server.url], "prefix": make.prefix}}
        elif isinstance(make, LocalLab):
            ipam |= {"datastore": "local", "dataDir": str(make.data_dir)}
        else:
            ipam |= {"datastore": make.store.name, "kubernetes": {"kubeconfig": make.kubeconfig}}
        network = {"cniVersion": "1.0.0", "name": "rail1", "type": "sriov", "ipam": ipam}
        (self._conf_dir / "rail1.conf").write_text(json.dumps(network))

    def record(self, name):
        """Write down that it was attached here, as an interface plugin does before it asks for an address."""
        sandbox = SandboxRecord(path=self._gone, inode=0, device=0, boot_id=self._boot_id)
        self.attachments.write(
            Attachment(
                plugin="sriov", network="rail1", container_id=name, ifname="net1", device_id="0", sandbox=sandbox
            )
        )

    def forget(self, name):
        record = self.attachments.load("sriov", name, "net1")
        if record is not None:
            self.attachments.delete(record)

    def reconcile(self, *words):
        """Return how many leases of which state the command found."""
        options = ["--network", "rail1", "--conf-dir", str(self._conf_dir), "--node", self.name]
        run = CliRunner().invoke(
            vferry, ["ipam", "reconcile", *options, "--grace", "0", "--interval", "0", "--output", "json", *words]
        )
        assert run.exit_code == 0, (run.output, run.exception)
        return Counter(each["state"] for each in json.loads(run.stdout))
