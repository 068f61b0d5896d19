/* What is hard to find, to wait for or to survive.
 *
 *   strangers walk        a chain of forks that never ends: each ignores TERM, forks and leaves
 *   strangers quiet       leaves an orphan behind whose end was to be signalled to nobody
 *   strangers traced      an orphan that it traces and killed: "PID" of it here, and stays
 *   strangers fault PID   makes PID execute what is not there
 */
#define _GNU_SOURCE
#include <elf.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static int walk(void) {
	signal(SIGTERM, SIG_IGN);
	for (;;) {
		if (fork() > 0)
			_exit(0);
		setsid();
	}
}

static int quiet(void) {
	/* No signal to the parent in the flags (clone(2)). */
	if (syscall(SYS_clone, 0, 0, 0, 0, 0) == 0) {
		usleep(200000);
		_exit(0);
	}
	return 0;
}

static int traced(void) {
	int ends[2];
	pid_t orphan;
	if (pipe(ends))
		return 8;
	pid_t parent = fork();
	if (parent == 0) {
		orphan = fork();
		if (orphan == 0)
			for (;;)
				pause();
		write(ends[1], &orphan, sizeof orphan);
		_exit(0);
	}
	waitpid(parent, NULL, 0);
	if (read(ends[0], &orphan, sizeof orphan) != sizeof orphan || ptrace(PTRACE_SEIZE, orphan, 0, 0))
		return 8;
	kill(orphan, SIGKILL);
	siginfo_t info;
	waitid(P_PID, orphan, &info, WEXITED | WNOWAIT | __WALL);
	printf("%d\n", orphan);
	fflush(stdout);
	for (;;)
		pause();
}

static int fault(pid_t pid) {
	struct user_regs_struct registers;
	struct iovec all = { &registers, sizeof registers };
	if (ptrace(PTRACE_ATTACH, pid, 0, 0) || waitpid(pid, NULL, __WALL) != pid)
		return 8;
	if (ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &all))
		return 8;
	registers.rip = 0;
	/* Not the system call again that it waits in. */
	registers.orig_rax = -1;
	return ptrace(PTRACE_SETREGSET, pid, NT_PRSTATUS, &all) || ptrace(PTRACE_DETACH, pid, 0, 0);
}

int main(int count, char **words) {
	if (count == 2 && !strcmp(words[1], "walk"))
		return walk();
	if (count == 2 && !strcmp(words[1], "quiet"))
		return quiet();
	if (count == 2 && !strcmp(words[1], "traced"))
		return traced();
	if (count == 3 && !strcmp(words[1], "fault"))
		return fault(atoi(words[2]));
	return 9;
}
