/* Loaded into a program (LD_PRELOAD): the time of day is off by the seconds in CLOCK_FILE (-D), which may change at any
   moment. Monotonic clocks are the kernel's. A wait until a time of day is one until the kernel's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
enum { OF_TODAY = 1000000000 }; /* seconds; what is less is of a monotonic clock */

static int64_t off(void) {
    static volatile int64_t *seconds;
    if (!seconds) {
        int file = open(CLOCK_FILE, O_RDONLY | O_CLOEXEC);
        void *found = mmap(NULL, sizeof *seconds, PROT_READ, MAP_SHARED, file, 0);
        if (found == MAP_FAILED) abort();
        close(file);
        seconds = found;
    }
    return *seconds;
}

static struct timespec kernels(const struct timespec *until) {
    struct timespec found = *until;
    if (found.tv_sec > OF_TODAY) found.tv_sec -= off();
    return found;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += off();
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    REAL(gettimeofday);
    int failed = real(now, zone);
    if (!failed) now->tv_sec += off();
    return failed;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until, struct timespec *left) {
    REAL(clock_nanosleep);
    struct timespec at = flags & TIMER_ABSTIME && clock == CLOCK_REALTIME ? kernels(until) : *until;
    return real(clock, flags, &at, left);
}

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until) {
    REAL(pthread_cond_timedwait);
    struct timespec at = kernels(until);
    return real(cond, mutex, &at);
}

int pthread_cond_clockwait(pthread_cond_t *cond, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until) {
    REAL(pthread_cond_clockwait);
    struct timespec at = kernels(until);
    return real(cond, mutex, clock, &at);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *until) {
    REAL(pthread_mutex_timedlock);
    struct timespec at = kernels(until);
    return real(mutex, &at);
}

int sem_timedwait(sem_t *sem, const struct timespec *until) {
    REAL(sem_timedwait);
    struct timespec at = kernels(until);
    return real(sem, &at);
}

int sem_clockwait(sem_t *sem, clockid_t clock, const struct timespec *until) {
    REAL(sem_clockwait);
    struct timespec at = kernels(until);
    return real(sem, clock, &at);
}
