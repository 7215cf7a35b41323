"""The errors vferry answers with, one class per CNI code; nothing here prints, logs or exits.

    CniError                        999  internal: a cause we did not foresee
    ├── IncompatibleCniVersion        1
    ├── UnsupportedField              2
    ├── UnknownContainer              3
    ├── InvalidEnvironment            4
    ├── IoFailure                     5
    │   └── DamagedRecord             5  what we wrote about an attachment is not what is there
    ├── DecodeFailure                 6
    ├── InvalidNetworkConfig          7
    ├── InvalidNetns                  8
    │   └── NetnsGone                 8  the path is absent, or is no netns any more
    ├── TryAgainLater                11
    ├── PluginNotAvailable           50  STATUS only
    ├── PluginDegraded               51  STATUS only
    ├── DeviceNotFound              100
    ├── IfnameTaken                 101
    ├── KernelRefused               102  carries errno, operation and object
    ├── CheckFailed                 103
    ├── AddressesExhausted          104
    ├── DelegateFailed              105  a foreign plugin failed without saying how
    ├── StoreUnavailable            106
    ├── RuntimeUnusable             107  the interpreter cannot load our libraries
    └── UndoneInPart                108  a DEL or GC that could not put everything back

Codes 0-99 are the spec's, 8 and 999 the Go library's; those from 100 are ours and are explained in docs/errors.md.

Source: https://www.cni.dev/docs/spec/#error, containernetworking/cni pkg/types/types.go.
"""

from __future__ import annotations

import errno as errno_names
import os

# Two names of one number: the kernel's own is the one its documentation and iproute2 know.
_ERRNO_NAMES = {**errno_names.errorcode, errno_names.EOPNOTSUPP: "EOPNOTSUPP"}


class CniError(Exception):
    """One failure as a CNI runtime is told of it.

    ``msg`` says what failed and names the object, ``details`` the cause, ``hint`` what the operator can do.
    No text here may hold stdin, the environment or a secret.
    """

    code = 999

    def __init__(self, msg: str, *, details: str = "", hint: str = "") -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details
        self.hint = hint

    def __str__(self) -> str:
        return "; ".join(part for part in (self.msg, self.details, self.hint) if part)

    def to_json(self, cni_version: str) -> dict[str, object]:
        """Return the spec's error object; the hint goes with the details, the spec has no key of its own."""
        details = "; ".join(part for part in (self.details, self.hint) if part)
        return {"cniVersion": cni_version, "code": self.code, "msg": self.msg, "details": details}


class IncompatibleCniVersion(CniError):
    code = 1


class UnsupportedField(CniError):
    code = 2


class UnknownContainer(CniError):
    code = 3


class InvalidEnvironment(CniError):
    code = 4


class IoFailure(CniError):
    code = 5


class DamagedRecord(IoFailure):
    """A record of ours is no JSON any more: a damaged disk, or somebody's editor."""


class DecodeFailure(CniError):
    code = 6


class InvalidNetworkConfig(CniError):
    code = 7


class InvalidNetns(CniError):
    code = 8


class NetnsGone(InvalidNetns):
    """The netns path does not exist, or is no network namespace any more: its links went back to the host."""


class TryAgainLater(CniError):
    code = 11


class PluginNotAvailable(CniError):
    code = 50


class PluginDegraded(CniError):
    code = 51


class DeviceNotFound(CniError):
    code = 100


class IfnameTaken(CniError):
    code = 101


class KernelRefused(CniError):
    """The kernel refused an operation; callers branch on ``errno``, never on text."""

    code = 102

    def __init__(
        self,
        operation: str,
        target: str,
        errno: int,
        *,
        ext_ack: str = "",
        details: str = "",
        hint: str = "",
    ) -> None:
        name = _ERRNO_NAMES.get(errno, str(errno))
        cause = f"{name} ({os.strerror(errno)})" + (f": {ext_ack}" if ext_ack else "")
        super().__init__(
            f"{operation} failed on {target}",
            details="; ".join(part for part in (cause, details) if part),
            hint=hint,
        )
        self.operation = operation
        self.target = target
        self.errno = errno
        self.ext_ack = ext_ack


class CheckFailed(CniError):
    code = 103


class AddressesExhausted(CniError):
    code = 104


class DelegateFailed(CniError):
    """A delegated plugin failed; ``code`` is the delegate's own where it gave one."""

    code = 105

    def __init__(self, msg: str, *, details: str = "", hint: str = "", code: int = 105) -> None:
        super().__init__(msg, details=details, hint=hint)
        self.code = code


class StoreUnavailable(CniError):
    code = 106


class RuntimeUnusable(CniError):
    code = 107


class UndoneInPart(CniError):
    code = 108
