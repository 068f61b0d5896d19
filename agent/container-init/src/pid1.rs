//! The program in order of its life: entry, plan, loop, end.

mod arch;
mod arena;
mod cgroup;
mod environment;
mod link;
mod notify;
mod prepared;
mod ring;
mod say;
mod spawn;
mod sys;
mod turn;

pub use arena::entry;

use container_init::MARK;
use container_init::plan::{EXIT_BAD_PLAN, MAX_PLAN, Plan};
use container_init::supervisor::Scope;
use core::ffi::CStr;

use arena::Arena;
use say::{Number, say};

/// Exit code for a wrong command line.
const EXIT_USAGE: u8 = 125;

/// Everything after the entry. Never returns: the container ends with the program.
fn run<'a>(mut arguments: impl Iterator<Item = &'a CStr>, arena: &'static mut Arena) -> ! {
    sys::block_all();
    sys::default_dispositions();
    sys::close_inherited();
    sys::occupy_standard_streams();
    let plan = match (
        arguments.nth(1).map(CStr::to_bytes),
        arguments.next(),
        arguments.next(),
    ) {
        (Some(b"--hold"), None, None) => hold(),
        (Some(b"--plan"), Some(path), None) => read_plan(path, &mut arena.plan),
        _ => {
            say(&[
                MARK.as_bytes(),
                b"; usage: container-init --plan FILE, or --hold",
            ]);
            sys::exit(EXIT_USAGE)
        }
    };
    let scope = match sys::getpid() {
        1 => Scope::Namespace,
        _ => Scope::Subreaper,
    };
    if scope == Scope::Subreaper && sys::adopt_orphans().is_err() {
        say(&[b"neither pid 1 nor able to adopt orphans (PR_SET_CHILD_SUBREAPER)"]);
        sys::exit(EXIT_USAGE)
    }
    if let Err(errno) = sys::hide_memory() {
        say(&[
            b"cannot hide memory (PR_SET_DUMPABLE): errno ",
            Number::new(errno.0).as_bytes(),
        ]);
        sys::exit(EXIT_USAGE)
    }
    match sys::signalfd() {
        Ok(signals) => turn::turn(plan, scope, signals, &mut arena.turn),
        Err(errno) => {
            say(&[
                b"cannot receive signals (signalfd): errno ",
                Number::new(errno.0).as_bytes(),
            ]);
            sys::exit(EXIT_USAGE)
        }
    }
}

/// Does nothing until a signal ends it: a process that keeps a cgroup from being empty.
fn hold() -> ! {
    sys::unblock_all();
    loop {
        sys::wait(&mut [], None);
    }
}

fn read_plan(path: &CStr, room: &'static mut [u8; MAX_PLAN + 1]) -> Plan<'static> {
    let name = path.to_bytes();
    let mut length = 0;
    let read = sys::open(path, sys::Open::Read).and_then(|file| {
        loop {
            match sys::read(&file, room.get_mut(length..).unwrap_or_default()) {
                Ok(0) => return Ok(()),
                Ok(more) => length += more,
                Err(errno) => return Err(errno),
            }
        }
    });
    if let Err(errno) = read {
        say(&[
            b"plan ",
            name,
            b": cannot be read: errno ",
            Number::new(errno.0).as_bytes(),
        ]);
        sys::exit(EXIT_BAD_PLAN)
    }
    if length > MAX_PLAN {
        say(&[
            b"plan ",
            name,
            b": longer than ",
            Number::new(MAX_PLAN as i32).as_bytes(),
            b" bytes",
        ]);
        sys::exit(EXIT_BAD_PLAN)
    }
    match Plan::decode(room.get(..length).unwrap_or_default()) {
        Ok(plan) => plan,
        Err(malformed) => {
            let (object, fault) = malformed.parts();
            say(&[
                b"plan ",
                name,
                b": ",
                object.as_bytes(),
                b" ",
                fault.as_bytes(),
            ]);
            sys::exit(EXIT_BAD_PLAN)
        }
    }
}
