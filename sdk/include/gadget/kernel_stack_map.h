/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_KERNEL_STACK_MAP_H
#define __GADGET_KERNEL_STACK_MAP_H

#include <gadget/types.h>
#include <bpf/bpf_helpers.h>

#define GADGET_KERNEL_STACK_DEPTH 127
#define GADGET_KERNEL_STACKS 10000

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, GADGET_KERNEL_STACKS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, GADGET_KERNEL_STACK_DEPTH * sizeof(__u64));
} ig_kstack SEC(".maps");

/* The id of the running task's kernel stack in ig_kstack; from 0xffffff00 on: there is none. */
static __always_inline long gadget_get_kernel_stack(void *ctx)
{
	return bpf_get_stackid(ctx, &ig_kstack, BPF_F_FAST_STACK_CMP);
}

#endif /* __GADGET_KERNEL_STACK_MAP_H */
