/*
 * The least that can answer, and what asks: "respond DIRECTORY ANSWER" answers, "open FILE COUNT PAUSE_US ANSWER" opens
 * and closes a file, with pauses, and prints nanoseconds: the median, and the 99th of 100.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/prctl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

static int respond(const char *directory, unsigned int answer)
{
    struct fanotify_event_metadata events[64], *event;
    int group = fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK, O_RDONLY | O_CLOEXEC);
    struct pollfd waiter = {group, POLLIN, 0};
    if (fanotify_mark(group, FAN_MARK_ADD, FAN_OPEN_PERM | FAN_ONDIR | FAN_EVENT_ON_CHILD, AT_FDCWD, directory) != 0) {
        perror(directory);
        return 1;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        poll(&waiter, 1, -1);
        ssize_t size = read(group, events, sizeof(events));
        for (event = events; FAN_EVENT_OK(event, size); event = FAN_EVENT_NEXT(event, size)) {
            struct fanotify_response response = {event->fd, answer};
            if (write(group, &response, sizeof(response)) != sizeof(response)) return 1;
            close(event->fd);
        }
    }
}

static long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    return (*(const long *)a > *(const long *)b) - (*(const long *)a < *(const long *)b);
}

static int open_often(const char *file, int count, int pause_us, int wanted)
{
    long *took = malloc(count * sizeof(long)), begun;
    for (int i = 0; i < count; i++) {
        if (pause_us) usleep(pause_us);
        begun = now_ns();
        int fd = open(file, O_RDONLY);
        if (fd >= 0) close(fd);
        took[i] = now_ns() - begun;
        if ((fd >= 0) != wanted) {
            fprintf(stderr, "%s was %s\n", file, fd >= 0 ? "opened" : "refused");
            return 1;
        }
    }
    qsort(took, count, sizeof(long), compare);
    printf("%ld %ld\n", took[count / 2], took[count - 1 - count / 100]);
    return 0;
}

int main(int argc, char **argv)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (argc == 4 && !strcmp(argv[1], "respond"))
        return respond(argv[2], strcmp(argv[3], "deny") ? FAN_ALLOW : FAN_DENY);
    if (argc == 6 && !strcmp(argv[1], "open"))
        return open_often(argv[2], atoi(argv[3]), atoi(argv[4]), strcmp(argv[5], "deny") != 0);
    return 2;
}
