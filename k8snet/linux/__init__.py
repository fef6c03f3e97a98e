"""What Linux does, one primitive a file; knows nothing of Kubernetes."""
