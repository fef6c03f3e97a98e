"""The tests of k8snet; `./run test` passes them all."""
