// SPDX-License-Identifier: GPL-2.0
// Calls the XDP programs of one interface, as libxdp's protocol wants it
// (version 2): freplace puts a program in the place of each prog<n>.
#include <vmlinux.h>
#include <bpf/bpf_helpers.h>

#define SLOTS 10
#define EMPTY 31 /* an action of nobody's: the next program is called */

struct xdp_dispatcher_config {
	__u8 magic;
	__u8 dispatcher_version;
	__u8 num_progs_enabled;
	__u8 is_xdp_frags;
	__u32 chain_call_actions[SLOTS];
	__u32 run_prios[SLOTS];
	__u32 program_flags[SLOTS];
};

/* Named, and alone in its section, for others who read it from the map. */
static const volatile struct xdp_dispatcher_config conf = {};

/*
 * It never changes the packet, but is able to: else the kernel would let no
 * program in that is (since Linux 6.13: 81f6d0530ba0, "bpf: check
 * changes_pkt_data property for extension programs").
 */
#define SLOT(name)                                             \
	__attribute__((noinline)) int name(struct xdp_md *ctx) \
	{                                                      \
		volatile int action = EMPTY;                   \
                                                               \
		if (action != EMPTY)                           \
			bpf_xdp_adjust_head(ctx, 0);           \
		return ctx ? action : XDP_ABORTED;             \
	}

SLOT(prog0)
SLOT(prog1)
SLOT(prog2)
SLOT(prog3)
SLOT(prog4)
SLOT(prog5)
SLOT(prog6)
SLOT(prog7)
SLOT(prog8)
SLOT(prog9)
SLOT(compat_test)

#define CALL(number)                                                     \
	do {                                                             \
		if (number >= enabled)                                   \
			return XDP_PASS;                                 \
		action = prog##number(ctx);                              \
		if (!((1U << action) & conf.chain_call_actions[number])) \
			return action;                                   \
	} while (0)

SEC("xdp")
int xdp_dispatcher(struct xdp_md *ctx)
{
	__u8 enabled = conf.num_progs_enabled;
	int action;

	CALL(0);
	CALL(1);
	CALL(2);
	CALL(3);
	CALL(4);
	CALL(5);
	CALL(6);
	CALL(7);
	CALL(8);
	CALL(9);
	/* Others look if a program could be put here. */
	if (enabled > SLOTS)
		return compat_test(ctx);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "GPL";
__uint(dispatcher_version, 2) SEC("xdp_metadata");
