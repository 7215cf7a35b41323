"""What the host makes of a guest's reports, with a program in the place of the machine."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.vm.lab.boot import Console
from tests.vm.lab.machine import Machine
from tests.vm.module_run import GuestGone, ModuleRun
from tests.vm.on_host import LabTests
from tests.vm.preparation import Preparation

pytestmark = pytest.mark.outside("runs a program in the place of a machine")

# Reports in pieces, as a reader can meet them, then the end the test asks for.
GUEST = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[1])
def report(nodeid, when, outcome="passed"):
    line = json.dumps({"nodeid": nodeid, "when": when, "outcome": outcome}) + "\\n"
    with open(out / "reports", "a") as reports:
        reports.write(line[:10]); reports.flush(); time.sleep(0.2); reports.write(line[10:])
print("the console")
for when in ("setup", "call", "teardown"):
    report("a", when)
report("b", "setup")
"""


class Run(ModuleRun):
    """A module's run on a program instead of a machine, in the test's own directory."""

    def __init__(self, tmp_path: Path, ending: str) -> None:
        program = tmp_path / "guest.py"
        program.write_text(GUEST + ending)
        # The run makes its directory itself, and the program has to be told of it.
        start = f"import glob, sys; sys.argv.append(glob.glob('{tmp_path}/runs/*')[0]); exec(open('{program}').read())"
        command = [sys.executable, "-c", start]
        super().__init__(Machine(), Path("test_it.py"), ["a", "b"], [], command=command, runs=tmp_path / "runs")


def test_reports_come_while_the_guest_still_runs(tmp_path):
    run = Run(tmp_path, "time.sleep(600)")
    assert [report["when"] for report in run.wait_for("a")] == ["setup", "call", "teardown"]
    run.stop()
    assert list((tmp_path / "runs").iterdir()) == []


def test_test_that_the_guest_died_in_fails_with_its_console(tmp_path):
    run = Run(tmp_path, "sys.exit(124)")
    assert run.wait_for("a")
    with pytest.raises(GuestGone, match=r"status 124 in the middle of this test(.|\n)*the console"):
        run.wait_for("b")
    with pytest.raises(GuestGone, match="before this test"):
        run.wait_for("c")
    run.stop()
    assert (run.out / "console").exists()


def test_console_of_a_failed_test_is_kept(tmp_path):
    run = Run(tmp_path, 'report("b", "call", "failed")\nreport("b", "teardown")')
    assert run.wait_for("b")[1]["outcome"] == "failed"
    run.stop()
    assert (run.out / "console").exists()


def prepared(tmp_path: Path, *scripts: str) -> Preparation:
    commands = [("sh", "-c", script) for script in scripts]
    preparation = Preparation(commands, console=tmp_path / "console")
    preparation.wait()
    return preparation


def test_preparation_runs_one_command_after_the_other(tmp_path):
    preparation = prepared(tmp_path, f"sleep 0.3; echo 1 >>{tmp_path}/order", f"echo 2 >>{tmp_path}/order")
    assert (tmp_path / "order").read_text() == "1\n2\n"
    assert (preparation.hindrance, preparation.tell_fault()) == ("", "")


def test_lab_that_cannot_be_had_is_a_hindrance_and_no_fault(tmp_path):
    preparation = prepared(tmp_path, "echo noise; echo 'vmlab: missing qemu' >&2; exit 3", f"touch {tmp_path}/second")
    assert (preparation.hindrance, preparation.tell_fault()) == ("missing qemu", "")
    assert not (tmp_path / "second").exists()


def test_preparation_that_fails_is_told_once_with_its_last_lines(tmp_path):
    preparation = prepared(tmp_path, "true", "echo why; exit 1", f"touch {tmp_path}/third")
    assert not (tmp_path / "third").exists()
    assert "status 1" in (story := preparation.tell_fault())
    assert story.endswith("\nwhy")
    assert preparation.tell_fault() == story.removesuffix("\nwhy")
    assert preparation.hindrance == ""


@pytest.mark.parametrize(("script", "booted"), [("exit 0", ["first"]), ("echo why; exit 3", []), ("exit 1", [])])
def test_machine_is_booted_only_when_all_is_ready(tmp_path, monkeypatch, script, booted):
    boots = []
    monkeypatch.setattr("tests.vm.on_host.Preparation", lambda _commands: prepared(tmp_path, script))
    monkeypatch.setattr("tests.vm.on_host.UNAVAILABLE", tmp_path / "unavailable")
    monkeypatch.setattr(LabTests, "_boot", lambda _self, items: boots.append(items[0].path))
    lab_tests = LabTests(SimpleNamespace(pluginmanager=SimpleNamespace(get_plugin=lambda _name: None)))
    lab_tests.begin([SimpleNamespace(path="first"), SimpleNamespace(path="first")])
    lab_tests.advance()
    assert boots == booted


class Sink:
    """A stream that keeps what it is given."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, text: bytes) -> None:
        self.written += text

    def flush(self) -> None:
        pass


def test_console_passes_on_what_lies_between_the_marks():
    sink = Sink()
    console = Console(sink, verbose=False)
    for piece in (
        b"kernel says\r\nVMLAB-BOO",
        b"TED 5.1\r\none\r\ntw",
        b"o\r\n\r\nVMLAB-STATUS 7\r\n[ 9.9] Power Off\r\n",
    ):
        console.feed(piece)
    assert sink.written == b"one\ntwo\n"
    assert console.status == 7
    assert console.booted_s is not None


def test_console_that_ends_early_has_no_status():
    console = Console(Sink(), verbose=True)
    console.feed(b"VMLAB-STATUSES 3\r\nKernel panic\r\n")
    assert console.status is None
    assert "Kernel panic" in console.last_lines()
