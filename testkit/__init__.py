"""Shared by tests and bench: real servers, an installation for each test, proxies, waiting."""
