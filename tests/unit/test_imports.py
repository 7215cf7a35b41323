"""The house keeps its order: imports go one way, libraries and the kernel stay in their rooms.

The rules themselves are in import_rules; the second half shows that each of them can fail.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import import_rules as rules

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("conf", "ipam", "cni", "zipapp")
# The modules that may load another by its name. Three doors are tables from a name to "module:object": plugins, stores,
# commands. The others stand before the first import: a start that may have to refuse, and a package kept from loading
# itself whole.
DOORS = (
    "cni.cli.command",
    "cni.linux.pyroute2_messages",
    "cni.plugins",
    "cni.shim",
    "cni.start.runtime",
    "ipam.stores.door",
)

SOURCES = sorted(
    path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.is_file()
)


@pytest.mark.parametrize("path", SOURCES)
def test_module_keeps_the_rules(path):
    module = rules.module(path, (ROOT / path).read_text(), DOORS)
    kept = (*rules.RULES, rules.empty_packages) if path.endswith("__init__.py") else rules.RULES
    assert [f"{path} {complaint}" for rule in kept for complaint in rule(module)] == []


def test_rooms_are_there():
    assert {path.split("/")[0] for path in SOURCES} == set(ROOMS)


def test_doors_are_there():
    assert {f"{door.replace('.', '/')}.py" for door in DOORS} <= set(SOURCES)


BROKEN = [
    (rules.direction, "conf/a.py", "from ipam.ranges import Range"),
    (rules.direction, "conf/a.py", "import cni.skel"),
    (rules.direction, "ipam/a.py", "from cni import skel"),
    (rules.direction, "cni/linux/a.py", "from conf.request import Request"),
    (rules.direction, "cni/linux/a.py", "from conf import request"),
    (rules.direction, "cni/linux/a.py", "from cni.attach import move_in"),
    (rules.direction, "cni/linux/a.py", "from ..attach import move_in"),
    (rules.direction, "cni/a.py", "import zipapp.shim"),
    (rules.direction, "cni/a.py", "from tests.unit import fakes"),
    (rules.library_places, "cni/a.py", "import pydantic"),
    (rules.library_places, "cni/a.py", "from netaddr import IPNetwork"),
    (rules.library_places, "ipam/a.py", "import pyroute2.netlink"),
    (rules.library_places, "cni/a.py", "import ctypes"),
    (rules.library_places, "cni/a.py", "import click"),
    (rules.library_places, "cni/linux/a.py", "from rich.table import Table"),
    (rules.library_places, "ipam/stores/etcd.py", "import sqlite3"),
    (rules.imports_at_the_top, "cni/a.py", "def f():\n    import json"),
    (rules.imports_at_the_top, "cni/a.py", "class A:\n    async def f(self):\n        from json import loads"),
    (rules.imports_at_the_top, "cni/a.py", "import importlib\nimportlib.import_module('json')"),
    (rules.imports_at_the_top, "cni/a.py", "f = __import__"),
    (rules.kernel_seam, "cni/a.py", "import socket\nsocket.socket(socket.AF_NETLINK)"),
    (rules.kernel_seam, "cni/a.py", "NET = '/sys/class/net'"),
    (rules.kernel_seam, "cni/a.py", "def f(pid):\n    return f'/proc/{pid}/ns/net'"),
    (rules.kernel_seam, "ipam/a.py", "PROC = b'/proc'"),
    (rules.kernel_seam, "conf/host_device.py", "ROOT = '/sys/class/net/'"),
    (rules.kernel_seam, "conf/a.py", "ROOT = '/sys/devices/'"),
    (rules.empty_packages, "cni/__init__.py", '"""A room."""\nimport json'),
    (rules.empty_packages, "cni/__init__.py", ""),
]

SOUND = [
    ("conf/a.py", "from conf.errors import CniError\nimport pydantic\nimport netaddr"),
    ("ipam/stores/local.py", "import sqlite3\nfrom conf import errors"),
    ("cni/linux/a.py", "from conf.errors import CniError\nfrom . import netns\nimport ctypes\nNET = '/sys/class/net'"),
    ("cni/a.py", 'def f():\n    """/sys is read in cni/linux."""\n    return "/system"'),
    ("cni/plugins.py", "import importlib\ndef load(name):\n    return importlib.import_module(name)"),
    ("cni/cli/a.py", "import click, rich\nfrom cni.linux import netns"),
    ("conf/host_device.py", "ROOT = '/sys/devices/'"),
    ("zipapp/a.py", "from cni.skel import main"),
]


@pytest.mark.parametrize(("rule", "path", "source"), BROKEN)
def test_rule_sees_what_breaks_it(rule, path, source):
    assert list(rule(rules.module(path, source, DOORS)))


@pytest.mark.parametrize(("path", "source"), SOUND)
def test_rules_let_pass_what_is_sound(path, source):
    assert [complaint for rule in rules.RULES for complaint in rule(rules.module(path, source, DOORS))] == []
