/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * The C library's headers take a BPF program for a 32-bit one, and look for what only a 32-bit C
 * library brings. A BPF program calls no library, so there is nothing to say here.
 */
