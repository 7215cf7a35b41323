"""The image and the DaemonSet say the same as the code: paths, capabilities, options, ports, patience.

That the agent works with what the manifest gives it is tried in tests/contract/test_agent_container.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cni.agent.crew import UNDO_PATIENCE_S
from cni.cli.agent import agent
from cni.cli.reconcile import reconcile
from cni.linux.capabilities import NEEDED
from conf.agent import AgentConf

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "conf" / "deploy"
DOCUMENTS = list(yaml.safe_load_all((DEPLOY / "daemonset.yaml").read_text()))
(DAEMON_SET,) = (each for each in DOCUMENTS if each["kind"] == "DaemonSet")
POD = DAEMON_SET["spec"]["template"]["spec"]
AGENT, NODE_STARTUP = POD["containers"]
(INSTALL,) = POD["initContainers"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()

# Of the API's types, what the manifest may say: a misspelt field would be dropped, or refused, by the API server.
# Source: Kubernetes API reference v1.30, apps/v1 and core/v1. A list holds the fields of its items.
STRINGS: dict[str, Any] = {"*": None}
META = {"name": None, "namespace": None, "labels": STRINGS}
PROBE = {
    "httpGet": {"host": None, "port": None, "path": None},
    "periodSeconds": None,
    "timeoutSeconds": None,
    "failureThreshold": None,
}
CONTAINER = {
    "name": None,
    "image": None,
    "imagePullPolicy": None,
    "command": None,
    "args": None,
    "volumeMounts": [{"name": None, "mountPath": None, "readOnly": None}],
    "securityContext": {"readOnlyRootFilesystem": None, "capabilities": {"add": None, "drop": None}},
    "resources": {"requests": STRINGS},
    "startupProbe": PROBE,
    "readinessProbe": PROBE,
    "livenessProbe": PROBE,
}
POD_SPEC = {
    "serviceAccountName": None,
    "automountServiceAccountToken": None,
    "enableServiceLinks": None,
    "hostNetwork": None,
    "hostPID": None,
    "dnsPolicy": None,
    "priorityClassName": None,
    "nodeSelector": STRINGS,
    "tolerations": [{"operator": None}],
    "terminationGracePeriodSeconds": None,
    "securityContext": {
        "seccompProfile": {"type": None},
        "appArmorProfile": {"type": None},
        "seLinuxOptions": {"type": None},
    },
    "initContainers": [CONTAINER],
    "containers": [CONTAINER],
    "volumes": [{"name": None, "hostPath": {"path": None, "type": None}}],
}
TOP = {"apiVersion": None, "kind": None, "metadata": META}
KINDS: dict[str, dict[str, Any]] = {
    "ServiceAccount": {**TOP, "automountServiceAccountToken": None},
    "DaemonSet": {
        **TOP,
        "spec": {
            "selector": {"matchLabels": STRINGS},
            "minReadySeconds": None,
            "updateStrategy": {"type": None, "rollingUpdate": {"maxSurge": None, "maxUnavailable": None}},
            "template": {"metadata": META, "spec": POD_SPEC},
        },
    },
}


def unknown(given: Any, known: Any, path: str = "") -> list[str]:
    """Return the fields that the type does not have."""
    if known is None or known == STRINGS:
        return []
    if isinstance(known, list):
        return [each for at, item in enumerate(given) for each in unknown(item, known[0], f"{path}[{at}]")]
    found = [f"{path}.{key}" for key in given if key not in known]
    return found + [each for key in given if key in known for each in unknown(given[key], known[key], f"{path}.{key}")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each["kind"])
def test_manifest_says_what_the_api_knows(document: dict[str, Any]) -> None:
    assert unknown(document, KINDS[document["kind"]]) == []


def test_unknown_field_is_found() -> None:
    assert unknown({"spec": {"template": {"spec": {"hostPid": True}}}}, KINDS["DaemonSet"]) == [
        ".spec.template.spec.hostPid"
    ]


def test_names_of_the_manifest_fit_each_other() -> None:
    (account,) = (each for each in DOCUMENTS if each["kind"] == "ServiceAccount")
    assert POD["serviceAccountName"] == account["metadata"]["name"]
    assert {each["metadata"]["namespace"] for each in DOCUMENTS} == {"kube-system"}
    labels = DAEMON_SET["spec"]["template"]["metadata"]["labels"]
    assert DAEMON_SET["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert INSTALL["image"] == AGENT["image"] == NODE_STARTUP["image"]
    assert (AGENT["name"], NODE_STARTUP["name"]) == ("agent", "node-startup")
    mounted = [mount for each in (AGENT, INSTALL) for mount in each["volumeMounts"]]
    assert {mount["name"] for mount in mounted} == {volume["name"] for volume in POD["volumes"]}
    # Paths in records and sockets are the host's: in the container they are the same.
    of_host = {volume["name"]: volume["hostPath"]["path"] for volume in POD["volumes"]}
    assert all(of_host[mount["name"]] == mount["mountPath"] for mount in mounted)


def test_agent_is_given_the_capabilities_that_it_keeps_and_no_other() -> None:
    given = AGENT["securityContext"]["capabilities"]
    assert given["drop"] == ["ALL"]
    assert [f"CAP_{name}" for name in given["add"]] == sorted(NEEDED)
    assert "privileged" not in AGENT["securityContext"]


def test_systemd_unit_is_given_them_too() -> None:
    unit = (DEPLOY / "vferry-agent.service").read_text()
    given = {name for line in re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE) for name in line.split()}
    # To drop from the bounding set what it does not keep.
    assert given - {"CAP_SETPCAP"} == set(NEEDED)


def test_systemd_leaves_the_children_alone() -> None:
    """What a request does is never broken off: not by a stop, nor by the end of an agent that was killed or hung.

    systemd.kill(5): with "mixed" what outlives the main process is killed, though nobody asked it to end.
    """
    unit = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "vferry-agent.service").read_text(), re.MULTILINE))
    assert (unit["KillMode"], unit["OOMPolicy"]) == ("process", "continue")
    assert int(unit["TimeoutStopSec"]) > AgentConf().request_timeout_s + UNDO_PATIENCE_S


def test_start_up_pass_is_one_command_wherever_it_runs() -> None:
    """Its options are the command's own, and it waits nowhere for the agent, nor the agent for it."""
    unit = (DEPLOY / "vferry-node-startup.service").read_text()
    (started,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    shell, script = NODE_STARTUP["command"], NODE_STARTUP["args"][0]
    assert shell == ["/bin/sh", "-c"]
    assert f"until {started} --host-mounts=/proc/1/ns/mnt; do" in script
    assert script.rstrip().endswith("exec sleep infinity")  # a container that ends would be started again
    vferry, ipam, subcommand, *words = started.split()
    assert (vferry, ipam, subcommand) == (AGENT["command"][0], "ipam", "reconcile")
    known = {word for parameter in reconcile.params for word in parameter.opts}
    assert {*words, "--host-mounts"} <= known
    order = re.findall(r"^(?:Before|RequiredBy)=(.*)$", unit, re.MULTILINE)
    order += re.findall(r"^(?:After|Wants|Requires)=(.*)$", (DEPLOY / "vferry-agent.service").read_text(), re.MULTILINE)
    assert order == []


def test_start_up_pass_is_given_less_than_the_agent() -> None:
    unit = (DEPLOY / "vferry-node-startup.service").read_text()
    assert re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE) == ["CAP_DAC_OVERRIDE"]
    given = NODE_STARTUP["securityContext"]
    assert given["capabilities"] == {"drop": ["ALL"], "add": ["DAC_OVERRIDE", "SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE"]}
    assert given["readOnlyRootFilesystem"] is True and "volumeMounts" not in NODE_STARTUP


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.outside("has systemd check the units")
def test_systemd_understands_every_line_of_the_units(tmp_path: Path) -> None:
    units = []
    for path in (*DEPLOY.glob("*.service"), *DEPLOY.glob("*.socket")):
        units.append(tmp_path / path.name)
        units[-1].write_text(path.read_text().replace(AGENT["command"][0], sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    told = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "vferry" in line]
    assert (len(units), done.returncode, told) == (3, 0, [])


def options() -> dict[str, str]:
    return dict(word.removeprefix("--").partition("=")[::2] for word in AGENT["args"])


def test_options_of_the_agent_are_its_own() -> None:
    known = {word.removeprefix("--") for parameter in agent.params for word in parameter.opts}
    assert options().keys() <= known
    conf = AgentConf.model_validate({key.replace("-", "_"): value or True for key, value in options().items()})
    assert conf.host_mounts.startswith("/proc/1/")
    assert POD["hostPID"] is True and POD["hostNetwork"] is True


def test_probes_ask_the_pages() -> None:
    host, _, port = options()["metrics"].rpartition(":")
    paths = {}
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = AGENT[kind]["httpGet"]
        assert (asked["host"], str(asked["port"])) == (host, port)
        paths[kind] = asked["path"]
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}


def test_new_agent_comes_before_the_old_one_goes() -> None:
    assert DAEMON_SET["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    # A container that ends is started again, whatever its exit status.
    assert "stand-by" in options()
    # Kubernetes makes host ports of declared ones, and then two pods do not fit on a node.
    assert "ports" not in AGENT
    longest = AgentConf().request_timeout_s + UNDO_PATIENCE_S
    assert POD["terminationGracePeriodSeconds"] > longest


def test_init_step_knows_its_options() -> None:
    script = (ROOT / "scripts" / "install-binaries.sh").read_text()
    for word in INSTALL["args"]:
        assert f"#   {word.split('=')[0]} " in script
    assert Path(INSTALL["command"][0]).name == "install-binaries.sh"


def dockerfile(instruction: str) -> list[list[str]]:
    text = DOCKERFILE.replace("\\\n", " ")
    return [shlex.split(line[len(instruction) :]) for line in text.splitlines() if line.startswith(f"{instruction} ")]


def test_image_has_what_the_builder_packs_and_the_manifest_runs() -> None:
    (place,) = dockerfile("WORKDIR")[0]
    copied = {source.rstrip("/"): target.rstrip("/") for source, target in dockerfile("COPY")}
    assert all((ROOT / source).exists() for source in copied)
    assert {"LICENSE", "zipapp", "conf", "ipam", "cni"} <= copied.keys()
    assert (ROOT / "zipapp" / "requirements.lock").exists()
    assert INSTALL["command"] == [f"{place}/scripts/install-binaries.sh"]
    (run,) = dockerfile("RUN")
    # Without options it goes where the manifest runs it from, and its libraries where the archive looks for them.
    assert not {"--dest", "--runtime-dir"} & set(run)
    assert AGENT["command"][0] == "/opt/cni/bin/vferry"
    assert "/opt/cni/bin" not in {mount["mountPath"] for mount in AGENT["volumeMounts"]}


def test_builder_is_sent_what_is_copied_and_no_more() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert sent == {source.rstrip("/") for source, _target in dockerfile("COPY")}


def test_first_line_is_the_one_that_the_image_was_built_with() -> None:
    """Otherwise the init step would build anew, or the nodes be given another build than the agent's."""
    arguments = dict(word.split("=", 1) for (word,) in dockerfile("ARG"))
    assert f"--python={arguments['NODE_PYTHON']}" in INSTALL["args"]
    assert DOCKERFILE.index("FROM python:${PYTHON}-slim") < DOCKERFILE.index("ARG NODE_PYTHON")
    assert tuple(map(int, arguments["PYTHON"].split("."))) >= (3, 10)


@pytest.mark.parametrize("path", sorted((DEPLOY / "crds").glob("*.yaml")), ids=lambda path: path.stem)
def test_columns_that_kubectl_prints_are_of_the_schema(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        for version in document["spec"]["versions"]:
            for column in version.get("additionalPrinterColumns", []):
                _, *keys = column["jsonPath"].split(".")
                if keys[0] == "metadata":  # the API's own
                    continue
                schema = version["schema"]["openAPIV3Schema"]
                for key in keys:
                    schema = schema["properties"][key]
                assert schema["type"] == {"date": "string"}.get(column["type"], column["type"])
                assert (schema.get("format") == "date-time") == (column["type"] == "date")
