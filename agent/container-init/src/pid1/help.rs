//! What the program says of itself, and of a wrong command line.

use container_init::MARK;
use container_init::command_line::Misuse;

use super::say::say;
use super::{EXIT_USAGE, sys};

const HELP: &str = "\
Usage: container-init [OPTIONS] [--] COMMAND [ARGUMENT...]
       container-init --plan FILE

Runs COMMAND as pid 1 or as a subreaper: passes signals on, reaps every orphan, ends what outlives
COMMAND, and ends as COMMAND did.

  -g, --group              signals reach the process group of COMMAND, not only COMMAND
  -r, --rewrite FROM:TO    pass signal FROM on as TO; 0 drops it; may be repeated
  -e, --remap CODE         exit code CODE of COMMAND becomes 0 (FROM:TO: becomes TO)
  -t, --grace SECONDS      kill what is left so long after TERM; without it COMMAND has all the time
  -p, --parent-death-signal SIGNAL
                           have SIGNAL sent to us when our parent ends
  -s, -v, -w, -c           accepted for the sake of tini and dumb-init
      --plan FILE          run the processes of a plan that nodeagent wrote
  -V, --version
  -h, --help

Exit code: COMMAND's, 128 + N when signal N ended it, 126 when it could not be executed, 127 when it
was not found, 125 when container-init itself could not work.

Examples:
  container-init -- /usr/sbin/nginx -g 'daemon off;'
  container-init -g -r TERM:QUIT -t 20 -- ./start.sh
  container-init -e 143 -- java -jar app.jar
";

/// To standard output.
pub fn say_help() -> ! {
    print(HELP.as_bytes());
    sys::exit(0)
}

/// To standard output. The words are those of `--version` of most programs.
pub fn say_version() -> ! {
    print(MARK.as_bytes());
    print(b"\n");
    sys::exit(0)
}

fn print(mut text: &[u8]) {
    while let Ok(written @ 1..) = sys::write_raw(1, text) {
        text = text.get(written..).unwrap_or_default();
    }
}

/// To standard error.
pub fn say_misuse(misuse: Misuse<'_>) -> ! {
    match misuse {
        Misuse::Option(word) => say(&[b"no option ", word.to_bytes(), b"; try --help"]),
        Misuse::Value {
            option,
            given,
            allowed,
        } => say(&[
            b"value '",
            given,
            b"' of --",
            option.as_bytes(),
            b": allowed is ",
            allowed.as_bytes(),
        ]),
        Misuse::Nothing => say(&[
            MARK.as_bytes(),
            b"; nothing to run: container-init [OPTIONS] [--] COMMAND [ARGUMENT...]; try --help",
        ]),
    }
    sys::exit(EXIT_USAGE)
}
