/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_GPU_TYPES_H
#define __GADGET_GPU_TYPES_H

#include <gadget/base.h>

/*
 * What a daemon outside measures on the GPUs of this machine and leaves in pinned maps, see
 * gpu_bridge_maps.h. Times are nanoseconds since boot.
 */

#define GPU_SCHEMA_VERSION 1
#define GPU_MAX_DEVICES 16
#define GPU_MAX_PIDS 4096
/* In gpu_device_primary: the process uses several. */
#define GPU_DEVICE_MULTI 0xff

/* helper_pid: the daemon; clock_offset_ns: its clock minus the boot clock */
struct gpu_meta {
	__u32 schema_version;
	__u32 n_devices;
	__u64 last_update_boottime_ns;
	__u32 helper_pid;
	__u32 _reserved;
	__s64 clock_offset_ns;
};

struct gpu_device_metrics {
	__u64 timestamp_ns;
	__u64 mem_used;
	__u64 mem_total;
	__u64 mem_reserved;
	__u64 ecc_corrected_total;
	__u64 ecc_uncorrected_total;
	__u64 throttle_reasons;
	__u32 sm_util_pct;
	__u32 mem_util_pct;
	__u32 enc_util_pct;
	__u32 dec_util_pct;
	__u32 temp_c;
	__u32 power_mw;
	__u32 sm_clock_mhz;
	__u32 mem_clock_mhz;
	__u32 pcie_rx_kbps;
	__u32 pcie_tx_kbps;
	__u32 nvlink_rx_kbps;
	__u32 nvlink_tx_kbps;
	__u32 fan_speed_pct;
	__u32 compute_mode;
};

/* Of one process on one device. */
struct gpu_pid_metrics {
	__u64 timestamp_ns;
	__u64 mem_used;
	__u32 sm_util_pct;
	__u32 mem_util_pct;
};

/* Of one process on all of them. */
struct gpu_pid_metrics_aggregated {
	__u64 timestamp_ns;
	__u64 mem_used;
	__u32 sm_util_pct_max;
	__u32 mem_util_pct_max;
	__u8 gpu_device_primary;
	__u8 device_count;
	__u8 _pad[6];
};

#endif /* __GADGET_GPU_TYPES_H */
