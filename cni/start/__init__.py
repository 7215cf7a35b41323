"""From the archive into the unpacked runtime, in stdlib and Python 3.9 alone; the archive has it as ``start``."""
