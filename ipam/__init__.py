"""Which address: ranges, choice, the IPAM plugins, and the stores behind one contract."""
