/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_FILTER_H
#define __GADGET_FILTER_H

#include <gadget/macros.h>
#include <gadget/types.h>
#include <gadget/mntns_filter.h>
#ifndef GADGET_TYPE_NETWORKING
#include <gadget/mntns.h>
#endif
#include <bpf/bpf_helpers.h>

/* Which processes are wanted. 0, (__u32)-1 and "": all. */
const volatile gadget_pid targ_pid = 0;
const volatile gadget_tid targ_tid = 0;
const volatile gadget_uid targ_uid = (gadget_uid)-1;
const volatile gadget_gid targ_gid = (gadget_gid)-1;
const volatile gadget_comm targ_comm[TASK_COMM_LEN] = {};

GADGET_PARAM(targ_pid);
GADGET_PARAM(targ_tid);
GADGET_PARAM(targ_uid);
GADGET_PARAM(targ_gid);
GADGET_PARAM(targ_comm);

static __always_inline bool gadget_should_discard_pid(gadget_pid pid)
{
	return targ_pid != 0 && targ_pid != pid;
}

static __always_inline bool gadget_should_discard_tid(gadget_tid tid)
{
	return targ_tid != 0 && targ_tid != tid;
}

static __always_inline bool gadget_should_discard_uid(gadget_uid uid)
{
	return targ_uid != (gadget_uid)-1 && targ_uid != uid;
}

static __always_inline bool gadget_should_discard_gid(gadget_gid gid)
{
	return targ_gid != (gadget_gid)-1 && targ_gid != gid;
}

/* comm: TASK_COMM_LEN bytes; what follows the NUL does not count, as some kernels leave rests there
 */
static __always_inline bool gadget_should_discard_comm(const char *comm)
{
	if (!targ_comm[0])
		return false;

#pragma unroll
	for (int i = 0; i < TASK_COMM_LEN; i++) {
		if (targ_comm[i] != comm[i])
			return true;
		if (!comm[i])
			return false;
	}
	return false;
}

static __always_inline bool gadget_should_discard_data(gadget_mntns_id mntns_id, gadget_pid pid,
						       gadget_tid tid, const char *comm,
						       gadget_uid uid, gadget_gid gid)
{
	return gadget_should_discard_mntns_id(mntns_id) || gadget_should_discard_pid(pid) ||
	       gadget_should_discard_tid(tid) || gadget_should_discard_uid(uid) ||
	       gadget_should_discard_gid(gid) || gadget_should_discard_comm(comm);
}

#ifndef GADGET_TYPE_NETWORKING
/* For the running task. It asks the kernel only for what a filter that is on needs. */
static __always_inline bool gadget_should_discard_data_current(void)
{
	if (targ_pid || targ_tid) {
		__u64 pid_tgid = bpf_get_current_pid_tgid();

		if (gadget_should_discard_pid(pid_tgid >> 32) ||
		    gadget_should_discard_tid((__u32)pid_tgid))
			return true;
	}

	if (targ_uid != (gadget_uid)-1 || targ_gid != (gadget_gid)-1) {
		__u64 uid_gid = bpf_get_current_uid_gid();

		if (gadget_should_discard_uid((__u32)uid_gid) ||
		    gadget_should_discard_gid(uid_gid >> 32))
			return true;
	}

	if (targ_comm[0]) {
		char comm[TASK_COMM_LEN] = {};

		bpf_get_current_comm(comm, sizeof(comm));
		if (gadget_should_discard_comm(comm))
			return true;
	}

	if (gadget_filter_by_mntns)
		return gadget_should_discard_mntns_id(gadget_get_current_mntns_id());

	return false;
}
#endif

/* For the owner of a packet's socket; NULL (unknown) passes only while no filter is on. */
static __always_inline bool gadget_should_discard_data_by_skb(struct gadget_socket_value *value)
{
	if (!value)
		return gadget_filter_by_mntns || targ_pid != 0 || targ_tid != 0 ||
		       targ_uid != (gadget_uid)-1 || targ_gid != (gadget_gid)-1 || targ_comm[0];

	return gadget_should_discard_data(value->mntns, value->pid_tgid >> 32,
					  (__u32)value->pid_tgid, value->task,
					  (__u32)value->uid_gid, value->uid_gid >> 32);
}

#endif /* __GADGET_FILTER_H */
