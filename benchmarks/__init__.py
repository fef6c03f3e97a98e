"""The same work by k8snet and by its peers, side by side: python -m benchmarks."""
