"""Tests in guests: Debian kernels under QEMU, with this machine's root file system."""
