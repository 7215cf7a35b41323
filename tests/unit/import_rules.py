"""The rules of imports and seams, each a pure function from a module's source to the complaints about it.

Which files they are held against, and that each of them can fail, is in test_imports. Source: docs of the rooms,
style habits 10 and 16.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

# Room -> the rooms and modules of ours that it may import; a module's room is the longest name that fits.
ROOMS: dict[str, tuple[str, ...]] = {
    "conf": ("conf",),
    "ipam": ("ipam", "conf"),
    "cni.linux": ("cni.linux", "conf.errors"),
    "cni": ("cni", "ipam", "conf"),
    "zipapp": ("zipapp", "cni", "ipam", "conf"),
}
OURS = ("conf", "ipam", "cni", "zipapp", "tests", "bench")

# Library -> the only rooms or modules that import it.
PLACES: dict[str, tuple[str, ...]] = {
    "click": ("cni.cli",),
    "ctypes": ("cni.linux",),
    "http": ("ipam.stores",),
    "lightkube": ("ipam.stores",),
    "netaddr": ("conf", "ipam"),
    "prometheus_client": ("cni.agent.metrics",),
    "pydantic": ("conf",),
    "pyroute2": ("cni.linux",),
    "pytest": ("tests",),
    "rich": ("cni.cli",),
    "sqlite3": ("ipam.stores.local", "ipam.stores.local_taken", "ipam.stores.database"),
    "yaml": ("ipam.stores.kubeconfig", "tests"),
}
KERNEL_ROOM = "cni.linux"
KERNEL_NAMES = ("AF_NETLINK", "NETLINK_ROUTE", "NETLINK_RDMA", "NETLINK_GENERIC")
# Module -> a path it may name: the syntax of a key that the user writes, which nothing there opens; and in the
# archive's start, where no room is loaded yet, the netns this process is in.
SPOKEN_PATHS = {"conf.host_device": ("/sys/devices/",), "cni.start.offer": ("/proc/self/ns/net",)}
KERNEL_PATH = re.compile(r"/(sys|proc)(/|$)")


@dataclass(frozen=True)
class Module:
    """One module of ours; ``name`` is dotted, ``doors`` are the modules that may load others by name."""

    name: str
    tree: ast.Module
    doors: tuple[str, ...] = ()

    def is_in(self, *places: str) -> bool:
        return _is_in(self.name, places)


def module(path: str, source: str, doors: tuple[str, ...] = ()) -> Module:
    name = ".".join(PurePosixPath(path).with_suffix("").parts)
    return Module(name.removesuffix(".__init__"), ast.parse(source, path), doors)


def _is_in(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _imports(node: ast.AST, importer: str) -> tuple[str, ...]:
    """Return the dotted names that an import statement loads, relative ones made absolute."""
    if isinstance(node, ast.Import):
        return tuple(alias.name for alias in node.names)
    if not isinstance(node, ast.ImportFrom):
        return ()
    origin = node.module or ""
    if node.level:
        origin = ".".join(filter(None, (*importer.split(".")[: -node.level], origin)))
    # "from conf import errors" loads a module where "from conf.errors import CniError" names one.
    return tuple(f"{origin}.{alias.name}" for alias in node.names)


def direction(module: Module) -> Iterator[str]:
    """A room imports only from the rooms below it."""
    room = max((room for room in ROOMS if module.is_in(room)), key=len, default="")
    allowed = ROOMS.get(room, OURS)
    for node in ast.walk(module.tree):
        for name in _imports(node, module.name):
            if _is_in(name, OURS) and not _is_in(name, allowed):
                yield f"line {node.lineno}: {room} imports {name}"  # type: ignore[attr-defined]


def library_places(module: Module) -> Iterator[str]:
    """A library is imported only where it belongs."""
    for node in ast.walk(module.tree):
        for name in _imports(node, module.name):
            library = name.split(".")[0]
            if library in PLACES and not module.is_in(*PLACES[library]):
                yield f"line {node.lineno}: {library} belongs to {', '.join(PLACES[library])}"  # type: ignore[attr-defined]


def imports_at_the_top(module: Module) -> Iterator[str]:
    """No import stands inside a function, and only the doors load a module by its name."""
    for function in ast.walk(module.tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        for node in ast.walk(function):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                yield f"line {node.lineno}: an import inside {function.name}()"
    if module.name in module.doors:
        return
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and _last_name(node) in ("import_module", "__import__"):
            yield f"line {node.lineno}: loads a module by name, and is no door"


def kernel_seam(module: Module) -> Iterator[str]:
    """Only cni/linux opens netlink sockets and names what lies under /sys and /proc."""
    if module.is_in(KERNEL_ROOM):
        return
    docstrings = set(_docstrings(module.tree))
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and _last_name(node) in KERNEL_NAMES:
            yield f"line {node.lineno}: {_last_name(node)} belongs to {KERNEL_ROOM}"
        if not isinstance(node, ast.Constant) or node in docstrings:
            continue
        text = node.value.decode(errors="replace") if isinstance(node.value, bytes) else node.value
        if isinstance(text, str) and KERNEL_PATH.match(text) and text not in SPOKEN_PATHS.get(module.name, ()):
            yield f"line {node.lineno}: names {text}, which belongs to {KERNEL_ROOM}"


def empty_packages(module: Module) -> Iterator[str]:
    """A package's __init__ holds a docstring and nothing else; called for those only."""
    body = module.tree.body
    if len(body) != 1 or ast.get_docstring(module.tree) is None:
        yield "a package's __init__ holds a docstring and nothing else"


def _last_name(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


def _docstrings(tree: ast.Module) -> Iterator[ast.expr]:
    """Yield the strings that stand alone as statements: docstrings, and those below a constant."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            yield node.value


RULES: tuple[Callable[[Module], Iterator[str]], ...] = (
    direction,
    library_places,
    imports_at_the_top,
    kernel_seam,
)
