"""The lab's command line: ``python3 -m tests.vm.lab build`` and ``... run [options] -- command [arg...]``.

The guest's root is this machine's own root directory, read-only over 9p under a tmpfs, so the command finds the same
programs and files under the same paths, and nothing it writes is kept. $VMLAB_OUT in the guest is the one directory
that is: it is --out here. $VMLAB is 1 there. Needs no library, so that it runs before there is a venv.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.vm.lab import boot
from tests.vm.lab.artefacts import LabUnavailable, say
from tests.vm.lab.build import ensure_built
from tests.vm.lab.machine import Machine


def main() -> int:
    """Return the command's status; 124 timed out, 125 the machine failed, 3 the lab can't be had here."""
    args = _parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        ensure_built()
    except LabUnavailable as error:
        say(str(error))
        return 3
    if args.action == "build":
        return 0
    machine = Machine(
        vfs=args.vfs,
        nics=args.nics,
        mem_mib=args.mem,
        cpus=args.cpus,
        iommu=args.iommu,
        timeout_s=args.timeout,
        verbose=args.verbose,
        accel=args.accel,
    )
    env = dict(item.split("=", 1) for item in args.env)
    with tempfile.TemporaryDirectory(prefix="vmlab-out-") as scratch:
        out = Path(args.out or scratch).resolve()
        out.mkdir(parents=True, exist_ok=True)
        return boot.run(machine, _command(args.command), out=out, env=env, stdout=sys.stdout.buffer)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _command(command: list[str]) -> list[str]:
    """Return the command with a path to it that holds in the guest, should it be a file of the current directory."""
    program = Path(command[0])
    return [str(program.absolute()), *command[1:]] if program.is_file() else command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmlab", description="Run a command as root in a VM with an SR-IOV NIC.")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("build", help="kernel, modules and initramfs; done at once when they are there")
    run = actions.add_parser("run", help="boot, run the command, return its status")
    defaults = Machine()
    run.add_argument("--vfs", type=int, default=defaults.vfs, help="VFs to make on each NIC first, 0 to 7")
    run.add_argument("--nics", type=int, default=defaults.nics, help="igb NICs, all on one wire (%(default)s)")
    run.add_argument("--mem", type=int, default=defaults.mem_mib, metavar="MIB", help="(%(default)s)")
    run.add_argument("--cpus", type=int, default=defaults.cpus, help="(%(default)s)")
    run.add_argument("--iommu", action="store_true", help="emulate VT-d, for vfio-pci")
    run.add_argument("--timeout", type=int, default=defaults.timeout_s, metavar="S", help="boot included (%(default)s)")
    run.add_argument("--out", help="a directory that the guest may write, as $VMLAB_OUT")
    run.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    run.add_argument("--accel", default=defaults.accel, help="qemu's accelerator, or $VMLAB_ACCEL (%(default)s)")
    run.add_argument("-v", "--verbose", action="store_true", help="the boot's console too")
    run.add_argument("command", nargs="+")
    return parser


if __name__ == "__main__":
    sys.exit(main())
