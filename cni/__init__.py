"""Which link, in which order, who asked: the protocol skeleton and one class per plugin."""
