"""The first Linux version with each helper, map type, program type, attach type and kfunc.

Numbers of helpers and types are given one after the other, so the last number of each version says it for all. A
version is that of the merge window which brought the commit (bcc's and other tables often tell the one before). Tests
hold the tables against the enumerations in the BTF of real kernels.
"""

from __future__ import annotations

from bisect import bisect_left
from types import MappingProxyType

Version = tuple[int, int]


def pairs(text: str) -> tuple[tuple[int, Version], ...]:
    """`3.19:3 4.1:11` -> (3, (3, 19)), (11, (4, 1))."""
    found = []
    for word in text.split():
        version, _, last = word.partition(":")
        major, _, minor = version.partition(".")
        found.append((int(last), (int(major), int(minor))))
    return tuple(found)


def since(table: tuple[tuple[int, Version], ...], number: int) -> Version | None:
    """The version that brought a number; None: it is newer than the table."""
    at = bisect_left(table, (number,))
    return table[at][1] if at < len(table) else None


# enum bpf_func_id: since Linux 6.2 no helper is added, new functions are kfuncs
HELPERS = """
unspec map_lookup_elem map_update_elem map_delete_elem probe_read ktime_get_ns trace_printk get_prandom_u32
get_smp_processor_id skb_store_bytes l3_csum_replace l4_csum_replace tail_call clone_redirect get_current_pid_tgid
get_current_uid_gid get_current_comm get_cgroup_classid skb_vlan_push skb_vlan_pop skb_get_tunnel_key skb_set_tunnel_key
perf_event_read redirect get_route_realm perf_event_output skb_load_bytes get_stackid csum_diff skb_get_tunnel_opt
skb_set_tunnel_opt skb_change_proto skb_change_type skb_under_cgroup get_hash_recalc get_current_task probe_write_user
current_task_under_cgroup skb_change_tail skb_pull_data csum_update set_hash_invalid get_numa_node_id skb_change_head
xdp_adjust_head probe_read_str get_socket_cookie get_socket_uid set_hash setsockopt skb_adjust_room redirect_map
sk_redirect_map sock_map_update xdp_adjust_meta perf_event_read_value perf_prog_read_value getsockopt override_return
sock_ops_cb_flags_set msg_redirect_map msg_apply_bytes msg_cork_bytes msg_pull_data bind xdp_adjust_tail
skb_get_xfrm_state get_stack skb_load_bytes_relative fib_lookup sock_hash_update msg_redirect_hash sk_redirect_hash
lwt_push_encap lwt_seg6_store_bytes lwt_seg6_adjust_srh lwt_seg6_action rc_repeat rc_keydown skb_cgroup_id
get_current_cgroup_id get_local_storage sk_select_reuseport skb_ancestor_cgroup_id sk_lookup_tcp sk_lookup_udp
sk_release map_push_elem map_pop_elem map_peek_elem msg_push_data msg_pop_data rc_pointer_rel spin_lock spin_unlock
sk_fullsock tcp_sock skb_ecn_set_ce get_listener_sock skc_lookup_tcp tcp_check_syncookie sysctl_get_name
sysctl_get_current_value sysctl_get_new_value sysctl_set_new_value strtol strtoul sk_storage_get sk_storage_delete
send_signal tcp_gen_syncookie skb_output probe_read_user probe_read_kernel probe_read_user_str probe_read_kernel_str
tcp_send_ack send_signal_thread jiffies64 read_branch_records get_ns_current_pid_tgid xdp_output get_netns_cookie
get_current_ancestor_cgroup_id sk_assign ktime_get_boot_ns seq_printf seq_write sk_cgroup_id sk_ancestor_cgroup_id
ringbuf_output ringbuf_reserve ringbuf_submit ringbuf_discard ringbuf_query csum_level skc_to_tcp6_sock skc_to_tcp_sock
skc_to_tcp_timewait_sock skc_to_tcp_request_sock skc_to_udp6_sock get_task_stack load_hdr_opt store_hdr_opt
reserve_hdr_opt inode_storage_get inode_storage_delete d_path copy_from_user snprintf_btf seq_printf_btf
skb_cgroup_classid redirect_neigh per_cpu_ptr this_cpu_ptr redirect_peer task_storage_get task_storage_delete
get_current_task_btf bprm_opts_set ktime_get_coarse_ns ima_inode_hash sock_from_file check_mtu for_each_map_elem
snprintf sys_bpf btf_find_by_name_kind sys_close timer_init timer_set_callback timer_start timer_cancel get_func_ip
get_attach_cookie task_pt_regs get_branch_snapshot trace_vprintk skc_to_unix_sock kallsyms_lookup_name find_vma loop
strncmp get_func_arg get_func_ret get_func_arg_cnt get_retval set_retval xdp_get_buff_len xdp_load_bytes
xdp_store_bytes copy_from_user_task skb_set_tstamp ima_file_hash kptr_xchg map_lookup_percpu_elem skc_to_mptcp_sock
dynptr_from_mem ringbuf_reserve_dynptr ringbuf_submit_dynptr ringbuf_discard_dynptr dynptr_read dynptr_write
dynptr_data tcp_raw_gen_syncookie_ipv4 tcp_raw_gen_syncookie_ipv6 tcp_raw_check_syncookie_ipv4
tcp_raw_check_syncookie_ipv6 ktime_get_tai_ns user_ringbuf_drain cgrp_storage_get cgrp_storage_delete
"""
HELPER_SINCE = pairs(
    "3.19:3 4.1:11 4.2:16 4.3:22 4.4:25 4.5:26 4.6:30 4.8:36 4.9:41 4.10:44 4.11:45 4.12:47 4.13:50 4.14:53 4.15:57 "
    "4.16:59 4.17:64 4.18:80 4.19:83 4.20:90 5.0:92 5.1:98 5.2:108 5.3:110 5.5:115 5.6:118 5.7:124 5.8:135 5.9:141 "
    "5.10:155 5.11:162 5.12:163 5.13:165 5.14:168 5.15:175 5.16:179 5.17:185 5.18:193 5.19:203 6.0:207 6.1:209 6.2:211"
)
# enum bpf_map_type
MAP_SINCE = pairs(
    "3.19:2 4.2:3 4.3:4 4.6:7 4.8:8 4.10:10 4.11:11 4.12:13 4.14:15 4.15:16 4.18:18 4.19:20 4.20:23 5.2:24 5.4:25 "
    "5.6:26 5.8:27 5.10:28 5.11:29 5.16:30 6.1:31 6.2:32 6.9:33 6.19:34"
)
# Flags of maps: bit -> version
MAP_FLAG_SINCE = dict(
    pairs("4.6:0 4.10:1 4.14:2 4.15:3 4.15:4 4.17:5 5.0:6 5.2:7 5.2:8 5.4:9 5.5:10 5.10:11 5.10:12 6.4:13 6.9:15")
    + pairs("6.9:16 6.9:17 6.9:18")
)
# enum bpf_prog_type, and what it is called
PROGRAM_TYPES = """
unspec socket_filter kprobe sched_cls sched_act tracepoint xdp perf_event cgroup_skb cgroup_sock lwt_in lwt_out lwt_xmit
sock_ops sk_skb cgroup_device sk_msg raw_tracepoint cgroup_sock_addr lwt_seg6local lirc_mode2 sk_reuseport
flow_dissector cgroup_sysctl raw_tracepoint_writable cgroup_sockopt tracing struct_ops ext lsm sk_lookup syscall
netfilter
"""
PROGRAM_SINCE = pairs(
    "3.19:1 4.1:4 4.7:5 4.8:6 4.9:7 4.10:12 4.13:13 4.14:14 4.15:15 4.17:18 4.18:20 4.19:21 4.20:22 5.2:24 5.3:25 "
    "5.5:26 5.6:28 5.7:29 5.9:30 5.14:31 6.4:32"
)
# enum bpf_attach_type
ATTACH_TYPES = """
cgroup_inet_ingress cgroup_inet_egress cgroup_inet_sock_create cgroup_sock_ops sk_skb_stream_parser
sk_skb_stream_verdict cgroup_device sk_msg_verdict cgroup_inet4_bind cgroup_inet6_bind cgroup_inet4_connect
cgroup_inet6_connect cgroup_inet4_post_bind cgroup_inet6_post_bind cgroup_udp4_sendmsg cgroup_udp6_sendmsg lirc_mode2
flow_dissector cgroup_sysctl cgroup_udp4_recvmsg cgroup_udp6_recvmsg cgroup_getsockopt cgroup_setsockopt trace_raw_tp
trace_fentry trace_fexit modify_return lsm_mac trace_iter cgroup_inet4_getpeername cgroup_inet6_getpeername
cgroup_inet4_getsockname cgroup_inet6_getsockname xdp_devmap cgroup_inet_sock_release xdp_cpumap sk_lookup xdp
sk_skb_verdict sk_reuseport_select sk_reuseport_select_or_migrate perf_event trace_kprobe_multi lsm_cgroup struct_ops
netfilter tcx_ingress tcx_egress trace_uprobe_multi cgroup_unix_connect cgroup_unix_sendmsg cgroup_unix_recvmsg
cgroup_unix_getpeername cgroup_unix_getsockname netkit_primary netkit_peer trace_kprobe_session trace_uprobe_session
"""
ATTACH_SINCE = pairs(
    "4.10:2 4.13:3 4.14:5 4.15:6 4.17:13 4.18:16 4.20:17 5.2:20 5.3:22 5.5:25 5.7:27 5.8:33 5.9:37 5.13:38 5.14:40 "
    "5.15:41 5.18:42 6.0:43 6.4:45 6.6:48 6.7:55 6.10:56 6.13:57"
)
# What `iter/<name>` walks: name -> version
ITERATORS: MappingProxyType[str, Version] = MappingProxyType(
    {
        name: version
        for names, version in (
            ("task task_file bpf_map netlink ipv6_route", (5, 8)),
            ("tcp udp bpf_map_elem bpf_sk_storage_map bpf_prog", (5, 9)),
            ("sockmap", (5, 10)),
            ("task_vma", (5, 12)),
            ("unix", (5, 15)),
            ("bpf_link", (5, 19)),
            ("ksym", (6, 0)),
            ("cgroup", (6, 1)),
            ("kmem_cache", (6, 15)),
            ("dmabuf", (6, 16)),
        )
        for name in names.split()
    }
)
# Well-known kfuncs by version. An asterisk stands for what follows: bpf_cpumask_*.
KFUNCS = """
5.18 bpf_xdp_ct_lookup bpf_skb_ct_lookup bpf_ct_release
6.0 bpf_xdp_ct_alloc bpf_skb_ct_alloc bpf_ct_insert_entry bpf_ct_set_timeout bpf_ct_change_timeout bpf_ct_set_status
    bpf_ct_change_status
6.1 bpf_lookup_user_key bpf_lookup_system_key bpf_key_put bpf_verify_pkcs7_signature
6.2 bpf_task_acquire bpf_task_release bpf_task_from_pid bpf_cgroup_acquire bpf_cgroup_release bpf_cgroup_ancestor
    bpf_cast_to_kern_ctx bpf_rdonly_cast bpf_rcu_read_lock bpf_rcu_read_unlock bpf_obj_new_impl bpf_obj_drop_impl
    bpf_list_pop_front bpf_list_pop_back bpf_skb_get_xfrm_info bpf_skb_set_xfrm_info
6.3 bpf_cpumask_* bpf_rbtree_remove bpf_rbtree_first bpf_xdp_metadata_rx_hash bpf_xdp_metadata_rx_timestamp
6.4 bpf_cgroup_from_id bpf_rbtree_add_impl bpf_list_push_front_impl bpf_list_push_back_impl bpf_refcount_acquire_impl
    bpf_dynptr_slice bpf_dynptr_slice_rdwr bpf_dynptr_from_skb bpf_dynptr_from_xdp bpf_iter_num_*
    bpf_skb_set_fou_encap bpf_skb_get_fou_encap
6.5 bpf_task_under_cgroup bpf_dynptr_adjust bpf_dynptr_is_null bpf_dynptr_is_rdonly bpf_dynptr_size bpf_dynptr_clone
    bpf_sock_destroy
6.6 bpf_map_sum_elem_count
6.7 bpf_iter_task_new bpf_iter_task_next bpf_iter_task_destroy bpf_iter_css_* bpf_iter_task_vma_* bpf_throw
    bpf_sock_addr_set_sun_path bpf_percpu_obj_new_impl bpf_percpu_obj_drop_impl
6.8 bpf_task_get_cgroup1 bpf_get_file_xattr bpf_get_fsverity_digest bpf_xdp_metadata_rx_vlan_tag
    bpf_xdp_get_xfrm_state bpf_xdp_xfrm_state_release
6.9 bpf_arena_alloc_pages bpf_arena_free_pages bpf_sk_assign_tcp_reqsk
6.10 bpf_wq_* bpf_preempt_disable bpf_preempt_enable bpf_session_cookie bpf_session_is_return bpf_crypto_*
6.11 bpf_iter_bits_*
6.12 bpf_copy_from_user_str bpf_get_task_exe_file bpf_put_file bpf_path_d_path bpf_get_dentry_xattr
6.13 bpf_task_from_vpid bpf_send_signal_task bpf_get_kmem_cache
6.14 bpf_local_irq_save bpf_local_irq_restore
6.15 bpf_dynptr_copy bpf_iter_kmem_cache_* bpf_copy_from_user_task_str bpf_res_spin_*
6.16 bpf_dynptr_memset bpf_iter_dmabuf_*
6.17 bpf_strcmp bpf_strchr bpf_strlen bpf_strnlen bpf_strstr
"""


def kfunc_table() -> dict[str, Version]:
    """Kfunc, or its beginning and an asterisk -> version."""
    table: dict[str, Version] = {}
    version = (0, 0)
    for word in KFUNCS.split():
        if word[0].isdigit():
            major, _, minor = word.partition(".")
            version = (int(major), int(minor))
        else:
            table[word] = version
    return table


def kfunc_since(name: str, table: dict[str, Version]) -> Version | None:
    """The version that brought a kfunc, None where the table does not tell. table: `kfunc_table()`."""
    if name in table:
        return table[name]
    for pattern, version in table.items():
        if pattern.endswith("*") and name.startswith(pattern[:-1]):
            return version
    return None


def helper_name(number: int) -> str:
    """bpf_map_lookup_elem, or `helper 999` for one that nobody knows yet."""
    names = HELPERS.split()
    return f"bpf_{names[number]}" if 0 < number < len(names) else f"helper {number}"


def enumerator_since(enumeration: str, name: str) -> Version | None:
    """The version that brought an enumerator of the kernel's own lists (BPF_FUNC_..., BPF_MAP_TYPE_...)."""
    lists = {
        "bpf_func_id": ("BPF_FUNC_", HELPERS, HELPER_SINCE),
        "bpf_prog_type": ("BPF_PROG_TYPE_", PROGRAM_TYPES, PROGRAM_SINCE),
        "bpf_attach_type": ("BPF_", ATTACH_TYPES, ATTACH_SINCE),
    }
    if enumeration not in lists:
        return None
    prefix, names, table = lists[enumeration]
    short = name.removeprefix(prefix).lower()
    known = names.split()
    return since(table, known.index(short)) if short in known else None


def shown(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
