/*
 * What is traced: makes system calls when told to, one line each:
 *     calls COUNT SECONDS RATE
 *     opens COUNT SECONDS RATE
 * so many, or for so many seconds (0: no limit). RATE: calls a second, 0: as many as it can. It
 * answers with COUNT SECONDS CPU_SECONDS Arguments: how many mount namespaces it is in, in turn. It
 * first says their numbers, in one line.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BURST_NS 1000000
#define OPENS_PER_NAMESPACE 128
#define BATCH 256
#define MOST_NAMESPACES 256

/* Half of them are there. */
static const char *const paths[] = {
	"/dev/null",	    "/usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v3/libc.so.6",
	"/etc/passwd",	    "/usr/share/locale/en_US.UTF-8/LC_MESSAGES/libc.mo",
	"/etc/ld.so.cache", "/var/lib/absent/\"quoted\" name",
	"/etc/hosts",	    "/root/.config/absent.yaml",
};

static int namespaces[MOST_NAMESPACES], namespaces_count;

static double seconds(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static void make_namespaces(int count)
{
	if (count > MOST_NAMESPACES)
		errx(1, "at most %d namespaces", MOST_NAMESPACES);
	for (int i = 0; i < count; i++) {
		struct stat about;

		if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
			err(1, "new mount namespace");
		namespaces[i] = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
		if (namespaces[i] < 0 || fstat(namespaces[i], &about))
			err(1, "/proc/self/ns/mnt");
		printf("%llu ", (unsigned long long)about.st_ino);
	}
	namespaces_count = count;
	printf("\n");
	fflush(stdout);
}

static void one_call(long number)
{
	(void)number;
	syscall(SYS_getpgid, 0);
}

static void one_open(long number)
{
	int fd;

	if (namespaces_count && number % OPENS_PER_NAMESPACE == 0) {
		int next = namespaces[number / OPENS_PER_NAMESPACE % namespaces_count];

		if (setns(next, CLONE_NEWNS))
			err(1, "enter a mount namespace");
	}
	fd = syscall(SYS_openat, AT_FDCWD, paths[number % 8], O_RDONLY | O_CLOEXEC, 0);
	if (fd >= 0)
		close(fd);
}

static void make(void (*one)(long), long count, double limit_s, double rate)
{
	double start = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID), passed;
	struct timespec wake;
	long done = 0;

	clock_gettime(CLOCK_MONOTONIC, &wake);
	for (;;) {
		long due = done + BATCH;

		passed = seconds(CLOCK_MONOTONIC) - start;
		if ((count && done >= count) || (limit_s && passed >= limit_s))
			break;
		if (rate)
			due = passed * rate;
		if (count && due > count)
			due = count;
		for (; done < due; done++)
			one(done);
		if (!rate || (count && done >= count))
			continue;
		wake.tv_nsec += BURST_NS;
		if (wake.tv_nsec >= 1000000000) {
			wake.tv_sec++;
			wake.tv_nsec -= 1000000000;
		}
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, NULL);
	}
	printf("%ld %.9f %.9f\n", done, passed, seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char line[64], what[8];
	double limit_s, rate;
	long count;

	make_namespaces(argc > 1 ? atoi(argv[1]) : 0);
	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "%7s %ld %lf %lf", what, &count, &limit_s, &rate) != 4)
			errx(1, "what is %s", line);
		make(strcmp(what, "opens") ? one_call : one_open, count, limit_s, rate);
	}
	return 0;
}
