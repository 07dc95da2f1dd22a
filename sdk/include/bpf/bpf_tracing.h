/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_BPF_TRACING_H
#define __GADGET_BPF_TRACING_H

#include_next <bpf/bpf_tracing.h>

/* Names that libbpf's header has only since 1.2. */
#ifndef BPF_UPROBE
#define BPF_UPROBE(name, args...) BPF_KPROBE(name, ##args)
#endif
#ifndef BPF_URETPROBE
#define BPF_URETPROBE(name, args...) BPF_KRETPROBE(name, ##args)
#endif

#endif /* __GADGET_BPF_TRACING_H */
