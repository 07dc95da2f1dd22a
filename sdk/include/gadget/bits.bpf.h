/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_BITS_BPF_H
#define __GADGET_BITS_BPF_H

#include <gadget/base.h>
#include <bpf/bpf_helpers.h>

#pragma clang diagnostic push
/* The C library has a log2() of its own, of floating-point numbers. */
#pragma clang diagnostic ignored "-Wincompatible-library-redeclaration"

/* The position of the highest bit; 0 for 0. */
static __always_inline __u64 log2(__u32 value)
{
	__u32 result = 0;

	for (__u32 shift = 16; shift; shift /= 2) {
		if (value >> shift) {
			value >>= shift;
			result += shift;
		}
	}
	return result;
}

/* The slot of a histogram: 0 in slot 0, and v in the one whose values end at 2^slot - 1. */
static __always_inline __u64 get_slot_idx(__u64 value)
{
	__u32 high = value >> 32;

	if (!value)
		return 0;
	return (high ? log2(high) + 32 : log2(value)) + 1;
}

#pragma clang diagnostic pop

#endif /* __GADGET_BITS_BPF_H */
