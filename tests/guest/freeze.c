/* Freezes one thread of another process, and nothing else of it: while it waits in poll(), so that it holds no lock.
 *
 *   freeze PID THREAD [SECONDS]     THREAD: a name as in /proc/PID/task/TID/comm, or a TID
 *
 * Prints "frozen TID" when the thread stands still. Lets it go after SECONDS, at SIGTERM or SIGINT, or when this
 * program dies in any other way (the kernel detaches). Ends too when the frozen process dies. Exit code 1: not found.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static void stop(int signal_number)
{
    (void)signal_number;
}

static pid_t thread_by_name(const char *pid, const char *name)
{
    char path[300], found[64];
    snprintf(path, sizeof path, "/proc/%s/task", pid);
    DIR *tasks = opendir(path);
    for (struct dirent *task; tasks && (task = readdir(tasks));) {
        snprintf(path, sizeof path, "/proc/%s/task/%s/comm", pid, task->d_name);
        FILE *comm = fopen(path, "r");
        if (comm && fgets(found, sizeof found, comm) && (found[strcspn(found, "\n")] = 0, !strcmp(found, name)))
            return (pid_t)atoi(task->d_name);
        if (comm)
            fclose(comm);
    }
    return 0;
}

static int waits_in_poll(pid_t tid)
{
    struct user_regs_struct registers;
    return !ptrace(PTRACE_GETREGS, tid, 0, &registers) && (long)registers.orig_rax == SYS_poll;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: freeze PID THREAD [SECONDS]\n");
        return 2;
    }
    pid_t tid = thread_by_name(argv[1], argv[2]);
    if (!tid && isdigit((unsigned char)argv[2][0]))
        tid = (pid_t)atoi(argv[2]);
    if (!tid) {
        fprintf(stderr, "freeze: process %s has no thread named %s\n", argv[1], argv[2]);
        return 1;
    }
    struct sigaction action = {.sa_handler = stop}; /* without SA_RESTART: waitpid ends with EINTR */
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGALRM, &action, NULL);

    int status, failed = ptrace(PTRACE_SEIZE, tid, 0, 0) != 0;
    while (!failed) {
        failed = ptrace(PTRACE_INTERRUPT, tid, 0, 0) || waitpid(tid, &status, __WALL) < 0;
        if (failed || waits_in_poll(tid))
            break;
        failed = ptrace(PTRACE_CONT, tid, 0, 0) != 0;
        usleep(1300);
    }
    if (failed) {
        perror("freeze: ptrace");
        return 1;
    }
    printf("frozen %d\n", tid);
    fflush(stdout);
    if (argc > 3)
        alarm((unsigned)atoi(argv[3]));

    /* A thread that is traced stays a zombie until its tracer waits for it, and its process with it: wait. */
    while (waitpid(tid, &status, __WALL) > 0 && WIFSTOPPED(status))
        ;
    if (errno == EINTR)
        ptrace(PTRACE_DETACH, tid, 0, 0);
    return 0;
}
