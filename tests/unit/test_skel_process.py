"""The protocol skeleton as a process: its descriptors and its signals. What it answers is in test_skel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_skel import CONF, ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]

PROCESS = """
import sys, os
sys.path.insert(0, {root!r})
from cni import skel
from tests.unit.test_skel import Recorder
{body}
sys.exit(skel.main("sriov", load=lambda name: plugin))
"""


def process(body, stdout=subprocess.PIPE):
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS.format(root=str(ROOT), body=body)],
        env={**ENVIRONMENT, "PATH": os.environ["PATH"], "CNI_NETNS": "/run/netns/no-such-netns"},
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd="/",
    )


@pytest.mark.outside("runs the skeleton as a process")
def test_what_a_library_prints_does_not_reach_stdout():
    child = process(
        "plugin = Recorder()\nimport os\nreally = plugin.add\n"
        "def add(request):\n    os.write(1, b'noise'); os.system('echo noise')\n    return really(request)\n"
        "plugin.add = add"
    )
    out, err = child.communicate(json.dumps(CONF).encode(), timeout=300)
    assert (child.returncode, json.loads(out)["cniVersion"]) == (0, "1.1.0")
    assert err.count(b"noise") == 3


@pytest.mark.outside("runs the skeleton as a process")
def test_document_is_the_only_write_to_descriptor_1_while_that_is_stdout():
    child = process(
        "import os\nplugin, write, stdout = Recorder(), os.write, os.fstat(1).st_ino\n"
        "def spy(descriptor, text):\n"
        "    if os.fstat(descriptor).st_ino == stdout: write(2, b'<%d>' % descriptor)\n"
        "    return write(descriptor, text)\n"
        "os.write = spy\n"
        "import atexit; atexit.register(print, 'late')"
    )
    out, err = child.communicate(json.dumps(CONF).encode(), timeout=300)
    assert (child.returncode, json.loads(out)["cniVersion"]) == (0, "1.1.0")
    assert (err.count(b"<1>"), err.count(b"<"), err.count(b"late")) == (1, 1, 1)


@pytest.mark.outside("runs the skeleton as a process")
def test_stdout_that_takes_nothing_is_a_failure_told_in_one_line():
    with open("/dev/full", "wb") as full:
        child = process("plugin = Recorder()", stdout=full)
        _, err = child.communicate(json.dumps(CONF).encode(), timeout=300)
    assert child.returncode == 1
    told = b"cannot write the answer: [Errno 28] No space left on device"
    assert sorted(err.splitlines()) == [told, b"noise of a library"]


@pytest.mark.outside("runs the skeleton as a process")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_it_with_one_document_and_its_undo(number):
    body = (
        "import time\nfrom cni.undo import Undo\nplugin = Recorder()\n"
        "def undo():\n    time.sleep(0.2); sys.stderr.write('undone'); sys.stderr.flush()\n"
        "def add(request):\n"
        "    with Undo() as stack:\n"
        "        stack.push('it', undo)\n"
        "        sys.stderr.write('ready\\n'); sys.stderr.flush()\n"
        "        time.sleep(600)\n"
        "plugin.add = add"
    )
    child = process(body)
    child.stdin.write(json.dumps(CONF).encode())
    child.stdin.close()
    child.stdin = None
    assert child.stderr.readline() == b"ready\n"
    child.send_signal(number)
    child.send_signal(number)  # an impatient second one does not stop the undo
    out, err = child.communicate(timeout=300)
    document = json.loads(out)
    assert (child.returncode, document["code"], signal.Signals(number).name in document["msg"]) == (1, 11, True)
    assert b"undone" in err


@pytest.mark.outside("runs the skeleton as a process")
@pytest.mark.parametrize(
    ("variable", "value"), [("CNI_CONTAINERID", "c\nforged: line\x1b[31m\u2028"), ("CNI_ARGS", "IP=1\nforged: line")]
)
def test_what_a_caller_says_makes_no_line_of_its_own(variable, value):
    """Also before there is a request, when the log has no format yet: as a process, whose stderr nobody prepares."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from cni import skel; sys.exit(skel.main('static'))"],
        env={**ENVIRONMENT, variable: value}, input=json.dumps({**CONF, "ipam": {"type": "static"}}), cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "forged" in line
    assert "\x1b" not in line
