/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_FNV1A_H
#define __GADGET_FNV1A_H

#include <gadget/base.h>
#include <bpf/bpf_helpers.h>

/*
 * Fowler-Noll-Vo hash 1a, of 32 and 64 bits: start with fnv_32a_init() and pass the hash on through
 * fnv_32a_update_*(). Integers go in as they lie in memory, least significant byte first.
 */

static __always_inline __u32 fnv_32a_init(void)
{
	return 0x811c9dc5;
}

static __always_inline __u32 fnv_32a_update_u8(__u32 hash, __u8 value)
{
	return (hash ^ value) * 0x01000193;
}

static __always_inline __u32 fnv_32a_update_u16(__u32 hash, __u16 value)
{
	hash = fnv_32a_update_u8(hash, value);
	return fnv_32a_update_u8(hash, value >> 8);
}

static __always_inline __u32 fnv_32a_update_u32(__u32 hash, __u32 value)
{
	hash = fnv_32a_update_u16(hash, value);
	return fnv_32a_update_u16(hash, value >> 16);
}

static __always_inline __u32 fnv_32a_update_u64(__u32 hash, __u64 value)
{
	hash = fnv_32a_update_u32(hash, value);
	return fnv_32a_update_u32(hash, value >> 32);
}

static __always_inline __u64 fnv_64a_init(void)
{
	return 0xcbf29ce484222325ULL;
}

static __always_inline __u64 fnv_64a_update_u8(__u64 hash, __u8 value)
{
	return (hash ^ value) * 0x100000001b3ULL;
}

static __always_inline __u64 fnv_64a_update_u16(__u64 hash, __u16 value)
{
	hash = fnv_64a_update_u8(hash, value);
	return fnv_64a_update_u8(hash, value >> 8);
}

static __always_inline __u64 fnv_64a_update_u32(__u64 hash, __u32 value)
{
	hash = fnv_64a_update_u16(hash, value);
	return fnv_64a_update_u16(hash, value >> 16);
}

static __always_inline __u64 fnv_64a_update_u64(__u64 hash, __u64 value)
{
	hash = fnv_64a_update_u32(hash, value);
	return fnv_64a_update_u32(hash, value >> 32);
}

#endif /* __GADGET_FNV1A_H */
