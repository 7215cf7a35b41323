"""``host-local`` and Go's plugin of that name in one directory: one order, one format, never a double."""

from __future__ import annotations

import fcntl
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from cni.skel import serve
from ipam.host_local_files import NetworkFiles

GO = Path("/usr/lib/cni/host-local")
# The newest version that Debian 12's containernetworking-plugins 1.1.1 speaks.
NEWEST = "1.0.0"

pytestmark = pytest.mark.skipif(not GO.exists(), reason=f"no {GO}: Debian package containernetworking-plugins")


def go(command, container_id, config, *, ifname="net1", cni_args=""):
    """Return the exit status and the document of Go's plugin."""
    done = subprocess.run(
        [GO], env=environ(command, container_id, ifname, cni_args), input=json.dumps(config).encode(),
        capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout or "null")


def ours(command, container_id, config, *, ifname="net1", cni_args=""):
    """Return the same of ours."""
    document, status = serve(
        "host-local",
        environ=environ(command, container_id, ifname, cni_args),
        stdin=io.BytesIO(json.dumps(config).encode()),
    )
    return status, json.loads(json.dumps(document))


def environ(command, container_id, ifname, cni_args=""):
    return {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container_id,
        "CNI_IFNAME": ifname,
        "CNI_NETNS": "/nonexistent/netns",
        "CNI_PATH": "/nonexistent",
        "CNI_ARGS": cni_args,
    }


BOTH = pytest.mark.parametrize(("first", "second"), [(go, ours), (ours, go)], ids=["go first", "ours first"])


@pytest.fixture
def network(tmp_path):
    """Make configurations of one network, in one of several data directories."""

    def make(ipam, *, version=NEWEST, place="shared", **keys):
        ipam = {"type": "host-local", "dataDir": str(tmp_path / place), **ipam}
        return {"cniVersion": version, "name": "rail1", "type": "sriov", "ipam": ipam, **keys}

    return make


def added(outcome):
    status, document = outcome
    assert status == 0, document
    return [ip["address"] for ip in document["ips"]]


def files(folder):
    """Return name and content of everything in a network's directory."""
    return {path.name: path.read_bytes() for path in (folder / "rail1").glob("*")}


def reserved(folder):
    return {name: text for name, text in files(folder).items() if b"\r\n" in text}


TWO_FAMILIES = {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/64"}]]}
CONFIGURATIONS = [
    {"subnet": "10.1.2.0/24"},
    {"subnet": "fd00:0:0:1::/64", "gateway": "fd00:0:0:1::ff"},
    {"subnet": "10.1.2.0/30", "gateway": "10.1.2.2"},
    {"subnet": "10.1.2.0/24", "gateway": "10.1.3.1"},
    {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.0", "rangeEnd": "10.1.2.255", "gateway": "10.1.2.254"},
    {"Subnet": "10.1.2.0/24", "RANGESTART": "10.1.2.77", "routes": [{"dst": "0.0.0.0/0"}]},
    {**TWO_FAMILIES, "routes": [{"dst": "10.0.0.0/8", "gw": "10.1.2.1"}, {"dst": "fd00:9::/64"}]},
    {"subnet": "10.7.0.0/24", **TWO_FAMILIES},
    {"ranges": [[{"subnet": "10.1.2.0/24", "rangeEnd": "10.1.2.4"}, {"subnet": "10.9.0.0/24"}]]},
    {"ranges": [[{"subnet": "10.1.2.0/24"}]], "gateway": "10.1.2.254"},
]
REFUSED = [
    {},
    {"ranges": [[]]},
    {"subnet": "10.1.2.3/24"},
    {"subnet": "10.1.2.0/31"},
    {"subnet": "fd00::/127"},
    {"subnet": "10.01.2.0/24"},
    {"subnet": "10.1.2.0/24", "rangeStart": "10.1.3.1"},
    {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.8"},
    {"subnet": "10.1.2.0/24", "rangeStart": "fd00::1"},
    {"ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "fd00::/64"}]]},
    {"ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "10.1.0.0/16"}]]},
    {"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.0.0/16"}]]},
    {"subnet": "10.1.2.0/24", "resolvConf": "/nonexistent/resolv.conf"},
]


@pytest.mark.parametrize("ipam", CONFIGURATIONS, ids=json.dumps)
def test_both_read_a_configuration_alike(network, tmp_path, ipam):
    expected = go("ADD", "c1", network(ipam, place="go"))
    assert without_empty_dns(ours("ADD", "c1", network(ipam, place="ours"))) == without_empty_dns(expected)
    assert expected[0] == 0
    assert files(tmp_path / "ours") == files(tmp_path / "go")


def without_empty_dns(outcome):
    # From 1.0.0 on Go writes "dns": {}, which says nothing.
    status, document = outcome
    return status, {key: value for key, value in document.items() if value or key != "dns"}


@pytest.mark.parametrize("ipam", REFUSED, ids=json.dumps)
def test_both_refuse_a_configuration(network, ipam):
    assert go("ADD", "c1", network(ipam, place="go"))[0] == 1
    status, error = ours("ADD", "c1", network(ipam, place="ours"))
    assert status == 1
    assert error["code"] == (5 if "resolvConf" in ipam else 7)


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_both_answer_alike_in_every_version(network, tmp_path, version):
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 192.0.2.3\nsearch a.example\n")
    ipam = {**TWO_FAMILIES, "routes": [{"dst": "0.0.0.0/0"}], "resolvConf": str(resolv_conf)}
    expected = go("ADD", "c1", network(ipam, version=version, place="go"))
    assert ours("ADD", "c1", network(ipam, version=version, place="ours")) == expected
    assert expected[0] == 0


@BOTH
def test_each_passes_check_and_undoes_the_other(network, tmp_path, first, second):
    config = network(TWO_FAMILIES)
    status, result = first("ADD", "c1", config)
    assert status == 0
    told = {**config, "prevResult": result}
    assert second("CHECK", "c1", told) == (0, None)
    assert second("DEL", "c1", told, ifname="net2") == (0, None)
    assert len(reserved(tmp_path / "shared")) == 2
    assert second("DEL", "c1", told) == (0, None)
    assert reserved(tmp_path / "shared") == {}
    assert second("CHECK", "c1", told)[0] == 1


@BOTH
def test_each_refuses_a_second_add_after_the_others_in_the_same_words(network, tmp_path, first, second):
    config = network(TWO_FAMILIES)
    assert first("ADD", "c1", config)[0] == 0
    before = files(tmp_path / "shared")
    status, error = second("ADD", "c1", config)
    assert status == 1
    assert "10.1.2.2 has been allocated to c1, duplicate allocation is not allowed" in error["msg"]
    assert files(tmp_path / "shared") == before


@BOTH
def test_each_goes_on_where_the_other_stopped(network, first, second):
    config = network(TWO_FAMILIES)
    assert added(first("ADD", "c1", config)) == ["10.1.2.2/24", "fd00::2/64"]
    assert first("DEL", "c1", config)[0] == 0
    assert added(second("ADD", "c2", config)) == ["10.1.2.3/24", "fd00::3/64"]
    asked = {**config, "runtimeConfig": {"ips": ["10.1.2.9", "fd00::a/64"]}}
    assert added(second("ADD", "c3", asked)) == ["10.1.2.9/24", "fd00::a/64"]
    assert added(first("ADD", "c4", config)) == ["10.1.2.10/24", "fd00::b/64"]


@BOTH
def test_each_counts_the_others_addresses_as_taken(network, first, second):
    config = network({"subnet": "10.1.2.0/29"})
    given = [added((first, second)[n % 2]("ADD", f"c{n}", config)) for n in range(5)]
    assert sorted(given) == [[f"10.1.2.{n}/29"] for n in range(2, 7)]
    for plugin in (first, second):
        status, error = plugin("ADD", "late", config)
        assert status == 1
        assert "no IP addresses available in range set: 10.1.2.1-10.1.2.6" in error["msg"]
        status, error = plugin("ADD", "late", {**config, "args": {"cni": {"ips": ["10.1.2.4"]}}})
        assert status == 1
        assert "requested IP address 10.1.2.4 is not available in range set" in error["msg"]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_addresses_is_the_same_whoever_is_called(network, tmp_path, seed):
    """One history of calls, once by Go's plugin alone and once by both in turn, ends alike at every call.

    Without those where Go's does harm: a refused ADD that gives away what the attachment holds, or moves the round
    robin of a set on when another set is full.
    """
    ipam = {
        "ranges": [
            [
                {"subnet": "10.1.2.0/28", "rangeStart": "10.1.2.3", "gateway": "10.1.2.7"},
                {"subnet": "10.9.0.0/29", "gateway": "10.9.0.6"},
            ],
            [{"subnet": "fd00::/120"}],
        ]
    }
    rng = random.Random(seed)
    alone, shared = network(ipam, place="go"), network(ipam)
    for _ in range(60):
        command, container_id = rng.choice(("ADD", "ADD", "DEL")), f"c{rng.randrange(20)}"
        arguments = {"ifname": rng.choice(("net1", "net2"))}
        holder = f"{container_id}\r\n{arguments['ifname']}".encode()
        if command == "ADD" and rng.random() < 0.3 and holder not in reserved(tmp_path / "go").values():
            arguments["cni_args"] = f"IP=10.1.2.{rng.randrange(3, 7)}"
        expected = go(command, container_id, alone, **arguments)
        found = rng.choice((go, ours))(command, container_id, shared, **arguments)
        assert found[0] == expected[0], (found, expected)
        if expected[0] == 0 and command == "ADD":
            assert added(found) == added(expected)
        assert reserved(tmp_path / "shared") == reserved(tmp_path / "go")
    assert files(tmp_path / "shared") == files(tmp_path / "go")


def test_two_hundred_at_once_get_an_address_each_and_each_deletes_the_others(network, tmp_path, monkeypatch):
    # Each writes to the disk several times while it has the lock: where that is slow, the last one waits long.
    monkeypatch.setitem(NetworkFiles.__init__.__kwdefaults__, "timeout_s", 600.0)
    config = network(TWO_FAMILIES)
    outcomes = at_once("ADD", config, tmp_path, {f"c{n}": ("go", "ours")[n % 2] for n in range(200)})
    given = [address for outcome in outcomes.values() for address in added(outcome)]
    assert len(set(given)) == len(given) == 400
    on_disk = {name: text.split(b"\r\n")[0].decode() for name, text in reserved(tmp_path / "shared").items()}
    told = {
        address.partition("/")[0]: container_id
        for container_id, outcome in outcomes.items()
        for address in added(outcome)
    }
    assert on_disk == told
    outcomes = at_once("DEL", config, tmp_path, {f"c{n}": ("ours", "go")[n % 2] for n in range(200)})
    assert {status for status, _ in outcomes.values()} == {0}
    assert reserved(tmp_path / "shared") == {}


def at_once(command, config, tmp_path, plugins):
    """Run one call per container, all ready before the first begins; ours each in a process of its own."""
    gate, opener = os.pipe()
    sys.stdout.flush()
    children = {
        container_id: waiting(lambda container_id=container_id: ours(command, container_id, config), gate, opener, out)
        for container_id, plugin in plugins.items()
        if plugin == "ours" and (out := tmp_path / f"{container_id}.{command}")
    }
    running = {
        container_id: subprocess.Popen(
            [GO], env=environ(command, container_id, "net1"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for container_id, plugin in plugins.items()
        if plugin == "go"
    }
    # Go's wait for the end of their stdin, ours for the end of the pipe.
    os.close(gate)
    os.close(opener)
    for process in running.values():
        process.stdin.write(json.dumps(config).encode())
        process.stdin.close()
    outcomes = {}
    for container_id, process in running.items():
        output = process.stdout.read()
        outcomes[container_id] = process.wait(), json.loads(output or b"null")
        process.stdout.close()
    for container_id, child in children.items():
        assert os.waitpid(child, 0)[1] == 0
        outcomes[container_id] = tuple(json.loads((tmp_path / f"{container_id}.{command}").read_text()))
    return outcomes


def waiting(act, gate, opener, out):
    """Fork a child that waits for the gate, acts, and writes the outcome to a file; return its process ID."""
    child = os.fork()
    if child:
        return child
    try:
        os.close(opener)
        os.read(gate, 1)
        out.write_text(json.dumps(act()))
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def test_go_waits_for_our_lock(network, tmp_path):
    config = network(TWO_FAMILIES)
    assert ours("ADD", "c1", config)[0] == 0
    with open(tmp_path / "shared" / "rail1" / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        running = subprocess.Popen(
            [GO], env=environ("ADD", "c2", "net1"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        running.stdin.write(json.dumps(config).encode())
        running.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(timeout=1)
        assert len(reserved(tmp_path / "shared")) == 2
    assert json.loads(running.stdout.read())["ips"][0]["address"] == "10.1.2.3/24"
    assert running.wait() == 0
    running.stdout.close()


def test_what_a_killed_go_plugin_left_empty_is_given_again(network, tmp_path):
    config = network({"subnet": "10.1.2.0/30"})
    folder = tmp_path / "shared" / "rail1"
    folder.mkdir(parents=True)
    (folder / "10.1.2.2").touch()
    assert go("ADD", "c1", config)[0] == 1  # nobody's, for ever
    assert added(ours("ADD", "c1", config)) == ["10.1.2.2/30"]


def test_gc_takes_what_go_left(network, tmp_path):
    config = network(TWO_FAMILIES)
    for container_id in ("c1", "c2"):
        assert go("ADD", container_id, config)[0] == 0
    valid = [{"containerID": "c2", "ifname": "net1"}]
    assert ours("GC", "", {**config, "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid}) == (0, None)
    assert sorted(reserved(tmp_path / "shared")) == ["10.1.2.3", "fd00::3"]
