"""OCI: references, descriptors, manifests, and the places that hold images."""
