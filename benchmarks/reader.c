/* The least that can read events: reader FOLDER MARKER

   Reads as much as there is, walks through the events, counts them by kind. When a name begins with MARKER it writes
   how many other events it has seen since the last one, and how often the queue ran over. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <unistd.h>

#define SIZE (512 * 1024)

int main(int argc, char **argv)
{
    unsigned long counts[32] = {0}, events, overflows = 0;
    char *buffer = malloc(SIZE);
    int fd = inotify_init1(IN_CLOEXEC);
    size_t marker_size;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (argc != 3 || inotify_add_watch(fd, argv[1], IN_ALL_EVENTS) < 0) {
        perror("reader");
        return 1;
    }
    marker_size = strlen(argv[2]);
    puts("ready");
    fflush(stdout);
    for (;;) {
        ssize_t size = read(fd, buffer, SIZE), at = 0;
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) return 1;
        while (at < size) {
            const struct inotify_event *event = (const struct inotify_event *)(buffer + at);
            at += sizeof(*event) + event->len;
            if (event->mask & IN_Q_OVERFLOW) {
                overflows++;
            } else if (event->len && event->name[0] == argv[2][0] && !strncmp(event->name, argv[2], marker_size)) {
                events = 0;
                for (int i = 0; i < 32; i++) events += counts[i];
                printf("%s %lu %lu\n", event->name, events, overflows);
                fflush(stdout);
                memset(counts, 0, sizeof(counts));
            } else {
                counts[__builtin_ctz(event->mask)]++;
            }
        }
    }
}
