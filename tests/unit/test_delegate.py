"""Delegation: which plugin CNI_PATH runs, and what a foreign one is given and makes of it. Source: reference 1.9."""

from __future__ import annotations

import errno
import subprocess

import pytest

import cni.delegate
from cni.delegate import ForeignPlugin, find
from conf.errors import DecodeFailure, DelegateFailed, InvalidNetworkConfig
from conf.request import read_request
from ipam.static import Static
from tests.unit.archives import write_archive

pytestmark = pytest.mark.outside("runs small shell scripts of its own")

STDIN = b'{"cniVersion": "1.0.0",\n "name": "rail",  "ipam": {"type": "foreign"} , "odd":1e2}\n'
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c",
    "CNI_NETNS": "/n",
    "CNI_IFNAME": "net1",
    "CNI_ARGS": "IgnoreUnknown=1;X=a=b",
    "CNI_PATH": "/opt/cni/bin",
    "TRACEPARENT": "00-1",
    "PATH": "/usr/bin:/bin",
}


@pytest.fixture
def request_():
    return read_request(ENVIRONMENT, STDIN)


@pytest.fixture
def script(tmp_path):
    def make(body, *, name="foreign", mode=0o755):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(mode)
        return ForeignPlugin(path)

    return make


# Which one


def test_first_regular_file_of_cni_path_wins(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
    (tmp_path / "a/foreign").mkdir()
    (tmp_path / "b/foreign").write_text("")  # no exec bit is asked for, as in libcni
    (tmp_path / "c/foreign").write_text("")
    folders = [str(tmp_path / name) for name in ("absent", "a", "b", "c")]
    found = find("foreign", folders)
    assert isinstance(found, ForeignPlugin)
    assert found.path == tmp_path / "b/foreign"


def test_ours_needs_no_cni_path_and_gives_way_to_what_is_there(tmp_path):
    assert isinstance(find("static", []), Static)
    assert isinstance(find("static", [str(tmp_path)]), Static)
    (tmp_path / "static").write_text("")
    assert isinstance(find("static", [str(tmp_path)], archive=str(tmp_path / "absent")), ForeignPlugin)


def test_a_copy_of_the_archive_we_run_from_is_ours(tmp_path):
    archive = write_archive(tmp_path / "vferry")
    for name in ("static", "foreign"):
        (tmp_path / name).write_bytes(archive.read_bytes())
    assert isinstance(find("static", [str(tmp_path)], archive=str(archive)), Static)
    assert isinstance(find("foreign", [str(tmp_path)], archive=str(archive)), ForeignPlugin)


def test_archive_of_another_build_is_foreign(tmp_path):
    """Same name, same size: the contents differ by one digit of the build."""
    archive = write_archive(tmp_path / "vferry", build_id="1" * 16)
    other = write_archive(tmp_path / "static", build_id="2" * 16)
    assert archive.stat().st_size == other.stat().st_size
    assert isinstance(find("static", [str(tmp_path)], archive=str(archive)), ForeignPlugin)


def test_archive_that_is_replaced_in_the_middle_is_looked_at_again(tmp_path):
    archive = write_archive(tmp_path / "vferry", build_id="1" * 16)
    write_archive(tmp_path / "static", build_id="1" * 16)
    assert isinstance(find("static", [str(tmp_path)], archive=str(archive)), Static)
    write_archive(tmp_path / "new", build_id="2" * 16).replace(tmp_path / "static")
    assert isinstance(find("static", [str(tmp_path)], archive=str(archive)), ForeignPlugin)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/bin/sh", "../x", 7, True, ["static"], {"type": "x"}])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(InvalidNetworkConfig, match='"type"') as refused:
        find(name, ["/usr/bin"])
    assert refused.value.code == 7


def test_what_is_not_found_is_told_with_where(tmp_path):
    with pytest.raises(InvalidNetworkConfig) as refused:
        find("nobody", [str(tmp_path), "/nowhere"])
    assert refused.value.msg == f'failed to find plugin "nobody" in path [{tmp_path} /nowhere]'
    with pytest.raises(InvalidNetworkConfig) as refused:
        find("nobody", [])
    assert refused.value.details == "CNI_PATH is not set"


# What it is given


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_foreign_plugin_gets_our_stdin_and_our_environment_but_the_command(script, request_, tmp_path, command):
    plugin = script(f"cat >{tmp_path}/stdin; env >{tmp_path}/env; echo '{{}}'")
    verbs = {"ADD": plugin.add, "DEL": plugin.delete, "CHECK": plugin.check, "GC": plugin.gc, "STATUS": plugin.status}
    verbs[command](request_)
    assert (tmp_path / "stdin").read_bytes() == STDIN
    given = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert {key: given.get(key) for key in ENVIRONMENT} == {**ENVIRONMENT, "CNI_COMMAND": command}


def test_its_stderr_is_ours(script, request_, capfd):
    script("echo hello >&2; echo '{}'").delete(request_)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_plugin_that_reads_no_stdin_is_no_error(script, request_):
    huge = request_.__class__(**{**vars(request_), "stdin": b"x" * 1_000_000})
    script("exec <&-; exit 0").delete(huge)


# What it answers


@pytest.mark.parametrize(
    ("answer", "address"),
    [
        ('{"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24", "gateway": "10.0.0.1"}]}', "10.0.0.5/24"),
        ('{"ips": [{"address": "10.0.0.5/24"}]}', "10.0.0.5/24"),
        ('{"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.5/24"}], "dns": {}}', "10.0.0.5/24"),
        ('{"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.5/24"}, "dns": {}}', "10.0.0.5/24"),
        ("{}", None),
        ("null", None),
        ("", None),
        (" ", None),
    ],
)
def test_result_in_every_version(script, request_, answer, address):
    ips = script(f"cat >/dev/null; printf '%s\\n' '{answer}'").add(request_).ips
    assert [ip.address for ip in ips] == ([address] if address else [])


@pytest.mark.parametrize("answer", ["nonsense", "[]", '{"ips": 7}', '{"ips": [{"address": "x"}]}', "{} {}", "noise {}"])
def test_garbage_is_a_decode_failure_that_names_the_plugin(script, request_, answer):
    plugin = script(f"printf '%s' '{answer}'")
    with pytest.raises(DecodeFailure) as refused:
        plugin.add(request_)
    assert str(plugin.path) in refused.value.msg


def test_error_is_passed_on_with_its_code(script, request_):
    plugin = script('echo \'{"cniVersion": "1.0.0", "code": 11, "msg": "no", "details": "later"}\'; exit 3')
    with pytest.raises(DelegateFailed) as failed:
        plugin.add(request_)
    assert (failed.value.code, failed.value.msg, failed.value.details) == (11, "foreign: no", "later")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ('{"msg": "no"}', 105),
        ('{"code": 0, "msg": "no"}', 105),
        ('{"code": true, "msg": "no"}', 105),
        ('{"code": "11", "msg": "no"}', 105),
        ('{"Code": 7, "MSG": "no"}', 7),
    ],
)
def test_error_without_a_code_of_its_own(script, request_, answer, code):
    with pytest.raises(DelegateFailed) as failed:
        script(f"echo '{answer}'; exit 1").delete(request_)
    assert (failed.value.code, failed.value.msg) == (code, "foreign: no")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("exit 2", "failed with no error message; DEL, exit status 2"),
        ("echo oops; exit 2", "failed and did not say why in JSON; DEL, exit status 2"),
        ("kill -9 $$", "failed with no error message; DEL, exit status -9"),
    ],
)
def test_failure_without_an_error_object(script, request_, body, said):
    plugin = script(body)
    with pytest.raises(DelegateFailed) as failed:
        plugin.delete(request_)
    assert (failed.value.code, str(failed.value)) == (105, f"{plugin.path} {said}")


@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_what_cannot_be_run_is_told(tmp_path, request_, mode):
    path = tmp_path / "foreign"
    path.write_bytes(b"\x7fELF of another machine")
    path.chmod(mode)
    with pytest.raises(DelegateFailed, match=f"cannot run {path}"):
        ForeignPlugin(path).add(request_)


def busy(times, monkeypatch):
    really, tries = subprocess.run, []

    def run(*args, **kwargs):
        tries.append(args)
        if len(tries) <= times:
            raise OSError(errno.ETXTBSY, "Text file busy")
        return really(*args, **kwargs)

    monkeypatch.setattr(cni.delegate.subprocess, "run", run)
    monkeypatch.setattr(cni.delegate.time, "sleep", lambda _seconds: None)
    return tries


def test_text_file_busy_is_tried_again_and_not_for_ever(script, request_, monkeypatch):
    plugin = script("echo '{}'")
    assert len(busy(4, monkeypatch)) == 0
    plugin.delete(request_)
    with pytest.raises(DelegateFailed, match="Text file busy"):
        tries = busy(99, monkeypatch)
        plugin.delete(request_)
    assert len(tries) == 5


def test_rollback_runs_it_as_del(script, request_, tmp_path):
    plugin = script(f"echo $CNI_COMMAND >>{tmp_path}/asked; echo '{{}}'")
    plugin.add(request_)
    plugin.delete(request_.as_command("DEL"))
    assert (tmp_path / "asked").read_text() == "ADD\nDEL\n"
