"""Docs stay true: every sample of README and docs/ is read by the models, every command of theirs is run.

A command that no rule below knows fails, so that nobody can write one down without saying how it is tried.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from conf.defaults import filled
from conf.schema import MODELS
from conf.section import read

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")


class Sample(NamedTuple):
    """One fenced block of a page."""

    page: str
    language: str
    text: str


def samples(*languages: str) -> list[Sample]:
    return [
        Sample(page.relative_to(ROOT).as_posix(), match[1], match[2])
        for page in PAGES
        for match in _FENCE.finditer(page.read_text(encoding="utf-8"))
        if match[1] in languages
    ]


def named(sample: Sample) -> str:
    return f"{sample.page}: {sample.text.strip().splitlines()[0][:40]}"


def configurations(document: dict[str, object]) -> Iterator[dict[str, object]]:
    plugins = document.get("plugins")
    for plugin in plugins if isinstance(plugins, list) else [document]:
        yield {"cniVersion": document["cniVersion"], "name": document["name"], **plugin}


def read_configuration(config: dict[str, object]) -> None:
    """Read a plugin's configuration and its ipam object; what Multus and the node add is added."""
    name = str(config["type"])
    given = filled(config, {"deviceID": "0000:01:10.0", "pciBusID": "0000:01:10.0"})
    ipam = config.get("ipam")
    if isinstance(ipam, dict) and ipam:
        read(MODELS[str(ipam["type"])], filled(ipam, {"datastore": "local"}), where=name)
    if name in MODELS and name not in ("whereabouts", "host-local", "static"):
        read(MODELS[name], given, where=name)


@pytest.mark.parametrize("sample", samples("json"), ids=named)
def test_json_sample_is_what_the_models_read(sample: Sample) -> None:
    document = json.loads(sample.text)
    if "code" in document:
        assert sorted(document) == ["cniVersion", "code", "details", "msg"]
        return
    for config in configurations(document):
        read_configuration(config)


@pytest.mark.parametrize("sample", samples("yaml"), ids=named)
def test_nad_holds_a_configuration_that_the_models_read(sample: Sample) -> None:
    kind = re.search(r"^kind: (\w+)$", sample.text, re.MULTILINE)
    if kind is None or kind[1] != "NetworkAttachmentDefinition":
        pytest.fail(f"no test knows how to read this YAML of {sample.page}")
    config = re.search(r"^  config: [|>]-?\n((?:    .*\n|\n)+)", sample.text, re.MULTILINE)
    assert config, "the NAD has no config"
    for plugin in configurations(json.loads(textwrap.dedent(config[1]))):
        read_configuration(plugin)


@pytest.mark.parametrize("sample", samples("toml"), ids=named)
def test_defaults_are_tables_of_plugins(sample: Sample) -> None:
    tables = tomllib.loads(sample.text)
    assert tables
    assert tables.keys() <= MODELS.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in _LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not missing


def test_every_fence_names_a_language_that_is_tried() -> None:
    languages = {
        match[1] for page in PAGES for match in re.finditer(r"^```(\w*)\n", page.read_text(encoding="utf-8"), re.M)
    }
    # "" is how a fence ends; "text" is for what a program prints.
    assert languages <= {"", "sh", "json", "yaml", "toml", "text"}


def command_lines() -> list[str]:
    lines = (line.split("#")[0].strip() for sample in samples("sh") for line in sample.text.splitlines())
    return sorted({line for line in lines if line})


@pytest.mark.parametrize("line", command_lines())
def test_command_does_what_the_page_says(line: str, archives: Path, tmp_path: Path) -> None:
    words = shlex.split(line)
    # "Nothing of the node is replaced by a test": where a page says /opt/cni/bin, a folder of this test stands in.
    words = [str(tmp_path / "cni-bin") if word == "/opt/cni/bin" else word for word in words]
    if words[0] == "scripts/test.sh":
        words += ["--version"]  # this very test is run by it
    elif words[0] == "scripts/quickstart.sh" and len(words) == 1:
        words += ["--help"]  # run in full by test_quickstart.py
    elif words[0] == "scripts/install-binaries.sh":
        if "--dest" not in words:
            words += ["--dest", str(tmp_path / "cni-bin")]
        words += ["--runtime-dir", str(tmp_path / "runtime")]
        if "--python" in words and not Path(words[words.index("--python") + 1]).exists():
            words[words.index("--python") + 1] = sys.executable
        if "--restore" in words:
            subprocess.run([word for word in words if word != "--restore"], cwd=ROOT, check=True)
    elif words[0] == "vferry":
        words[0] = str(archives / "vferry")
        if words[1] == "run":  # run in full, with these options, by scripts/quickstart-pods.sh in the VM
            folder = ROOT / words[words.index("--conf-dir") + 1]
            assert words[3] in {json.loads(path.read_text())["name"] for path in folder.glob("*.conflist")}
            words += ["--help"]
        if words[1] == "agent":
            words += ["--help"]  # what it does is tried by test_agent
        if words[1] == "ipam":
            words += ["--help"]  # options are checked before; what it does with a store is tried by tests/stores
    elif words[0] == "cp":
        words[-1] = str(tmp_path)
    elif words[0] == "systemctl":  # no service manager here: the units are there
        words = ["ls", *(f"conf/deploy/{word}" for word in words if word.startswith("vferry-"))]
    elif words[0] in ("docker", "kubectl"):  # not here: tests/unit/test_deploy reads what they are given
        words = ["ls", *(word for word in words if word.startswith("conf/deploy/"))]
    elif words[0] == "build/venv/bin/python" and words[1] in ("bench/plugins.py", "bench/cold.py", "bench/broker.py"):
        words = [sys.executable, *words[1:], "--help"]  # a round of it is run by test_bench
    else:
        pytest.fail(f"no rule says how this command is tried: {line}")
    done = subprocess.run(
        words,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if "this machine has no SR-IOV NIC" in done.stderr:
        assert words[1:] == ["vfs"]  # its table is tried by tests/vm
        return
    assert done.returncode == 0, done.stdout + done.stderr
