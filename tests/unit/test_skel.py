"""The protocol skeleton: what it reads, the one document it prints, and its exit status. Source: reference 1."""

from __future__ import annotations

import io
import json
import sys

import pytest

import cni.skel
from cni import skel
from conf.errors import InvalidNetns, IoFailure, KernelRefused, NetnsGone, PluginNotAvailable, TryAgainLater
from conf.executables import SUPPORTED_VERSIONS
from conf.result import Interface, Ip, Result

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/run/netns/blue",
    "CNI_IFNAME": "net1",
    "CNI_PATH": "/opt/cni/bin",
    "AWS_SECRET": "s3cret-of-the-environment",
}
CONF = {"cniVersion": "1.1.0", "name": "rail", "type": "sriov", "password": "s3cret-of-stdin"}


class Recorder:
    """A plugin that remembers what it was asked, and fails as it is told."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.asked: list[str] = []

    def _act(self, verb, _request):
        self.asked.append(verb)
        print("noise of a library")
        if self.error:
            raise self.error

    def add(self, request):
        self._act("add", request)
        return Result(
            interfaces=[Interface(name=request.ifname, mtu=1400)], ips=[Ip(address="10.0.0.2/24", interface=0)]
        )

    def delete(self, request):
        self._act("delete", request)

    def check(self, request):
        self._act("check", request)

    def gc(self, request):
        self._act("gc", request)

    def status(self, request):
        self._act("status", request)


@pytest.fixture(autouse=True)
def netns(monkeypatch):
    """Namespaces by path: /run/netns/blue is a pod's, /proc/self/ns/net our own, all others are gone."""

    class Open:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            pass

        def same_as(self, other):
            return self.name == other.name

        @classmethod
        def open(cls, path):
            if path == "/run/file":
                raise InvalidNetns("no netns")
            if path not in ("/run/netns/blue", "/proc/self/ns/net"):
                raise NetnsGone("gone")
            return cls("own" if path.startswith("/proc") else path)

        @classmethod
        def current(cls):
            return cls("own")

    monkeypatch.setattr(cni.skel, "Netns", Open)


def call(command="ADD", conf=None, plugin=None, *, stdin=None, **env):
    text = json.dumps({**CONF, **(conf or {})}).encode() if stdin is None else stdin
    printed = io.BytesIO()
    environ = {key: value for key, value in {**ENVIRONMENT, "CNI_COMMAND": command, **env}.items() if value is not None}
    status = skel.main(
        "sriov", environ=environ, stdin=io.BytesIO(text), stdout=printed, load=lambda _name: plugin or Recorder()
    )
    return status, printed.getvalue()


def refusal(*args, **kwargs):
    status, printed = call(*args, **kwargs)
    assert status == 1
    assert printed.count(b"\n") == 1
    document = json.loads(printed)
    assert sorted(document) == ["cniVersion", "code", "details", "msg"]
    return document


def test_add_prints_its_result_and_nothing_else():
    status, printed = call()
    assert (status, json.loads(printed)) == (
        0,
        {
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "net1", "mtu": 1400}],
            "ips": [{"address": "10.0.0.2/24", "interface": 0}],
        },
    )


@pytest.mark.parametrize(
    ("command", "verb"), [("DEL", "delete"), ("CHECK", "check"), ("GC", "gc"), ("STATUS", "status")]
)
def test_other_commands_print_nothing(command, verb):
    plugin = Recorder()
    assert call(command, plugin=plugin) == (0, b"")
    assert plugin.asked == [verb]


def test_version_reads_no_stdin_and_loads_no_plugin():
    class Closed(io.BytesIO):
        def read(self, *_size):
            pytest.fail("stdin was read")

    printed = io.BytesIO()
    status = skel.main(
        "sriov",
        environ={"CNI_COMMAND": "VERSION"},
        stdin=Closed(),
        stdout=printed,
        load=lambda _name: pytest.fail("loaded"),
    )
    assert (status, json.loads(printed.getvalue())) == (
        0,
        {"cniVersion": "1.1.0", "supportedVersions": list(SUPPORTED_VERSIONS)},
    )


@pytest.mark.parametrize("environ", [{}, {"CNI_COMMAND": ""}])
def test_without_a_command_it_says_what_it_is(environ, capsys):
    printed = io.BytesIO()
    assert skel.main("sriov", environ=environ, stdin=io.BytesIO(b"x"), stdout=printed) == 0
    assert printed.getvalue() == b""
    out, err = capsys.readouterr()
    assert (out, "vferry sriov: a CNI plugin" in err) == ("", True)
    assert "CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0" in err


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_answer_is_of_the_asked_version(version):
    assert json.loads(call(conf={"cniVersion": version})[1])["cniVersion"] == version
    assert refusal(conf={"cniVersion": version}, plugin=Recorder(IoFailure("it")))["cniVersion"] == version


@pytest.mark.parametrize(
    ("kwargs", "code", "said"),
    [
        ({"command": "LIST"}, 4, "unknown CNI_COMMAND: LIST"),
        ({"CNI_CONTAINERID": None, "CNI_NETNS": None}, 4, "[CNI_CONTAINERID,CNI_NETNS] missing"),
        ({"CNI_IFNAME": "n" * 16}, 4, f'CNI_IFNAME="{"n" * 16}"'),
        ({"CNI_ARGS": "X=1"}, 4, "X"),
        ({"stdin": b""}, 6, "not JSON"),
        ({"stdin": b'{"name": '}, 6, "not JSON"),
        ({"stdin": b"[]"}, 6, "not a JSON object"),
        ({"conf": {"name": None}}, 7, '"name"'),
        ({"conf": {"cniVersion": "9.9.9"}}, 1, "9.9.9"),
        ({"command": "CHECK", "conf": {"cniVersion": "0.3.1"}}, 1, "0.3.1 has no CHECK"),
        ({"command": "GC", "conf": {"cniVersion": "1.0.0"}}, 1, "1.0.0 has no GC"),
        ({"command": "STATUS", "conf": {"cniVersion": "1.0.0"}}, 1, "1.0.0 has no STATUS"),
        ({"plugin": Recorder(TryAgainLater("busy", details="why", hint="wait"))}, 11, "busy"),
        ({"command": "STATUS", "plugin": Recorder(PluginNotAvailable("no"))}, 50, "no"),
        ({"plugin": Recorder(KernelRefused("setting VLAN 1", "VF 0", 22))}, 102, "setting VLAN 1 failed on VF 0"),
    ],
)
def test_refusal_is_one_document_with_its_code(kwargs, code, said):
    document = refusal(**kwargs)
    assert (document["code"], said in document["msg"]) == (code, True), document


def test_details_and_hint_go_together():
    document = refusal(plugin=Recorder(TryAgainLater("busy", details="why", hint="wait")))
    assert document["details"] == "why; wait"


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), RuntimeError("first line\nsecond line"), RecursionError(), MemoryError(), AssertionError("never")],
)
def test_unforeseen_error_is_999_and_still_one_document(error, capsys):
    document = refusal(plugin=Recorder(error))
    assert (document["code"], document["msg"]) == (999, "sriov: internal error")
    assert document["details"].startswith(type(error).__name__)
    assert "second line" not in document["details"]
    assert "Traceback" in capsys.readouterr().err


def test_plugin_that_cannot_be_loaded_is_999_and_one_document():
    printed = io.BytesIO()
    status = skel.main(
        "sriov",
        environ=ENVIRONMENT,
        stdin=io.BytesIO(json.dumps(CONF).encode()),
        stdout=printed,
        load=lambda name: {}[name],
    )
    assert (status, json.loads(printed.getvalue())["code"]) == (1, 999)


class Unreadable(io.BytesIO):
    def read(self, *_size):
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("stdin", [Unreadable(), None])
def test_stdin_that_cannot_be_read_is_5(stdin, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # so it is when descriptor 0 is closed
    printed = io.BytesIO()
    status = skel.main("sriov", environ=ENVIRONMENT, stdin=stdin, stdout=printed)
    assert (status, json.loads(printed.getvalue())["code"]) == (1, 5)


# The netns


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_own_netns_is_refused_before_anything_is_done(command):
    plugin = Recorder()
    document = refusal(command, plugin=plugin, CNI_NETNS="/proc/self/ns/net")
    assert (document["code"], "/proc/self/ns/net" in document["msg"], plugin.asked) == (8, True, [])


@pytest.mark.parametrize("word", ["1", "true", "TRUE", "True"])
def test_own_netns_can_be_meant(word):
    assert call(CNI_NETNS="/proc/self/ns/net", CNI_NETNS_OVERRIDE=word)[0] == 0


@pytest.mark.parametrize("word", ["0", "", "yes"])
def test_other_words_mean_nothing(word):
    assert refusal(CNI_NETNS="/proc/self/ns/net", CNI_NETNS_OVERRIDE=word)["code"] == 8


@pytest.mark.parametrize("path", ["/run/netns/gone", "/run/file", ""])
def test_netns_that_cannot_be_opened_is_the_plugins_business(path):
    plugin = Recorder()
    assert call("DEL", plugin=plugin, CNI_NETNS=path)[0] == 0
    assert plugin.asked == ["delete"]


# The result that cannot be said


def test_result_that_the_version_cannot_say_is_taken_back():
    class NoAddress(Recorder):
        def add(self, request):
            self.asked.append("add")
            return Result(interfaces=[Interface(name=request.ifname)])

    plugin = NoAddress()
    assert refusal(conf={"cniVersion": "0.2.0"}, plugin=plugin)["code"] == 7
    assert plugin.asked == ["add", "delete"]


# The log


def test_log_line_says_who_and_never_what_stdin_or_environment_hold(capsys):
    refusal(conf={"vlan": 1}, plugin=Recorder(IoFailure("no room", details="ENOSPC")))
    refusal(stdin=b'{"password": "s3cret-of-stdin",')
    refusal(conf={"name": {"password": "s3cret-of-stdin"}})
    refusal(plugin=Recorder(KeyError("x")))
    err = capsys.readouterr().err
    assert "ERROR sriov ADD c0ffee net1 rail: no room; ENOSPC (code 5)" in err
    assert "s3cret" not in err


def test_errors_never_hold_what_stdin_or_environment_hold():
    for document in (
        refusal(stdin=b'{"password": "s3cret-of-stdin",'),
        refusal(conf={"name": {"password": "s3cret-of-stdin"}}),
        refusal(plugin=Recorder(KeyError("x"))),
        refusal(AWS_SECRET="s3cret", CNI_IFNAME=None),
    ):
        assert "s3cret" not in json.dumps(document)


@pytest.mark.parametrize(
    ("level", "lines"),
    [
        ({}, ["warning"]),
        ({"logLevel": "debug"}, ["debug", "info", "warning"]),
        ({"LOGLEVEL": "Info"}, ["info", "warning"]),
        ({"logLevel": "verbose"}, ["info", "warning"]),
        ({"logLevel": "error"}, []),
        ({"logLevel": "panic"}, []),
        ({"logLevel": "nonsense"}, ["info", "warning"]),
        ({"ipam": {"log_level": "debug"}}, ["debug", "info", "warning"]),
    ],
)
def test_log_level(level, lines, tmp_path):
    class Talks(Recorder):
        def add(self, request):
            for word in ("debug", "info", "warning"):
                getattr(cni.skel.journal.LOG, word)("said: %s", word)
            return super().add(request)

    path = tmp_path / "log"
    assert call(conf={**level, "logFile": str(path)}, plugin=Talks())[0] == 0
    assert [line.split("said: ")[1] for line in path.read_text().splitlines()] == lines


@pytest.mark.parametrize("name", ["absent/log", "a\0b", "."])
def test_log_file_that_cannot_be_opened_is_a_warning_and_no_error(name, tmp_path, capsys):
    assert call(conf={"logFile": f"{tmp_path}/{name}"})[0] == 0
    assert "cannot log to" in capsys.readouterr().err


@pytest.mark.parametrize("container_id", ["50%", "%s", "%(message)s", "100%d"])
def test_percent_sign_is_no_format_of_the_log(container_id, capsys):
    # It is checked where it is required only.
    document = refusal(
        "STATUS", CNI_CONTAINERID=container_id, CNI_NETNS=None, CNI_IFNAME=None, plugin=Recorder(IoFailure("it"))
    )
    assert document["code"] == 5
    assert f"ERROR sriov STATUS {container_id} rail: it (code 5)" in capsys.readouterr().err
