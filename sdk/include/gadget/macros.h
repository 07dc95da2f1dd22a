/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __GADGET_MACROS_H
#define __GADGET_MACROS_H

/*
 * Markers: variables that nobody reads. Their names alone, found in the object's BTF, tell the
 * runtime what the object offers; "___" stands between the parts of a name.
 */
#define __GADGET_MARKER(symbol) const void *symbol __attribute__((unused))

/* Events of the type `struct event` come through the map `map` and make the data source `name`. */
#define GADGET_TRACER(name, map, event)                              \
	__GADGET_MARKER(gadget_tracer_##name##___##map##___##event); \
	const struct event *__gadget_tracer_type_##name __attribute__((unused))

/* The variable `name` (const volatile) is a flag of the gadget. */
#define GADGET_PARAM(name) __GADGET_MARKER(gadget_param_##name)

#define __GADGET_FOURTH(_1, _2, _3, fourth, ...) fourth

#define __GADGET_ITER1(name, type, prog1) __GADGET_MARKER(gadget_iter_##name##___##type##___##prog1)
#define __GADGET_ITER2(name, type, prog1, prog2) \
	__GADGET_MARKER(gadget_iter_##name##___##type##___##prog1##___##prog2)
#define __GADGET_ITER3(name, type, prog1, prog2, prog3) \
	__GADGET_MARKER(gadget_iter_##name##___##type##___##prog1##___##prog2##___##prog3)

/*
 * What one to three iterator programs write, rows of the type `struct type`, makes the data source
 * `name`. The second variable keeps the type in BTF.
 */
#define GADGET_ITER(name, type, ...)                                                   \
	const struct type *unusedevent_##name##___##type __attribute__((unused));      \
	__GADGET_FOURTH(__VA_ARGS__, __GADGET_ITER3, __GADGET_ITER2, __GADGET_ITER1, ) \
	(name, type, __VA_ARGS__)

/* The old name. */
#define GADGET_SNAPSHOTTER(name, type, ...) GADGET_ITER(name, type, __VA_ARGS__)

/* The entries of the hash map `map`, fetched again and again, make the data source `name`. */
#define GADGET_MAPITER(name, map) __GADGET_MARKER(gadget_mapiter_##name##___##map)

/* The iter/bpf_map_elem program `prog` walks the map `map`. */
#define GADGET_ITER_TARGET_MAP(prog, map) \
	__GADGET_MARKER(gadget_mapelem_iter_target_##prog##___##map)

/* The sk_skb or sk_msg program `prog` is attached to the sockets of the map `map`. */
#define GADGET_SK_TARGET_MAP(prog, map) __GADGET_MARKER(gadget_sk_prog_target_##prog##___##map)

#endif /* __GADGET_MACROS_H */
