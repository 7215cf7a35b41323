"""The tests; rooms by privilege: unit, netns, contract, stores, vm."""
