"""The operator's command as it is typed: defaults and environment of cnitool, failures on one line, schemas."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cni.cli import run
from cni.cli.command import COMMANDS, vferry
from conf.errors import DelegateFailed, InvalidEnvironment
from conf.executables import EXECUTABLES, VERSION
from conf.request import Request
from conf.result import Ip
from conf.result import Result as CniResult
from conf.schema import MODELS, schema_of

# What cnitool says for these, made with: printf %s PATH | sha512sum | cut -c1-20
CNITOOL_IDS = {
    "/var/run/netns/testing": "cnitool-77383ca0a0715733ca6f",
    "/run/netns/pod1": "cnitool-eb69d96616c204ff963c",
}


class Plugin:
    """A plugin that answers every ADD, or refuses all calls."""

    calls: list[tuple[str, tuple[str, ...], Request]]

    def __init__(self) -> None:
        self.calls = []
        self.refusal: DelegateFailed | None = None
        self.where: tuple[str, tuple[str, ...]] = ("", ())

    def find(self, plugin_type: str, path: list[str]) -> Plugin:
        self.where = (plugin_type, tuple(path))
        return self

    def add(self, request: Request) -> CniResult:
        self._called(request)
        return CniResult(ips=[Ip(address="192.0.2.7/24")])

    def _called(self, request: Request) -> None:
        self.calls.append((*self.where, request))
        if self.refusal:
            raise self.refusal

    delete = check = gc = status = _called


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Plugin:
    found = Plugin()
    monkeypatch.setattr(run, "find_executable", found.find)
    for name in ("NETCONFPATH", "CNI_PATH", "CNI_IFNAME", "CNI_ARGS", "CAP_ARGS", "CNI_CONTAINERID"):
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.fixture
def conf_dir(tmp_path: Path) -> Path:
    network = {"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "one", "capabilities": {"mac": True}}]}
    (tmp_path / "net.conflist").write_text(json.dumps(network))
    return tmp_path


@pytest.fixture
def type_in(plugin: Plugin, conf_dir: Path) -> Any:
    def typed(*words: str, **environ: str) -> Result:
        arguments = ["run", *words, "--cache-dir", str(conf_dir / "cache")]
        environ = {"NETCONFPATH": str(conf_dir), **environ}
        return CliRunner().invoke(vferry, arguments, prog_name="vferry", env=environ, catch_exceptions=False)

    return typed


def test_defaults_are_cnitools(type_in, plugin):
    done = type_in("add", "net", "/var/run/netns/testing")
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"cniVersion": "1.1.0", "ips": [{"address": "192.0.2.7/24"}]}
    assert done.stdout.startswith('{\n    "cniVersion"')
    ((plugin_type, path, request),) = plugin.calls
    assert (plugin_type, path) == ("one", ("/opt/cni/bin",))
    assert (request.ifname, request.netns) == ("eth0", "/var/run/netns/testing")
    assert request.container_id == CNITOOL_IDS["/var/run/netns/testing"]


@pytest.mark.parametrize(("path", "container_id"), CNITOOL_IDS.items())
def test_container_id_is_cnitools(path, container_id):
    assert run.container_id_of(path) == container_id


def test_environment_is_cnitools(type_in, plugin):
    environ = {
        "CNI_PATH": "/a:/b",
        "CNI_IFNAME": "net1",
        "CNI_ARGS": "IgnoreUnknown=1;K=v=w;K=x;",
        "CAP_ARGS": '{"mac": "02:00:00:00:00:01", "ips": ["192.0.2.9/24"]}',
        "CNI_CONTAINERID": "c1",
    }
    type_in("add", "net", "/run/netns/pod1", **environ)
    ((_, path, request),) = plugin.calls
    assert path == ("/a", "/b")
    assert (request.container_id, request.ifname) == ("c1", "net1")
    assert request.environ["CNI_ARGS"] == "IgnoreUnknown=1;K=v=w;K=x"
    assert request.config["runtimeConfig"] == {"mac": "02:00:00:00:00:01"}


def test_option_goes_before_the_environment(type_in, plugin):
    type_in("add", "net", "/n", "--ifname", "net2", "--path", "/c", CNI_IFNAME="net1", CNI_PATH="/a")
    assert (plugin.calls[0][1], plugin.calls[0][2].ifname) == (("/c",), "net2")


def test_relative_netns_is_made_absolute_without_following_links(type_in, plugin, monkeypatch, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    type_in("del", "net", "link/../pod")
    assert plugin.calls[0][2].netns == str(tmp_path / "pod")


def test_device_is_given_as_multus_does(type_in, plugin):
    type_in("add", "net", "/n", "--device", "0000:3B:02.1")
    config = plugin.calls[0][2].config
    assert (config["deviceID"], config["pciBusID"]) == ("0000:3b:02.1", "0000:3b:02.1")
    assert type_in("add", "net", "/n", "--device", "../etc").exit_code == 2


def test_failure_is_one_line_with_the_way_back(type_in, plugin):
    plugin.refusal = DelegateFailed("one: no", details="EBUSY", code=11)
    done = type_in("add", "net", "/run/netns/pod1", "-i", "net1")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "vferry: one: no; EBUSY; to undo what was done before that: vferry run del net /run/netns/pod1 --ifname net1\n"
    )
    named = type_in("add", "net", "/n", "--device", "0000:3b:02.1", CNI_CONTAINERID="c1").stderr
    assert named.endswith("vferry run del net /n --ifname eth0 --container-id c1 --device 0000:3b:02.1\n")


def test_refused_configuration_has_nothing_to_undo(type_in, plugin):
    plugin.refusal = DelegateFailed("one: no", code=7)
    assert type_in("add", "net", "/run/netns/pod1").stderr == "vferry: one: no\n"


def test_failed_second_add_is_not_told_to_delete_the_first_unawares(type_in, plugin):
    type_in("add", "net", "/n")
    plugin.refusal = DelegateFailed("one: eth0 is taken")
    assert "it was added before; to detach it: vferry run del net /n" in type_in("add", "net", "/n").stderr


def test_json_prints_the_error_object(type_in, plugin):
    plugin.refusal = DelegateFailed("one: no", details="EBUSY", code=11)
    done = type_in("check", "net", "/n", "--json")
    assert (done.exit_code, done.stderr) == (1, "vferry: one: no; EBUSY\n")
    assert json.loads(done.stdout) == {"cniVersion": "1.1.0", "code": 11, "msg": "one: no", "details": "EBUSY"}


def test_gc_takes_valid_attachments(type_in, plugin):
    for container_id in ("c1", "c2"):
        type_in("add", "net", "/n", CNI_CONTAINERID=container_id)
    done = type_in("gc", "net", "--valid", "c2:eth0")
    assert (done.exit_code, done.stderr) == (0, "deleted c1 eth0\n")
    gc = plugin.calls[-1][2]
    assert (gc.command, gc.config["cni.dev/valid-attachments"]) == ("GC", [{"containerID": "c2", "ifname": "eth0"}])
    assert type_in("gc", "net", "/n").stderr == "deleted c2 eth0\n"
    assert "cni.dev/valid-attachments" not in plugin.calls[-1][2].config
    type_in("gc", "net", "--none-valid")
    assert plugin.calls[-1][2].config["cni.dev/valid-attachments"] == []


@pytest.mark.parametrize("words", [("--valid", "c1"), ("--valid", ":eth0"), ("--valid", "c1:eth0", "--none-valid")])
def test_gc_refuses_what_it_cannot_understand(type_in, plugin, words):
    assert type_in("gc", "net", *words).exit_code == 2
    assert plugin.calls == []


def test_status_and_check_say_when_they_did_nothing(type_in, plugin, conf_dir):
    old = {"cniVersion": "1.0.0", "name": "old", "disableCheck": True, "plugins": [{"type": "one"}]}
    (conf_dir / "old.conflist").write_text(json.dumps(old))
    assert "nothing asked" in type_in("status", "old").stderr
    assert "nothing was checked" in type_in("check", "old", "/n").stderr
    assert plugin.calls == []
    assert type_in("status", "net").output == ""
    assert plugin.calls[0][2].command == "STATUS"


@pytest.mark.parametrize(("environ", "words"), [({"CNI_ARGS": "novalue"}, "novalue"), ({"CAP_ARGS": "[]"}, "CAP_ARGS")])
def test_bad_environment_is_refused(type_in, plugin, environ, words):
    done = type_in("add", "net", "/n", **environ)
    assert done.exit_code == 1
    assert words in done.stderr
    assert plugin.calls == []


def test_args_without_a_key_are_refused():
    with pytest.raises(InvalidEnvironment):
        run.args_of("=v")


@pytest.mark.parametrize("name", MODELS)
def test_schema_is_printed_by_alias_with_descriptions(name):
    done = CliRunner().invoke(vferry, ["schema", name])
    assert done.exit_code == 0
    schema = json.loads(done.stdout)
    assert schema == schema_of(name)
    assert schema["type"] == "object"
    assert all(key == key.lower() or "_" not in key for key in schema["properties"])
    assert [key for key, value in schema["properties"].items() if "description" not in value] == []


def test_every_executable_has_a_schema():
    assert set(MODELS) == set(EXECUTABLES)
    assert set(CliRunner().invoke(vferry, ["schema"]).stdout.split()) == set(EXECUTABLES)


def test_schema_has_the_bounds():
    properties = schema_of("sriov")["properties"]
    assert {"type": "integer", "minimum": 0, "maximum": 4094} in properties["vlan"]["anyOf"]
    assert "deviceID" in schema_of("sriov")["required"]


def test_unknown_schema_names_the_known():
    done = CliRunner().invoke(vferry, ["schema", "bridge"])
    assert done.exit_code == 2
    assert all(name in done.stderr for name in MODELS)


def test_help_names_every_command():
    done = CliRunner().invoke(vferry, ["--help"])
    assert all(name in done.stdout for name in COMMANDS)
    assert CliRunner().invoke(vferry, ["nothing"]).exit_code == 2


@pytest.mark.parametrize(("stamp", "told"), [(None, "not built"), (SimpleNamespace(build_id="0a1b"), "build 0a1b")])
def test_version_is_that_of_the_package_and_of_the_build(stamp, told):
    done = CliRunner().invoke(vferry, ["--version"], obj=stamp)
    assert done.exit_code == 0
    assert done.output.startswith(f"vferry {VERSION}, {told}, Python 3.")
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'\nversion = "{VERSION}"\n' in pyproject
