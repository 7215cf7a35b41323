"""A network as the administrator wrote it: a ``.conflist``, or one plugin's ``.conf``, found by its name.

Running its plugins is not done here. Unlike libcni, which stops at the first file it cannot read, a broken file hides
no other network; it is named when the one asked for is not found.

Source: containernetworking/cni libcni/conf.go; https://www.cni.dev/docs/spec/#section-1-network-configuration-format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from conf.errors import CniError, InvalidNetworkConfig
from conf.executables import SUPPORTED_VERSIONS
from conf.section import Json, Section, decode, lookup, read

DEFAULT_DIRECTORY = Path("/etc/cni/net.d")
_LISTS = (".conflist",)
_SINGLES = (".conf", ".json")


def _from_text(value: Any) -> Any:
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def _version(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) if part.isdigit() else -1 for part in text.split("."))
    if len(numbers) != 3 or min(numbers) < 0:
        raise ValueError(f'"{text}" is not a version such as {SUPPORTED_VERSIONS[-1]}')
    return numbers


class NetworkList(Section):
    """The keys of a network that are the runtime's; those of its plugins are theirs."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$")] = Field(
        description="a letter or digit, then letters, digits, '_', '.' and '-'"
    )
    cni_version: str = Field(default="0.1.0", alias="cniVersion", description="version of the CNI specification")
    cni_versions: list[str] = Field(
        default=[], alias="cniVersions", description="versions to choose from, the highest one known here wins"
    )
    disable_check: Annotated[bool, BeforeValidator(_from_text)] = Field(
        default=False, alias="disableCheck", description="never call CHECK"
    )
    disable_gc: Annotated[bool, BeforeValidator(_from_text)] = Field(
        default=False, alias="disableGC", description="never call GC"
    )
    load_only_inlined_plugins: Annotated[bool, BeforeValidator(_from_text)] = Field(
        default=False,
        alias="loadOnlyInlinedPlugins",
        description="leave the plugins alone that lie in the directory named for the network",
    )
    plugins: list[dict[str, Any]] | None = Field(default=None, description="the plugins, in the order of an ADD")

    @field_validator("cni_versions")
    @classmethod
    def _are_versions(cls, texts: list[str]) -> list[str]:
        for text in texts:
            _version(text)
        return texts

    @property
    def version(self) -> str:
        """The version to speak: ``cniVersion``, or the highest of ``cniVersions`` that is not newer than we are."""
        newest = _version(SUPPORTED_VERSIONS[-1])
        offered = [text for text in (*self.cni_versions, self.cni_version) if _version(text) <= newest]
        return max(offered, key=_version) if self.cni_versions and offered else self.cni_version


@dataclass(frozen=True)
class Network:
    """One network: its plugins with every key they were given, and ``document``, the list as a runtime caches it."""

    name: str
    cni_version: str
    plugins: tuple[Json, ...]
    document: bytes
    disable_check: bool = False
    disable_gc: bool = False

    def speaks(self, version: str) -> bool:
        """Tell whether the network's version is this one or later."""
        return _version(self.cni_version) >= _version(version)

    def with_device(self, device: str) -> Network:
        """Return the network with ``deviceID`` and ``pciBusID`` in every plugin, as Multus hands over a device.

        Source: multus-cni pkg/types/conf.go delegateAddDeviceID.
        """
        plugins = tuple({**plugin, "deviceID": device, "pciBusID": device} for plugin in self.plugins)
        listed = {**decode(self.document, "the network"), "plugins": plugins}
        return replace(self, plugins=plugins, document=json.dumps(listed).encode())


def device_of(document: bytes) -> str:
    """Return the device that ``with_device`` wrote into a cached network, "" when there is none."""
    try:
        plugins = lookup(decode(document, "the cached network"), "plugins", [])
    except CniError:
        return ""
    first = plugins[0] if isinstance(plugins, list) and plugins and isinstance(plugins[0], dict) else {}
    device = first.get("deviceID")
    return device if isinstance(device, str) and device == first.get("pciBusID") else ""


def read_network(path: Path) -> Network:
    """Read one file: a list of plugins, or a single plugin that becomes a list of one.

    Raises: InvalidNetworkConfig, DecodeFailure.
    """
    document = decode(_content(path), str(path))
    if path.suffix not in _LISTS and lookup(document, "plugins") is None:
        document = _as_list(document, str(path))
    listed = read(NetworkList, document, where=str(path))
    plugins = _plugins(listed, path)
    for plugin in plugins:
        _require_type(plugin, str(path))
    return Network(
        name=listed.name,
        cni_version=listed.version,
        plugins=plugins,
        document=json.dumps(document).encode(),
        disable_check=listed.disable_check,
        disable_gc=listed.disable_gc,
    )


def find_network(directory: Path, name: str) -> Network:
    """Return the network of that name: lists before single plugins, each in the order of their file names.

    Raises: InvalidNetworkConfig naming the networks that there are, and the files that cannot be read.
    """
    found: list[str] = []
    broken: list[str] = []
    for path in (*_files(directory, _LISTS), *_files(directory, _SINGLES)):
        try:
            network = read_network(path)
        except CniError as error:
            broken.append(str(error))
            continue
        if network.name == name:
            return network
        found.append(network.name)
    there = f"it has {', '.join(sorted(found))}" if found else "it has no network"
    raise InvalidNetworkConfig(
        f'there is no network "{name}" in {directory}',
        details="; ".join([there, *broken]),
        hint='NETCONFPATH names another directory; a network is found by its "name", not by its file\'s',
    )


def _plugins(listed: NetworkList, path: Path) -> tuple[Json, ...]:
    if listed.load_only_inlined_plugins and listed.plugins is None:
        raise InvalidNetworkConfig(f'{path}: "loadOnlyInlinedPlugins": true needs "plugins"')
    plugins = list(listed.plugins or ())
    if path.suffix in _LISTS and not listed.load_only_inlined_plugins:
        plugins += [decode(_content(file), str(file)) for file in _files(path.parent / listed.name, (".conf",))]
    if not plugins:
        raise InvalidNetworkConfig(f'{path}: the network "{listed.name}" has no plugins', hint='add a "plugins" list')
    return tuple(plugins)


def _as_list(plugin: Json, where: str) -> Json:
    _require_type(plugin, where)
    keys = {key: lookup(plugin, key) for key in ("name", "cniVersion")}
    return {**{key: value for key, value in keys.items() if value is not None}, "plugins": [plugin]}


def _require_type(plugin: Json, where: str) -> None:
    kind = lookup(plugin, "type")
    if not isinstance(kind, str) or not kind:
        raise InvalidNetworkConfig(f'{where}: a plugin has no "type"', hint='"type" is the file name of the plugin')


def _files(directory: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    try:
        listed = sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InvalidNetworkConfig(f"cannot list {directory}", details=str(error)) from error
    yield from (path for path in listed if path.suffix in suffixes and not path.is_dir())


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidNetworkConfig(f"cannot read {path}", details=error.strerror or "") from error
