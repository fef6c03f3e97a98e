"""Kubernetes objects, manifests and the cluster that they describe."""
