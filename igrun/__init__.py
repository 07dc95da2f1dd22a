"""See what a Linux machine, a container or a Kubernetes cluster is really doing."""
