"""Tests that need no privilege and touch nothing outside their own directory."""
