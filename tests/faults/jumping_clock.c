/* A time of day that jumps, for one process (LD_PRELOAD). The file that JUMPING_CLOCK names holds the
 * seconds to add, as a 64-bit integer. What waits for a moment of that clock waits until it shows it, as
 * when an administrator sets it. libfaketime knows nothing of cnd_timedwait, on which librdkafka waits.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SLICE_NS 10000000       /* how often a wait looks at the clock */
#define SINCE_BOOT_S 1000000000 /* a deadline before that is one of the monotonic clock */

static volatile int64_t *offset;

__attribute__((constructor)) static void map_offset(void) {
    const char *name = getenv("JUMPING_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    void *mapped = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED)
        abort();
    offset = mapped;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *offset;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now)
        *now = exact.tv_sec;
    return exact.tv_sec;
}

typedef int (*wait_function)(void *, void *, const struct timespec *);

static int wait_until(wait_function wait, void *condition, void *mutex, const struct timespec *until,
                      int timed_out) {
    if (until->tv_sec < SINCE_BOOT_S)
        return wait(condition, mutex, until);
    for (;;) {
        struct timespec shown, slice;
        clock_gettime(CLOCK_REALTIME, &shown);
        int64_t left = (until->tv_sec - shown.tv_sec) * INT64_C(1000000000) + until->tv_nsec - shown.tv_nsec;
        syscall(SYS_clock_gettime, CLOCK_REALTIME, &slice);
        slice.tv_nsec += left < 0 ? 0 : left < SLICE_NS ? left : SLICE_NS;
        slice.tv_sec += slice.tv_nsec / 1000000000;
        slice.tv_nsec %= 1000000000;
        int result = wait(condition, mutex, &slice);
        if (result != timed_out || left <= SLICE_NS)
            return result;
    }
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
    static wait_function wait;
    if (!wait)
        wait = (wait_function)dlsym(RTLD_NEXT, "cnd_timedwait");
    return wait_until(wait, condition, mutex, until, thrd_timedout);
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    static wait_function wait;
    if (!wait) /* with its version: without, the one of 1998 may be found */
        wait = (wait_function)dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!wait)
        wait = (wait_function)dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    return wait_until(wait, condition, mutex, until, ETIMEDOUT);
}
