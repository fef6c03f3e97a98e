"""What every contender builds: a bridge with pods, or a cluster, called and numbered alike.

Only the standard library, since Mininet runs with the system's Python.
"""
from __future__ import annotations

__all__ = [
    "BRIDGE",
    "GATEWAY",
    "NODE",
    "PREFIX",
    "address",
    "node_address",
    "pod",
    "pod_cidr",
    "pod_gateway",
    "port",
]

NODE = "node"
BRIDGE = "br0"
GATEWAY = "10.244.0.1"
PREFIX = 16
PODS_A_BLOCK = 250


def pod(number: int) -> str:
    """Return the name of a pod's netns."""
    return f"pod{number}"


def port(number: int) -> str:
    """Return the name of a pod's bridge port."""
    return f"veth{number}"


def address(number: int) -> str:
    """Return a pod's address, without prefix length."""
    return f"10.244.{1 + number // PODS_A_BLOCK}.{1 + number % PODS_A_BLOCK}"


def pod_cidr(node: int) -> str:
    """Return the network of the pods of a cluster's node; nodes count from 1."""
    return f"10.244.{node}.0/24"


def pod_gateway(node: int) -> str:
    """Return the address of a cluster's node that its pods know."""
    return f"10.244.{node}.1"


def node_address(node: int) -> str:
    """Return the address of a cluster's node that the other nodes know."""
    return f"172.18.0.{node}"
