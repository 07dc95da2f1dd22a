/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_BASE_H
#define __GADGET_BASE_H

/*
 * The kernel's integer types and bool. A gadget chooses where they come from by what it includes
 * first: vmlinux.h, or the kernel's UAPI headers. The two exclude each other, so a header of ours
 * brings one in only where the gadget has neither.
 */
#if !defined(__VMLINUX_H__) && !defined(_LINUX_TYPES_H)
#ifdef GADGET_TYPE_NETWORKING
#include <linux/bpf.h>
#else
#include <vmlinux.h>
#endif
#endif

#ifndef __VMLINUX_H__
#include <stdbool.h>
#include <stddef.h>
#endif

#ifndef TASK_COMM_LEN
#define TASK_COMM_LEN 16
#endif

#endif /* __GADGET_BASE_H */
