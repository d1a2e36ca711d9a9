"""Runs the scenarios of `clients/conformance` through the library's public API."""
