"""The edge of a cluster: Ingresses and HTTPRoutes, one model of both, and the nginx configuration that it makes."""
