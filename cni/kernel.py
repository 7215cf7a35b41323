"""The kernel as the plugins are given it: one bundle of collaborators, the real ones by default.

Nothing here decides anything; tests hand over a bundle whose n-th call fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cni.linux.announce import announce
from cni.linux.netns import Netns
from cni.linux.rdma import RdmaNetlink
from cni.linux.rtnetlink import Rtnetlink
from cni.linux.sysctl import Sysctl
from cni.linux.sysfs import Sysfs


@dataclass(frozen=True)
class Kernel:
    """What a plugin may ask of the kernel, and the clock it waits by."""

    sysfs: Sysfs = field(default_factory=Sysfs)
    sysctl: Sysctl = field(default_factory=Sysctl)
    rtnetlink: Callable[[Netns | None], Rtnetlink] = Rtnetlink
    rdma: Callable[[Netns | None], RdmaNetlink] = RdmaNetlink
    announce: Callable[..., object] = announce
    sleep: Callable[[float], None] = time.sleep
