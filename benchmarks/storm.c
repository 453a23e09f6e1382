/* "storm DIRECTORY" makes the directories 0 to 9999 by their digits: 1, 1/0, 1/0/0, 1/0/0/0, 1/0/0/1 and so on, so that
   most are made before anybody can have seen the one above. "storm DIRECTORY probe" makes a file in each.
   "storm DIRECTORY make COUNT" makes so many, a power of ten. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int probe;
static int count = 10000;

static int make(const char *above, int number)
{
    char path[32], file[40];
    snprintf(path, sizeof(path), "%s%d", above, number % 10);
    snprintf(file, sizeof(file), "%s/probe", path);
    if ((probe ? mknod(file, S_IFREG | 0600, 0) : mkdir(path, 0700)) != 0) return 1;
    snprintf(file, sizeof(file), "%s/", path);
    if (number > 0 && number < count / 10)
        for (int digit = 0; digit < 10; digit++)
            if (make(file, number * 10 + digit) != 0) return 1;
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 2 || chdir(argv[1]) != 0) return 1;
    probe = argc > 2 && strcmp(argv[2], "probe") == 0;
    if (argc > 3) count = atoi(argv[3]);
    for (int digit = 0; digit < 10; digit++)
        if (make("", digit) != 0) return 1;
    return 0;
}
