/* Waits for signals and says each with what came with it, or sends one.
 *
 *   signals receive             "set", then "SIGNAL VALUE" for every signal that comes
 *   signals send PID SIGNAL VALUE
 *   signals root                is root altogether, says "set", stays
 *   signals inherit COMMAND...  blocks USR2 and 40, ignores HUP, CHLD and TTIN, executes COMMAND
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int count, char **words) {
	sigset_t set;
	if (count == 2 && !strcmp(words[1], "receive")) {
		/* Not through libc, which keeps 32 and 33 for itself. */
		unsigned long all = ~0ul;
		siginfo_t info;
		syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, sizeof all);
		setvbuf(stdout, NULL, _IOLBF, 0);
		puts("set");
		for (;;)
			if (syscall(SYS_rt_sigtimedwait, &all, &info, NULL, sizeof all) > 0)
				printf("%d %d\n", info.si_signo, info.si_code == SI_QUEUE ? info.si_value.sival_int : 0);
	}
	if (count == 5 && !strcmp(words[1], "send")) {
		union sigval value = { .sival_int = atoi(words[4]) };
		return sigqueue(atoi(words[2]), atoi(words[3]), value) != 0;
	}
	if (count == 2 && !strcmp(words[1], "root")) {
		if (setresuid(0, 0, 0))
			return 8;
		puts("set");
		fflush(stdout);
		for (;;)
			pause();
	}
	if (count > 2 && !strcmp(words[1], "inherit")) {
		sigemptyset(&set);
		sigaddset(&set, SIGUSR2);
		sigaddset(&set, 40);
		sigprocmask(SIG_SETMASK, &set, NULL);
		signal(SIGHUP, SIG_IGN);
		signal(SIGCHLD, SIG_IGN);
		signal(SIGTTIN, SIG_IGN);
		execv(words[2], words + 2);
	}
	return 9;
}
