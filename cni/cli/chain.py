"""What a runtime does with a network: its plugins one after the other, each with the result of the one before.

Every plugin is a process of its own, found in CNI_PATH. What the operator types is in run.py.

Source: containernetworking/cni libcni/api.go; https://www.cni.dev/docs/spec/#lifecycle--ordering.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cni.cli.results import Results
from cni.plugins import Plugin
from conf import result
from conf.cached_attachment import CachedAttachment, encoded
from conf.errors import CniError, DecodeFailure, IncompatibleCniVersion, UndoneInPart
from conf.network import Network, device_of
from conf.request import Request, require_environment
from conf.section import Json, lookup

Find = Callable[[str], Plugin]
Owner = tuple[str, str]


@dataclass(frozen=True)
class Sandbox:
    """One attachment as a runtime asks for it; ``device`` is what Multus would have got from a device plugin."""

    container_id: str
    netns: str
    ifname: str
    args: tuple[tuple[str, str], ...] = ()
    capability_args: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""

    @property
    def key(self) -> Owner:
        """What tells it from every other attachment of its network."""
        return self.container_id, self.ifname


class Chain:
    """The plugins of one network; ``find`` returns a plugin by its type, ``environ`` is passed on to all of them."""

    def __init__(
        self, network: Network, *, find: Find, results: Results, environ: Mapping[str, str], path: Sequence[str]
    ) -> None:
        self._network = network
        self._find = find
        self._results = results
        self._environ = environ
        self._path = tuple(path)

    def __len__(self) -> int:
        return len(self._network.plugins)

    def is_added(self, sandbox: Sandbox) -> bool:
        """Tell whether an earlier ADD of this attachment is cached, with no DEL since."""
        return self._still_cached(sandbox) is not None

    def add(self, sandbox: Sandbox) -> Json:
        """Call ADD in the order of the list, cache the last result and return it.

        What earlier plugins made stays when a later one fails, as with libcni: a DEL is the caller's.
        Raises: what the failing plugin says.
        """
        network, prev_result = self._with_device(sandbox.device), None
        for plugin in network.plugins:
            request = self._request("ADD", network, plugin, sandbox, prev_result)
            made = self._plugin(plugin).add(request)
            prev_result = made.to_json(network.cni_version)
        self._results.write(
            CachedAttachment(
                containerId=sandbox.container_id,
                config=encoded(network.document),
                ifName=sandbox.ifname,
                networkName=network.name,
                netns=sandbox.netns,
                cniArgs=[list(pair) for pair in sandbox.args],
                capabilityArgs=dict(sandbox.capability_args),
                result=prev_result or {},
            )
        )
        return prev_result or {}

    def check(self, sandbox: Sandbox) -> bool:
        """Call CHECK in the order of the list, with the cached result; False when the network has CHECK disabled.

        Raises: IncompatibleCniVersion, DecodeFailure, what the first failing plugin says.
        """
        if not self._network.speaks("0.4.0"):
            raise IncompatibleCniVersion(
                f"cniVersion {self._network.cni_version} of network {self._network.name} has no CHECK",
                hint="it came with 0.4.0",
            )
        if self._network.disable_check:
            return False
        cached = self._results.load(self._network.name, *sandbox.key)
        network, prev_result = self._as_added(sandbox, cached), self._prev_result(cached)
        for plugin in network.plugins:
            self._plugin(plugin).check(self._request("CHECK", network, plugin, sandbox, prev_result))
        return True

    def delete(self, sandbox: Sandbox) -> None:
        """Call DEL in reverse order with the cached result, then forget the result.

        Raises: what the first failing plugin says; the result is then kept for the next try.
        """
        cached = self._still_cached(sandbox)
        network, prev_result = self._as_added(sandbox, cached), self._final_result(cached)
        for plugin in reversed(network.plugins):
            self._plugin(plugin).delete(self._request("DEL", network, plugin, sandbox, prev_result))
        self._results.delete(network.name, *sandbox.key)

    def gc(self, valid: Iterable[Owner] | None) -> list[Owner]:
        """DEL every cached attachment that is not valid, then call GC; returns what was deleted.

        Without a list every cached attachment is deleted and GC is not told which are valid, as libcni does it.
        Raises: UndoneInPart with everything that failed, when all has been tried.
        """
        if self._network.disable_gc:
            return []
        listed = None if valid is None else sorted(set(valid))
        failures: list[str] = []
        deleted = []
        for cached in self._results.of_network(self._network.name):
            sandbox = _sandbox_of(cached)
            if sandbox.key in (listed or ()):
                continue
            try:
                self.delete(sandbox)
                deleted.append(sandbox.key)
            except CniError as error:
                failures.append(f"DEL of {sandbox.container_id} {sandbox.ifname}: {error}")
        if self._network.speaks("1.1.0"):
            failures += self._gc_plugins(listed)
        if failures:
            raise UndoneInPart(f"GC of network {self._network.name} failed in part", details="; ".join(failures))
        return deleted

    def status(self) -> bool:
        """Call STATUS of every plugin; False when the network's version has none.

        Raises: what the first plugin says that cannot serve an ADD.
        """
        if not self._network.speaks("1.1.0"):
            return False
        for plugin in self._network.plugins:
            self._plugin(plugin).status(self._request("STATUS", self._network, plugin, None))
        return True

    def _gc_plugins(self, valid: Sequence[Owner] | None) -> list[str]:
        extra: Json = {}
        if valid is not None:
            attachments = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in valid]
            # libcni writes both: the second is what drafts of the specification called it.
            extra = {"cni.dev/valid-attachments": attachments, "cni.dev/attachments": attachments}
        failures = []
        for plugin in self._network.plugins:
            try:
                self._plugin(plugin).gc(self._request("GC", self._network, {**plugin, **extra}, None))
            except CniError as error:
                failures.append(str(error))
        return failures

    def _plugin(self, plugin: Json) -> Plugin:
        return self._find(lookup(plugin, "type"))

    def _with_device(self, device: str) -> Network:
        return self._network.with_device(device) if device else self._network

    def _as_added(self, sandbox: Sandbox, cached: CachedAttachment | None) -> Network:
        """Return the network with the device it was added with: DEL and CHECK need not name it again."""
        return self._with_device(sandbox.device or (device_of(cached.document()) if cached else ""))

    # A DEL works without a cached result, and one that can't be read must not keep a pod's devices.

    def _still_cached(self, sandbox: Sandbox) -> CachedAttachment | None:
        try:
            return self._results.load(self._network.name, *sandbox.key)
        except DecodeFailure:
            return None

    def _final_result(self, cached: CachedAttachment | None) -> Json | None:
        if not self._network.speaks("0.4.0"):
            return None
        try:
            return self._prev_result(cached)
        except (DecodeFailure, IncompatibleCniVersion):
            return None

    def _prev_result(self, cached: CachedAttachment | None) -> Json | None:
        """Return the cached result in the network's version, which may have changed since the ADD."""
        if cached is None or not cached.result:
            return None
        version = self._network.cni_version
        return result.parse(cached.result, cni_version=version, what="the cached result").to_json(version)

    def _request(
        self, command: str, network: Network, plugin: Json, sandbox: Sandbox | None, prev_result: Json | None = None
    ) -> Request:
        """Return one call: the plugin's keys, and what a runtime adds to them."""
        config = {**plugin, "name": network.name, "cniVersion": network.cni_version}
        if prev_result is not None:
            config["prevResult"] = prev_result
        capabilities = lookup(plugin, "capabilities") or {}
        given = sandbox.capability_args if sandbox else {}
        supported = {key: given[key] for key, declared in capabilities.items() if declared is True and key in given}
        if supported:
            config["runtimeConfig"] = supported
        environ = {**self._environ, **_environment(command, sandbox), "CNI_PATH": ":".join(self._path)}
        require_environment(command, environ)
        return Request(
            command=command,
            container_id=environ["CNI_CONTAINERID"],
            netns=environ["CNI_NETNS"],
            ifname=environ["CNI_IFNAME"],
            args=dict(sandbox.args) if sandbox else {},
            path=self._path,
            environ=environ,
            stdin=json.dumps(config).encode(),
            config=config,
            cni_version=network.cni_version,
            network=network.name,
        )


def _environment(command: str, sandbox: Sandbox | None) -> dict[str, str]:
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": sandbox.container_id if sandbox else "",
        "CNI_NETNS": sandbox.netns if sandbox else "",
        "CNI_IFNAME": sandbox.ifname if sandbox else "",
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in sandbox.args) if sandbox else "",
    }


def _sandbox_of(cached: CachedAttachment) -> Sandbox:
    return Sandbox(
        container_id=cached.container_id,
        netns=cached.netns,
        ifname=cached.ifname,
        args=tuple((pair[0], pair[1]) for pair in cached.cni_args if len(pair) == 2),
        capability_args=cached.capability_args,
    )
