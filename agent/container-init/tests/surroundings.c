/* Makes surroundings for a program, then executes it.
 *
 *   surroundings deny ERRNO PROGRAM...           newer system calls answer ERRNO
 *   surroundings deny-signalfd ERRNO PROGRAM...  signalfd4 answers ERRNO
 *   surroundings deny-everybody PROGRAM...       kill(2) of -1 is the end of who calls it
 *   surroundings close DIGITS PROGRAM...         closes these descriptors
 *   surroundings descriptors PROGRAM...          leaves 3, 4 and 7 open, LISTEN_PID is its pid
 *   surroundings terminal PROGRAM...             on a terminal that it leads; types a word, makes the
 *                                                window 33 times 44 at "ready", interrupts at "sized"
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int deny(const int *calls, int count, int answer) {
	struct sock_filter filter[32];
	int length = 0;
	filter[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (int at = 0; at < count; at++) {
		filter[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[at], 0, 1);
		filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | answer);
	}
	filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { .len = length, .filter = filter };
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

/* kill(2) of everybody; the caller's process ends, so that nobody overlooks it. */
static int deny_everybody(void) {
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_kill, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xffffffff, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof filter / sizeof *filter, .filter = filter };
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static int terminal(char **words) {
	int master = posix_openpt(O_RDWR | O_NOCTTY);
	if (master < 0 || grantpt(master) || unlockpt(master))
		return 8;
	/* Open before anything is typed: what comes earlier is nobody's. */
	int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
	pid_t pid = fork();
	if (pid == 0) {
		setsid();
		ioctl(slave, TIOCSCTTY, 0);
		/* Who runs us in the background ignores it, and a shell could not trap it then. */
		signal(SIGINT, SIG_DFL);
		close(master);
		dup2(slave, 0), dup2(slave, 1), dup2(slave, 2);
		if (slave > 2)
			close(slave);
		execv(words[0], words);
		_exit(9);
	}
	close(slave);
	write(master, "typed\n", 6);
	char seen[65536] = "";
	size_t length = 0;
	int resized = 0, interrupted = 0;
	for (;;) {
		ssize_t more = read(master, seen + length, sizeof seen - length - 1);
		if (more <= 0)
			break;
		write(1, seen + length, more);
		length += more;
		seen[length] = 0;
		if (!resized && strstr(seen, "ready")) {
			struct winsize size = { .ws_row = 33, .ws_col = 44 };
			resized = 1;
			ioctl(master, TIOCSWINSZ, &size);
		}
		if (!interrupted && strstr(seen, "sized")) {
			interrupted = 1;
			write(master, "\003", 1);
		}
	}
	int status = 0;
	waitpid(pid, &status, 0);
	printf("exit %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	return 0;
}

int main(int count, char **words) {
	if (count < 3)
		return 7;
	if (!strcmp(words[1], "deny")) {
		int calls[] = { SYS_pidfd_open, SYS_pidfd_send_signal, SYS_close_range, SYS_openat2 };
		if (deny(calls, 4, atoi(words[2])))
			return 8;
		words += 3;
	} else if (!strcmp(words[1], "deny-signalfd")) {
		int calls[] = { SYS_signalfd4 };
		if (deny(calls, 1, atoi(words[2])))
			return 8;
		words += 3;
	} else if (!strcmp(words[1], "deny-everybody")) {
		if (deny_everybody())
			return 8;
		words += 2;
	} else if (!strcmp(words[1], "close")) {
		for (char *digit = words[2]; *digit; digit++)
			close(*digit - '0');
		words += 3;
	} else if (!strcmp(words[1], "descriptors")) {
		for (int wanted = 3; wanted < 1024; wanted++)
			close(wanted);
		int file = memfd_create("handed", 0);
		dup2(file, 4), dup2(file, 7);
		char pid[16];
		snprintf(pid, sizeof pid, "%d", getpid());
		setenv("LISTEN_PID", pid, 1);
		setenv("LISTEN_FDS", "1", 1);
		words += 2;
	} else if (!strcmp(words[1], "terminal")) {
		return terminal(words + 2);
	} else {
		return 7;
	}
	execv(words[0], words);
	return 9;
}
