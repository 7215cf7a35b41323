"""Tests of the built archives, as a runtime calls them."""
