"""One invocation of a plugin: its environment and its stdin, checked; nothing here opens or changes anything.

Source: https://www.cni.dev/docs/spec/#parameters, containernetworking/cni pkg/skel/skel.go getCmdArgsFromEnv.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from conf import cni_args, result
from conf.errors import IncompatibleCniVersion, InvalidEnvironment, InvalidNetworkConfig
from conf.executables import SUPPORTED_VERSIONS
from conf.section import Json, decode, lookup, shown

_IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*\Z")
_IFNAME_BYTES = 15  # IFNAMSIZ of linux/if.h, less the terminating NUL


def _require_container_id(value: str) -> None:
    if not _IDENTIFIER.match(value):
        raise InvalidEnvironment(
            f'CNI_CONTAINERID="{value}" is not valid',
            hint="it begins with a letter or digit and holds letters, digits, '_', '.' and '-' only",
        )


def _require_ifname(value: str) -> None:
    size = len(value.encode(errors="surrogateescape"))
    if size > _IFNAME_BYTES:
        raise InvalidEnvironment(
            f'CNI_IFNAME="{value}" is not valid', details=f"{size} bytes", hint="an interface name has 1 to 15 bytes"
        )
    # The kernel takes '%' for a template and makes net0 of net%d; a lone surrogate is a byte that is no UTF-8.
    if value in (".", "..") or re.search(r"[/:%\s\x00\ud800-\udfff]", value):
        raise InvalidEnvironment(
            f'CNI_IFNAME="{value}" is not valid', hint="no '/', ':', '%' or white space, and neither '.' nor '..'"
        )


def _accept(_value: str) -> None:
    pass


# variable, commands that require it, validator; the order is that of the error message
ENVIRONMENT: tuple[tuple[str, frozenset[str], Callable[[str], None]], ...] = (
    ("CNI_CONTAINERID", frozenset({"ADD", "CHECK", "DEL"}), _require_container_id),
    ("CNI_NETNS", frozenset({"ADD", "CHECK"}), _accept),
    ("CNI_IFNAME", frozenset({"ADD", "CHECK", "DEL"}), _require_ifname),
)
COMMANDS = ("ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION")
_FIRST_VERSION = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


@dataclass(frozen=True)
class Request:
    """One invocation, checked. ``stdin`` is kept byte for byte, for delegates and for plugins of other people.

    ``recorded_ipam``: the keys of ``ipam`` that say where the attachment's ADD leased, for an IPAM plugin of ours.
    """

    command: str
    container_id: str
    netns: str
    ifname: str
    args: Mapping[str, str]
    path: tuple[str, ...]
    environ: Mapping[str, str]
    stdin: bytes
    config: Json
    cni_version: str
    network: str
    recorded_ipam: Json = field(default_factory=dict)

    def of_attachment(self, container_id: str, ifname: str, recorded_ipam: Json) -> Request:
        """Return the DEL of one attachment, as a GC needs it; the netns is gone."""
        environ = {"CNI_CONTAINERID": container_id, "CNI_IFNAME": ifname, "CNI_NETNS": ""}
        return replace(
            self.as_command("DEL"),
            container_id=container_id,
            ifname=ifname,
            netns="",
            environ={**self.environ, **environ, "CNI_COMMAND": "DEL"},
            recorded_ipam=recorded_ipam,
        )

    def as_command(self, command: str) -> Request:
        """Return the same invocation with another command, as a rollback needs it."""
        return replace(self, command=command, environ={**self.environ, "CNI_COMMAND": command})

    def prev_result(self) -> result.Result | None:
        """Return prevResult, None when there is none.

        Raises: DecodeFailure when it is malformed.
        """
        document = lookup(self.config, "prevResult")
        if document is None:
            return None
        if not isinstance(document, dict):
            raise InvalidNetworkConfig(f"{shown('prevResult', document)} is not an object")
        return result.parse(document, cni_version=self.cni_version, what="prevResult")

    def valid_attachments(self) -> frozenset[tuple[str, str]] | None:
        """Return the (container ID, ifname) pairs that GC must keep; None when the runtime did not say.

        Raises: InvalidNetworkConfig when the list is malformed, so that nothing is deleted by mistake.
        """
        listed = lookup(self.config, "cni.dev/valid-attachments", lookup(self.config, "cni.dev/attachments"))
        if listed is None:
            return None
        try:
            if not isinstance(listed, list):
                raise TypeError
            return frozenset((_text(lookup(item, "containerID")), _text(lookup(item, "ifname"))) for item in listed)
        except (TypeError, AttributeError) as error:
            raise InvalidNetworkConfig(
                '"cni.dev/valid-attachments" is not valid', hint="a list of {containerID, ifname} objects"
            ) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def read_command(environ: Mapping[str, str]) -> str:
    """Return CNI_COMMAND.

    Raises: InvalidEnvironment when it is missing or unknown.
    """
    command = environ.get("CNI_COMMAND", "")
    if not command:
        raise InvalidEnvironment("required env variables [CNI_COMMAND] missing")
    if command not in COMMANDS:
        raise InvalidEnvironment(f"unknown CNI_COMMAND: {command}", hint=f"one of {', '.join(COMMANDS)}")
    return command


def require_environment(command: str, environ: Mapping[str, str]) -> None:
    """Check the variables a command requires.

    Raises: InvalidEnvironment naming all missing ones at once, or the first that is malformed.
    """
    wanted = [(name, validate) for name, commands, validate in ENVIRONMENT if command in commands]
    missing = [name for name, _ in wanted if not environ.get(name)]
    if missing:
        raise InvalidEnvironment(f"required env variables [{','.join(missing)}] missing")
    for name, validate in wanted:
        validate(environ[name])


def read_version(config: Mapping[str, Any]) -> str:
    """Return the configuration's cniVersion, 0.1.0 when it has none.

    Raises: IncompatibleCniVersion.
    """
    version = lookup(config, "cniVersion", "") or "0.1.0"
    if version not in SUPPORTED_VERSIONS:
        raise IncompatibleCniVersion(
            f"{shown('cniVersion', version)} is not supported", hint=f"use one of {', '.join(SUPPORTED_VERSIONS)}"
        )
    return str(version)


def read_request(environ: Mapping[str, str], stdin: bytes) -> Request:
    """Check environment and stdin of any command but VERSION.

    Raises: InvalidEnvironment, DecodeFailure, IncompatibleCniVersion, InvalidNetworkConfig.
    """
    command = read_command(environ)
    require_environment(command, environ)
    config = decode(stdin, "the network configuration on stdin")
    version = read_version(config)
    first = _FIRST_VERSION.get(command)
    if first and SUPPORTED_VERSIONS.index(version) < SUPPORTED_VERSIONS.index(first):
        raise IncompatibleCniVersion(f"cniVersion {version} has no {command}", hint=f"it came with {first}")
    network = lookup(config, "name")
    if network is None:
        raise InvalidNetworkConfig('the network configuration has no "name"', hint='add a "name" key')
    if not isinstance(network, str) or not _IDENTIFIER.match(network):
        raise InvalidNetworkConfig(
            f"{shown('name', network)} is not valid",
            hint="it begins with a letter or digit and holds letters, digits, '_', '.' and '-' only",
        )
    return Request(
        command=command,
        container_id=environ.get("CNI_CONTAINERID", ""),
        netns=environ.get("CNI_NETNS", ""),
        ifname=environ.get("CNI_IFNAME", ""),
        args=cni_args.parse(environ.get("CNI_ARGS", ""), lenient=command in ("DEL", "GC", "STATUS")),
        path=tuple(filter(None, environ.get("CNI_PATH", "").split(":"))),
        environ=environ,
        stdin=stdin,
        config=config,
        cni_version=version,
        network=network,
    )
