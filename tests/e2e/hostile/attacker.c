/* What a hostile container does: linked statically, run as its init or beside it.

   A command that goes on (swap, replace, relink, flood) says "ready" when it has begun, works until its stdin is closed and
   for as many rounds as its last argument says at least, and in the end prints how many rounds it made. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static long least;

static int going_on(long round) {
    struct pollfd input = {0, POLLIN, 0};
    if (round == 0) {
        puts("ready");
        fflush(stdout);
    }
    return round < least || round % 512 || poll(&input, 1, 0) == 0;
}

static int done(long rounds) {
    printf("%ld\n", rounds);
    return 0;
}

static void must(int result, const char *what) {
    if (result != 0) {
        perror(what);
        exit(1);
    }
}

/* swap A B LEAST: exchanges two names. */
static int swap(char **names) {
    long round = 0;
    for (; going_on(round); round++)
        must(renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE), "exchange");
    return done(round);
}

/* replace DIRECTORY ASIDE TARGET LEAST: puts a link to TARGET in the place of the directory, and the directory back. */
static int replace(char **names) {
    long round = 0;
    for (; going_on(round); round++) {
        must(rename(names[0], names[1]), "rename away");
        must(symlink(names[2], names[0]), "symlink");
        must(unlink(names[0]), "unlink");
        must(rename(names[1], names[0]), "rename back");
    }
    return done(round);
}

/* relink LINK TARGET TARGET LEAST: points a link here and there, by a rename over it. */
static int relink(char **names) {
    char fresh[4096];
    long round = 0;
    snprintf(fresh, sizeof(fresh), "%s.new", names[0]);
    for (; going_on(round); round++) {
        must(symlink(names[1 + round % 2], fresh), "symlink");
        must(rename(fresh, names[0]), "rename over");
    }
    return done(round);
}

/* flood DIRECTORY LEAST: makes small trees and removes the ones before, from four processes. */
static int flood(char **names) {
    char path[64];
    long round = 0;
    must(chdir(names[0]), "chdir");
    setpgid(0, 0);
    for (int i = 0; i < 4; i++) {
        if (fork() != 0)
            continue;
        for (long n = 0;; n++) {
            int depth = snprintf(path, sizeof(path), "%d-%ld", i, n);
            mkdir(path, 0755);
            for (int j = 0; j < 4; j++) {
                depth += snprintf(path + depth, sizeof(path) - depth, "/%d", j);
                mkdir(path, 0755);
            }
            depth = snprintf(path, sizeof(path), "%d-%ld/0/1/2/3", i, n - 50);
            for (char *slash = path; slash != NULL; slash = strrchr(path, '/')) {
                rmdir(path);
                if (strchr(path, '/') == NULL)
                    break;
                *strrchr(path, '/') = 0;
            }
        }
    }
    for (; going_on(round); round++)
        usleep(10);
    signal(SIGTERM, SIG_IGN);
    kill(0, SIGTERM);
    while (wait(NULL) > 0)
        continue;
    return done(round);
}

/* deep DIRECTORY LEVELS NAME: goes down, making directories of one name and a file "bottom" in the last. */
static int deep(char **arguments) {
    must(chdir(arguments[0]), "chdir");
    for (int level = atoi(arguments[1]); level > 0; level--) {
        if (mkdir(arguments[2], 0755) != 0 && errno != EEXIST)
            must(-1, "mkdir");
        must(chdir(arguments[2]), "chdir down");
    }
    return close(open("bottom", O_CREAT | O_WRONLY, 0644));
}

/* wide DIRECTORY COUNT: makes directories, ten in each. */
static int wide(char **arguments) {
    char name[32];
    must(chdir(arguments[0]), "chdir");
    for (int i = 0; i < atoi(arguments[1]); i++) {
        if (i % 10 == 0)
            snprintf(name, sizeof(name), "%d", i);
        else
            snprintf(name, sizeof(name), "%d/%d", i - i % 10, i);
        must(mkdir(name, 0755), "mkdir");
    }
    return 0;
}

static void *forever(void *argument) {
    for (;;)
        pause();
    return argument;
}

/* init DIRECTORY: waits for signals, and then: USR1 changes root to DIRECTORY, USR2 ends the main thread only. */
static int init(char **names) {
    sigset_t signals;
    pthread_t thread;
    int number;
    sigfillset(&signals);
    must(sigprocmask(SIG_BLOCK, &signals, NULL), "sigprocmask");
    must(prctl(PR_SET_NAME, ") Z 1\n(sh"), "prctl");
    while (sigwait(&signals, &number) == 0) {
        if (number == SIGUSR1)
            must(chroot(names[0]) || chdir("/"), "chroot");
        if (number == SIGUSR2) {
            must(pthread_create(&thread, NULL, forever, NULL), "pthread_create");
            pthread_exit(NULL);
        }
        if (number == SIGHUP) {
            sigprocmask(SIG_UNBLOCK, &signals, NULL);
            execl("/bin/busybox", "sleep", "3600", NULL);
        }
    }
    return 1;
}

int main(int argc, char **argv) {
    static const struct { const char *name; int (*run)(char **); int arguments, endless; } commands[] = {
        {"swap", swap, 3, 1}, {"replace", replace, 4, 1}, {"relink", relink, 4, 1}, {"flood", flood, 2, 1},
        {"deep", deep, 3, 0}, {"wide", wide, 2, 0}, {"init", init, 1, 0},
    };
    for (size_t i = 0; argc > 1 && i < sizeof(commands) / sizeof(*commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0 && argc == 2 + commands[i].arguments) {
            least = commands[i].endless ? atol(argv[argc - 1]) : 0;
            return commands[i].run(argv + 2);
        }
    fprintf(stderr, "what shall I do?\n");
    return 2;
}
