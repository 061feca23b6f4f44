"""Fixtures that several folders use."""

pytest_plugins = ["tests.object_storage"]
