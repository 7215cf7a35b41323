"""Tests in real network namespaces; they need root."""
