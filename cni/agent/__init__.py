"""The agent: every executable warm. One parent that never blocks, one forked child for each request."""
