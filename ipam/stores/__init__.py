"""The datastores behind one contract (contract.py); opened by name through the door in ipam."""
