"""Controllers: from what Kubernetes objects ask for to what the kernel holds."""
