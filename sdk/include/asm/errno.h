/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * <linux/errno.h>, which libbpf's usdt.bpf.h includes, asks for this file, and Debian and Ubuntu
 * keep it where only compilers for this machine look. Both our architectures have the usual
 * numbers.
 */
#include <asm-generic/errno.h>
