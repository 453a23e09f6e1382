/* Makes events at full speed or at an even pace: producer FOLDER FILES

   The files 0, 1, … of the folder exist. All are opened at the start, which makes events of its own: watch the folder
   after "ready". Then each line on stdin, "KIND TIMES RATE", is done and answered with the nanoseconds that it took.
   Files take turns, so that the kernel finds no event identical to the one before it and merges none. RATE is in
   operations a second, evenly spaced; 0 is as fast as it goes. An operation is
     rewrite   open, write, close      OPEN MODIFY CLOSE_WRITE
     pwrite    into an open file       MODIFY
     create    mknod, unlink           CREATE DELETE */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NAME_SIZE 16

static int files;
static int *descriptors;
static char (*names)[NAME_SIZE], (*new_names)[NAME_SIZE];

static long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static int rewrite(int number)
{
    int fd = open(names[number], O_WRONLY);
    return fd < 0 || write(fd, "x", 1) != 1 || close(fd) != 0;
}

static int pwrite_open(int number)
{
    return pwrite(descriptors[number], "x", 1, 0) != 1;
}

static int create(int number)
{
    return mknod(new_names[number], S_IFREG | 0600, 0) != 0 || unlink(new_names[number]) != 0;
}

static int produce(int (*operation)(int), long times, long rate)
{
    long begun = now_ns();
    for (long i = 0; i < times; i++) {
        if (rate) {
            long due = begun + i * 1000000000L / rate;
            struct timespec until = {due / 1000000000L, due % 1000000000L};
            while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {}
        }
        if (operation(i % files)) {
            perror("producer");
            return 1;
        }
    }
    printf("%ld\n", now_ns() - begun);
    fflush(stdout);
    return 0;
}

static int prepare(const char *folder)
{
    struct rlimit limit = {files + 64, files + 64};
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0 || chdir(folder) != 0) return 1;
    descriptors = calloc(files, sizeof(*descriptors));
    names = calloc(files, sizeof(*names));
    new_names = calloc(files, sizeof(*new_names));
    for (int i = 0; i < files; i++) {
        snprintf(names[i], NAME_SIZE, "%d", i);
        snprintf(new_names[i], NAME_SIZE, "n%d", i);
        descriptors[i] = open(names[i], O_WRONLY);
        if (descriptors[i] < 0) return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    char kind[16];
    long times, rate;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_TIMERSLACK, 1); /* else every sleep is 50 µs too long */
    if (argc != 3 || (files = atoi(argv[2])) <= 0) return 2;
    if (prepare(argv[1])) {
        perror(argv[1]);
        return 1;
    }
    puts("ready");
    fflush(stdout);
    while (scanf("%15s %ld %ld", kind, &times, &rate) == 3) {
        int (*operation)(int) = !strcmp(kind, "rewrite") ? rewrite : !strcmp(kind, "pwrite") ? pwrite_open : create;
        if (produce(operation, times, rate)) return 1;
    }
    return 0;
}
