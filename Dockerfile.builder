# The builder image: what `ig image build` compiles eBPF programs with where this machine has no compiler.
#
# Any image with clang and libbpf's headers will do; igrun mounts its own headers and the gadget. For gadgets with a
# part in Go or Rust add that compiler:
#
#     docker build -t builder --build-arg PACKAGES="clang libbpf-dev golang-go" - < Dockerfile.builder
#     ig image build --builder-image builder --builder-image-pull never FOLDER
ARG BASE=docker.io/library/debian:trixie-slim
FROM ${BASE}
ARG PACKAGES="clang libbpf-dev"
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ${PACKAGES} \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/* /var/cache/debconf/* /var/log/* /usr/share/doc /usr/share/man
