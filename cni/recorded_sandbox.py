"""The sandbox that a record names: whether it is there still, and waiting for what the kernel returns when it is not.

What was in it is looked for in cni/attach.py and cni/rdma_device.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from cni.attachments import Attachments
from cni.kernel import Kernel
from cni.linux.netns import Netns
from conf.attachment import SandboxRecord
from conf.errors import InvalidNetns, NetnsGone
from conf.request import Request

LOG = logging.getLogger("vferry.recorded_sandbox")

# The kernel dismantles a netns, and returns what was in it, after the last holder has gone.
_RETURN_TRIES = 100
_RETURN_PAUSE_S = 0.05


def sandbox_record(sandbox: Netns) -> SandboxRecord:
    """Return what tells a sandbox from every other, now and after a reboot."""
    identity = sandbox.identity
    return SandboxRecord(path=sandbox.path, inode=identity.inode, device=identity.device, boot_id=identity.boot_id)


def is_same_sandbox(sandbox: Netns, record: SandboxRecord) -> bool:
    """Tell whether an open netns is the recorded one; the Go plugins record the path only."""
    return not record.inode or sandbox_record(sandbox).model_copy(update={"path": record.path}) == record


@contextmanager
def opened(record: SandboxRecord) -> Iterator[Netns | None]:
    """Open the recorded sandbox; None when it is not there, or another one is."""
    try:
        sandbox = Netns.open(record.path) if record.path else None
    except InvalidNetns:
        sandbox = None
    if sandbox is None:
        yield None
        return
    with sandbox:
        yield sandbox if is_same_sandbox(sandbox, record) else None


def sandbox_lives(record: SandboxRecord) -> bool | None:
    """Tell whether the sandbox is there, None when that can't be told; if not, the kernel is returning what it had."""
    try:
        with Netns.open(record.path) as sandbox:
            return is_same_sandbox(sandbox, record)
    except NetnsGone:
        return False
    except InvalidNetns:
        return None


def is_another_networks(attachments: Attachments, request: Request) -> bool:
    """Tell whether what stands under this DEL's container and ifname is another network's; says so in the log.

    The spec has a failed ADD followed by a DEL. An ADD that was refused because another network has the interface
    changed nothing and leased nothing, and its DEL would find that network's device and address by the same owner.
    """
    records = attachments.of_owner(request.container_id, request.ifname)
    if any(record.network == request.network for record in records):
        return False
    for record in records:
        if not record.returned and sandbox_lives(record.sandbox):
            LOG.warning(
                "nothing is deleted: %s of %s is an attachment of network %s, not of %s",
                request.ifname, request.container_id, record.network, request.network,
            )  # fmt: skip
            return True
    return False


def tries_while_returning(kernel: Kernel, record: SandboxRecord) -> Iterator[None]:
    """Yield for one look, and again for as long as the kernel may be returning what was in a sandbox that is gone."""
    for _attempt in range(_RETURN_TRIES):
        yield
        if sandbox_lives(record) is not False:
            return
        kernel.sleep(_RETURN_PAUSE_S)
