"""Kubernetes networking, built live in your own kernel."""

__version__ = "0.1.0"
