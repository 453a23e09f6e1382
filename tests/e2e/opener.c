/* Opens files when told to: linked statically, run as the init of a container, beside it, or on the node.

   opener FOLDER: a line "GENERATION OPERATION PATH" in the pipe FOLDER/tasks is answered by one in FOLDER/answers, with
   the name of an errno, or "-". Generation 0 is this process, 1 a child of it, 2 a child of that; -1 is a process whose
   parent has ended. */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Each returns 0 or an errno. */

static int done(int result) {
    return result < 0 ? errno : 0;
}

static int with_flags(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC, 0644);
    int error = done(fd);
    if (fd >= 0)
        close(fd);
    return error;
}

static int read_byte(const char *path) {
    char byte;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int error = done(fd);
    if (fd >= 0) {
        error = done(read(fd, &byte, 1));
        close(fd);
    }
    return error;
}

static int map_byte(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int error = done(fd);
    volatile const char *map;
    if (fd < 0)
        return error;
    map = mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);
    error = map == MAP_FAILED ? errno : 0;
    if (!error)
        (void)*map;
    close(fd);
    return error;
}

static int list(const char *path) {
    DIR *folder = opendir(path);
    int error = folder == NULL ? errno : 0;
    if (folder != NULL) {
        errno = 0;
        if (readdir(folder) == NULL)
            error = errno;
        closedir(folder);
    }
    return error;
}

static int carry_out(const char *operation, char *path) {
    char *other = strchr(path, ' ');
    struct stat status;
    if (other != NULL)
        *other++ = 0;
    if (!strcmp(operation, "open"))
        return with_flags(path, O_RDONLY | O_NONBLOCK);
    if (!strcmp(operation, "open_to_write"))
        return with_flags(path, O_WRONLY);
    if (!strcmp(operation, "open_to_create"))
        return with_flags(path, O_WRONLY | O_CREAT);
    if (!strcmp(operation, "open_path"))
        return with_flags(path, O_PATH);
    if (!strcmp(operation, "read"))
        return read_byte(path);
    if (!strcmp(operation, "map"))
        return map_byte(path);
    if (!strcmp(operation, "list"))
        return list(path);
    if (!strcmp(operation, "exec"))
        return done(execl(path, path, NULL));
    if (!strcmp(operation, "stat"))
        return done(stat(path, &status));
    if (!strcmp(operation, "mkdir"))
        return done(mkdir(path, 0755));
    if (!strcmp(operation, "rmdir"))
        return done(rmdir(path));
    if (!strcmp(operation, "unlink"))
        return done(unlink(path));
    if (!strcmp(operation, "rename") && other != NULL)
        return done(rename(path, other));
    if (!strcmp(operation, "link") && other != NULL)
        return done(link(path, other));
    return ENOSYS;
}

/* In a child of it, GENERATION times; a program that is executed is a child's, too. */
static int in_generation(int generation, const char *operation, char *path) {
    int ends[2], error = 0;
    pid_t child, parent;
    if (generation == 0)
        return carry_out(operation, path);
    if (pipe2(ends, O_CLOEXEC) != 0 || (child = fork()) < 0)
        return errno;
    if (child == 0) {
        if (generation < 0) {
            parent = getpid();
            if (fork() != 0)
                _exit(0);
            while (getppid() == parent)
                sched_yield();
            generation = 1;
        }
        error = in_generation(generation - 1, operation, path);
        _exit(write(ends[1], &error, sizeof(error)) != sizeof(error));
    }
    close(ends[1]);
    if (read(ends[0], &error, sizeof(error)) != sizeof(error))
        error = 0; /* it is another program now */
    close(ends[0]);
    waitpid(child, NULL, 0);
    return error;
}

int main(int count, char **arguments) {
    char operation[32], *line = NULL;
    size_t size = 0;
    ssize_t length;
    int generation, start, answers, error;
    FILE *tasks;
    if (count != 2)
        return 0; /* executed, to see that it can be */
    if (chdir(arguments[1]) != 0)
        return 1;
    /* Both ends are ours, so neither comes to an end. */
    tasks = fdopen(open("tasks", O_RDWR | O_CLOEXEC), "r");
    answers = open("answers", O_RDWR | O_CLOEXEC);
    if (tasks == NULL || answers < 0 || chdir("/") != 0)
        return 1;
    while ((length = getline(&line, &size, tasks)) > 0) {
        line[length - 1] = 0;
        if (sscanf(line, "%d %31s %n", &generation, operation, &start) != 2)
            return 1;
        if (!strcmp(operation, "exec"))
            generation++;
        error = in_generation(generation, operation, line + start);
        dprintf(answers, "%s\n", error ? strerrorname_np(error) : "-");
    }
    return 0;
}
