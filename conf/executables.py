"""The names vferry answers to and the spec versions all of them speak; what stands behind a name is loaded elsewhere.

The builder writes names and versions into the archive's start; a plugin is a string "module:class" that ``cni.plugins``
resolves.

Source: https://www.cni.dev/docs/spec/#version.
"""

from __future__ import annotations

# Executable -> the class that is the plugin. One line here makes one file in the CNI directory.
EXECUTABLES: dict[str, str] = {
    "host-local": "ipam.host_local:HostLocal",
    "sriov": "cni.sriov:Sriov",
    "host-device": "cni.host_device:HostDevice",
    "rdma": "cni.rdma:Rdma",
    "static": "ipam.static:Static",
    "whereabouts": "ipam.whereabouts:Whereabouts",
}

# Of all of it, as in pyproject.toml; two builds of one version are told apart by their build id.
VERSION = "0.1.0"

# The operator's command: the same archive, but it speaks to people.
COMMAND = "vferry"

SUPPORTED_VERSIONS: tuple[str, ...] = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

# Called with the name and returning the exit status: the protocol skeleton, and the operator's command.
PLUGIN_ENTRY = "cni.skel:main"
COMMAND_ENTRY = "cni.cli.command:main"
