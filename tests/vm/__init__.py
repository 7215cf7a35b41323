"""Tests that run in the VM lab, on an emulated NIC with VFs.

pytest is called on the host as ever. Each module here gets a machine of its own, described by its constant LAB (the
fields of tests.vm.lab.machine.Machine, e.g. ``LAB = {"vfs": 4, "iommu": True}``); its tests run in that machine, in
one pytest, as root, with the host's files, and are reported here as they finish.
"""
