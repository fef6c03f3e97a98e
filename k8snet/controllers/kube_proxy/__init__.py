"""kube-proxy: one table of service ports, and a renderer for each data plane."""
