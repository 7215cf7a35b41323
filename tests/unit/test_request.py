"""One invocation: environment and stdin of each command, what is missing, what is malformed."""

from __future__ import annotations

import json

import pytest

from conf.errors import CniError
from conf.request import read_command, read_request

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/run/netns/blue",
    "CNI_IFNAME": "net1",
    "CNI_PATH": "/opt/cni/bin::/usr/lib/cni",
}


def request(command="ADD", conf=None, **env):
    document = {"cniVersion": "1.1.0", "name": "rail", "type": "sriov", **(conf or {})}
    given = {**ENVIRONMENT, "CNI_COMMAND": command, **env}
    return read_request(
        {key: value for key, value in given.items() if value is not None}, json.dumps(document).encode()
    )


def refusal(*args, **kwargs):
    with pytest.raises(CniError) as refused:
        request(*args, **kwargs)
    return refused.value


def test_request_of_an_add():
    got = request(conf={"vlan": 1}, CNI_ARGS="MAC=x")
    assert (got.command, got.container_id, got.netns, got.ifname) == ("ADD", "c0ffee", "/run/netns/blue", "net1")
    assert (got.path, got.args, got.network, got.cni_version) == (
        ("/opt/cni/bin", "/usr/lib/cni"),
        {"MAC": "x"},
        "rail",
        "1.1.0",
    )
    assert json.loads(got.stdin)["vlan"] == got.config["vlan"] == 1


def test_as_command_changes_the_command_only():
    got = request(CNI_ARGS="MAC=x", TRACEPARENT="00-1").as_command("DEL")
    assert (got.command, got.environ["CNI_COMMAND"]) == ("DEL", "DEL")
    assert (got.environ["TRACEPARENT"], got.args, got.container_id) == ("00-1", {"MAC": "x"}, "c0ffee")


@pytest.mark.parametrize("command", [None, "", "add", "ADD ", "LIST"])
def test_unknown_command(command):
    with pytest.raises(CniError) as refused:
        read_command({} if command is None else {"CNI_COMMAND": command})
    assert refused.value.code == 4
    assert ("missing" if not command else f"unknown CNI_COMMAND: {command}") in refused.value.msg


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"),
        ("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME"),
        ("DEL", "CNI_CONTAINERID,CNI_IFNAME"),
    ],
)
@pytest.mark.parametrize("absent", [None, ""])
def test_all_missing_variables_are_named_at_once(command, missing, absent):
    refused = refusal(command, CNI_CONTAINERID=absent, CNI_NETNS=absent, CNI_IFNAME=absent)
    assert (refused.code, refused.msg) == (4, f"required env variables [{missing}] missing")


@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_gc_and_status_need_no_attachment(command):
    assert request(command, CNI_CONTAINERID=None, CNI_NETNS=None, CNI_IFNAME=None, CNI_PATH=None).ifname == ""
    # Nor is it checked there.
    assert request(command, CNI_CONTAINERID="a/b", CNI_IFNAME="x" * 99).command == command


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_CONTAINERID", "../x"),
        ("CNI_CONTAINERID", "-a"),
        ("CNI_CONTAINERID", ".a"),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_CONTAINERID", "a\n"),
        ("CNI_CONTAINERID", "é"),
        ("CNI_IFNAME", "n" * 16),
        ("CNI_IFNAME", "é" * 8),
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_IFNAME", "a\t"),
        ("CNI_IFNAME", "a\n"),
        # The kernel takes it for a template and makes net0 of it.
        ("CNI_IFNAME", "net%d"),
        ("CNI_IFNAME", "a\udcffb"),
    ],
)
@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_malformed_variable_is_named_with_its_value(command, variable, value):
    refused = refusal(command, **{variable: value})
    assert (refused.code, f'{variable}="{value}"' in refused.msg) == (4, True)
    json.dumps(refused.to_json("1.1.0")).encode()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CNI_IFNAME", "n" * 15), ("CNI_IFNAME", "eth0.100"), ("CNI_IFNAME", "éééé"), ("CNI_CONTAINERID", "A.b_c-9")],
)
def test_what_is_at_the_edge_is_taken(variable, value):
    assert value in vars(request(**{variable: value})).values()


@pytest.mark.parametrize(
    ("conf", "code", "said"),
    [
        ({"name": None}, 7, '"name"'),
        ({"name": ""}, 7, '"name": ""'),
        ({"name": "a/b"}, 7, '"name": "a/b"'),
        ({"name": "a\n"}, 7, '"name": "a\\n"'),
        ({"name": 7}, 7, '"name": 7'),
        ({"cniVersion": "0.5.0"}, 1, '"cniVersion": "0.5.0"'),
        ({"cniVersion": "1.2.0"}, 1, '"cniVersion": "1.2.0"'),
        ({"cniVersion": "v1.0.0"}, 1, '"cniVersion": "v1.0.0"'),
        ({"cniVersion": 1}, 1, '"cniVersion": 1'),
        ({"cniVersion": ["1.0.0"]}, 1, '"cniVersion": ["1.0.0"]'),
    ],
)
def test_malformed_configuration(conf, code, said):
    refused = refusal(conf=conf)
    assert (refused.code, said in refused.msg) == (code, True)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
@pytest.mark.parametrize(("command", "first"), [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")])
def test_commands_that_came_later(command, first, version):
    if version >= first:
        assert request(command, {"cniVersion": version}).cni_version == version
    else:
        refused = refusal(command, {"cniVersion": version})
        assert (refused.code, refused.msg) == (1, f"cniVersion {version} has no {command}")


@pytest.mark.parametrize("absent", [{"cniVersion": None}, {"cniVersion": ""}])
def test_no_version_is_0_1_0(absent):
    assert request(conf=absent).cni_version == "0.1.0"


def test_keys_of_the_configuration_match_as_go_matches_them():
    got = read_request(ENVIRONMENT, b'{"CNIVERSION": "0.4.0", "Name": "rail", "prevresult": {"ips": []}}')
    assert (got.cni_version, got.network, got.prev_result().ips) == ("0.4.0", "rail", [])


def test_cni_args_are_checked_on_add_and_not_on_del():
    assert refusal(CNI_ARGS="X=1").code == 4
    assert request("DEL", CNI_ARGS="X=1;junk").args == {"X": "1"}


@pytest.mark.parametrize("document", [[], "x", 7, True])
def test_prev_result_that_is_no_object(document):
    with pytest.raises(CniError, match="prevResult") as refused:
        request(conf={"prevResult": document}).prev_result()
    assert refused.value.code == 7


def test_prev_result_is_of_the_configurations_version():
    old = {"cniVersion": "0.2.0", "prevResult": {"ip4": {"ip": "10.0.0.2/24"}}}
    assert request(conf=old).prev_result().ips[0].address == "10.0.0.2/24"
    assert request().prev_result() is None
    assert request(conf={"prevResult": None}).prev_result() is None


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments", "CNI.dev/Valid-Attachments"])
def test_valid_attachments(key):
    listed = [{"containerID": "a", "ifname": "net1"}, {"ContainerId": "b", "IFNAME": "net2", "more": 1}]
    assert request("GC", {key: listed}).valid_attachments() == {("a", "net1"), ("b", "net2")}
    assert request("GC", {key: []}).valid_attachments() == frozenset()
    assert request("GC", {key: None}).valid_attachments() is None
