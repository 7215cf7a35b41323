"""The capabilities of this process: dropping those it has no use for, for itself and for all it starts.

Source: capabilities(7), capset(2), linux/capability.h, linux/prctl.h.
"""

from __future__ import annotations

import ctypes
import errno
import os

from conf.errors import KernelRefused

# linux/capability.h
NEEDED: dict[str, int] = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_FOWNER": 3,
    "CAP_KILL": 5,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_BROADCAST": 11,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
}
_LAST = 63
_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """One half of the 64 bits; the kernel takes the lower half first."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def keep_only(wanted: dict[str, int]) -> None:
    """Drop every other capability from the bounding, permitted and effective set; nobody we start has it again.

    Raises: KernelRefused.
    """
    kept = sum(1 << number for number in wanted.values())
    for number in range(_LAST + 1):
        held = _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)
        if held < 0:
            break  # the kernel knows no more
        if held and not kept >> number & 1 and _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            if ctypes.get_errno() == errno.EPERM:
                return  # not ours to drop: this process has few enough already
            raise KernelRefused("dropping a capability", str(number), ctypes.get_errno())
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    _call("capget", header, sets)
    for half, of in enumerate(sets):
        mask = kept >> 32 * half & 0xFFFFFFFF
        of.effective &= mask
        of.permitted &= mask
        of.inheritable &= mask
    _call("capset", header, sets)


def _call(name: str, header: _Header, sets: ctypes.Array[_Sets]) -> None:
    if getattr(_libc, name)(ctypes.byref(header), sets) != 0:
        number = ctypes.get_errno()
        raise KernelRefused(name, f"process {os.getpid()}", number)
