/* The container of a mount namespace, as the two JSON objects that every event shows. */
#include <err.h>
#include <stdlib.h>

#define MOST_CONTAINERS 256
#define SLOTS_BITS 10

struct container {
	u64 mntns;
	char k8s[768], runtime[768];
	u32 k8s_bytes, runtime_bytes;
};

/* The first one stands for those that are in none. */
static struct container containers[MOST_CONTAINERS];
static u32 containers_count;
static u8 slots[1 << SLOTS_BITS];

static inline u32 slot_of(u64 mntns)
{
	return mntns * 0x9e3779b97f4a7c15 >> (64 - SLOTS_BITS);
}

static inline const struct container *container_of(u64 mntns)
{
	for (u32 slot = slot_of(mntns);; slot = (slot + 1) % (1 << SLOTS_BITS))
		if (!slots[slot] || containers[slots[slot]].mntns == mntns)
			return &containers[slots[slot]];
}

/* of: hostnetwork k8s.containerName .namespace .node .owner.kind .owner.name .podLabels .podName
 * runtime.containerId .containerImageDigest .containerImageName .containerName .containerPid
 * .containerStartedAt .runtimeName; nothing in them has to be escaped
 */
static void add_container(u64 mntns, char *const of[15])
{
	struct container *new = &containers[containers_count];

	if (containers_count == MOST_CONTAINERS)
		errx(1, "too many containers");
	new->mntns = mntns;
	new->k8s_bytes = snprintf(
		new->k8s, sizeof(new->k8s),
		"{\"containerName\":\"%s\",\"hostnetwork\":%s,\"namespace\":\"%s\",\"node\":\"%s\","
		"\"owner\":{\"kind\":\"%s\",\"name\":\"%s\"},\"podLabels\":\"%s\",\"podName\":\"%"
		"s\"}",
		of[1], of[0], of[2], of[3], of[4], of[5], of[6], of[7]);
	new->runtime_bytes = snprintf(
		new->runtime, sizeof(new->runtime),
		"{\"containerId\":\"%s\",\"containerImageDigest\":\"%s\","
		"\"containerImageName\":\"%s\",\"containerName\":\"%s\",\"containerPid\":%s,"
		"\"containerStartedAt\":%s,\"runtimeName\":\"%s\"}",
		of[8], of[9], of[10], of[11], of[12], of[13], of[14]);
	if (new->k8s_bytes >= sizeof(new->k8s) || new->runtime_bytes >= sizeof(new->runtime))
		errx(1, "a container says too much");
	if (containers_count) {
		u32 slot = slot_of(mntns);

		while (slots[slot])
			slot = (slot + 1) % (1 << SLOTS_BITS);
		slots[slot] = containers_count;
	}
	containers_count++;
}

/* Lines: mount namespace, then what add_container() takes, between tabs. */
static void read_containers(const char *path)
{
	char *none[15] = { "false", "", "", "", "", "", "", "", "", "", "", "", "0", "0", "" };
	char line[4096];
	FILE *file = fopen(path, "r");

	if (!file)
		err(1, "%s", path);
	add_container(0, none);
	while (fgets(line, sizeof(line), file)) {
		char *rest = line, *mntns, *of[15];

		line[strcspn(line, "\n")] = '\0';
		mntns = strsep(&rest, "\t");
		for (int i = 0; i < 15; i++) {
			of[i] = strsep(&rest, "\t");
			if (!of[i])
				errx(1, "%s: a line is too short", path);
		}
		add_container(strtoull(mntns, NULL, 10), of);
	}
	fclose(file);
}
