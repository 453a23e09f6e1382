/* The least that a program can do to watch a tree, and to let go of it: "walker DIRECTORY".

   Opens each directory once, from the descriptor of the one above, watches it as ".", which spares the kernel a look-up,
   and lists it. Keeps nothing but the watch descriptors: it could not tell the path of any event. Prints "armed COUNT";
   for a line on its stdin removes the watches one by one, reads what that leaves in the queue, and prints "gone". */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ENTRIES = 32 * 1024, EVENTS = 64 * 1024, IGNORED_AT_ONCE = 1024 };

struct entry {
    uint64_t inode;
    int64_t offset;
    unsigned short size;
    unsigned char type;
    char name[];
};

static const uint32_t MASK = IN_CREATE | IN_MODIFY | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_MOVE_SELF;
static int instance;
static int *watches;
static size_t count, capacity;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void keep(int watch)
{
    if (watch < 0) fail("inotify_add_watch");
    if (count == capacity) {
        capacity = capacity * 2 + 1024;
        watches = realloc(watches, capacity * sizeof(*watches));
        if (watches == NULL) fail("realloc");
    }
    watches[count++] = watch;
}

/* Watch the directory behind fd, which is closed, and all below. */
static void watch_tree(int fd)
{
    char *entries = malloc(ENTRIES);
    long size;
    if (entries == NULL || fchdir(fd) != 0) fail("fchdir");
    keep(inotify_add_watch(instance, ".", MASK));
    while ((size = syscall(SYS_getdents64, fd, entries, ENTRIES)) > 0) {
        for (long at = 0; at < size; at += ((struct entry *)(entries + at))->size) {
            struct entry *entry = (struct entry *)(entries + at);
            int below;
            if (entry->type != 4 || strcmp(entry->name, ".") == 0 || strcmp(entry->name, "..") == 0) continue;
            below = openat(fd, entry->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (below < 0) fail(entry->name);
            watch_tree(below);
        }
    }
    free(entries);
    close(fd);
}

static void let_go(void)
{
    static char events[EVENTS];
    for (size_t at = 0; at < count; at++) {
        if (inotify_rm_watch(instance, watches[at]) != 0) fail("inotify_rm_watch");
        if (at % IGNORED_AT_ONCE == 0 || at == count - 1)
            while (read(instance, events, EVENTS) > 0) {}
    }
}

int main(int argc, char **argv)
{
    int top = argc == 2 ? open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    instance = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (top < 0 || instance < 0) fail("walker DIRECTORY");
    watch_tree(top);
    printf("armed %zu\n", count);
    fflush(stdout);
    if (getchar() != '\n') return 0;
    let_go();
    puts("gone");
    fflush(stdout);
    getchar();
    return 0;
}
