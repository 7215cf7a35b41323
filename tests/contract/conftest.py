"""The built executables: one CNI directory for all contract tests, made again when a source has changed."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.executables import COMMAND
from tests.contract.agent import Agent, Installed
from tests.contract.archive import restamped
from tests.contract.host import Host, scratch_host

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "build" / "contract"


@pytest.fixture(scope="session")
def archives() -> Path:
    """Return a directory with every executable, installed as on a node, its runtime already unpacked."""
    subprocess.run(
        [
            ROOT / "scripts" / "install-binaries.sh",
            *("--dest", PLACE / "bin"),
            *("--runtime-dir", PLACE / "runtime"),
        ],
        check=True,
    )
    return PLACE / "bin"


@pytest.fixture
def lone(archives: Path, tmp_path: Path) -> Path:
    """An executable by itself, its runtime not yet unpacked: ``lone.parent.parent / "runtime"``."""
    return restamped(archives / "sriov", tmp_path / "bin" / "sriov", runtime_dir=str(tmp_path / "runtime"))


@pytest.fixture
def runtime(lone: Path) -> Path:
    """Where ``lone`` unpacks its libraries to."""
    return lone.parent.parent / "runtime"


@pytest.fixture
def installed(archives: Path) -> Iterator[Installed]:
    """Every executable, with the place of an agent of the test's own."""
    if os.geteuid() != 0:
        pytest.skip("only root's agent is spoken to")
    # Not tmp_path: the path of a socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="vfagent-") as folder:
        installed = Installed(archives / COMMAND, Path(folder))
        yield installed
        installed.stop()


@pytest.fixture
def agent(installed: Installed) -> Agent:
    """A running agent of ``installed``."""
    return installed.agent()


@pytest.fixture
def host(installed: Installed) -> Iterator[Host]:
    """A scratch namespace as the host of ``installed``."""
    with scratch_host(installed) as made:
        yield made


@pytest.fixture
def warm(host: Host) -> Agent:
    """The running agent of ``host``."""
    return host.installed.agent()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--agent-cycles", default="270", help="ADD/DEL cycles through one agent (10000 for a release)")
    parser.addoption("--agent-link-cycles", default="27", help="the same with a link each (10000 for a release)")
    parser.addoption("--agent-storm", default="16x4", help="PODSxROUNDS of ADDs under kill -9 (100x20 for a release)")
