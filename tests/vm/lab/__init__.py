"""The VM lab: boots a throw-away machine with an emulated SR-IOV NIC and runs a command in it as root."""
