//! The program in order of its life: entry, plan, loop, end.

mod alone;
mod arch;
mod arena;
mod cgroup;
mod clean;
mod crowd;
mod disk;
mod environment;
mod help;
mod lines;
mod link;
mod memory;
mod notify;
mod path;
mod prepared;
mod say;
mod spawn;
mod sys;
mod turn;

pub use arena::entry;

use container_init::command_line::{self, Mode};
use container_init::plan::{EXIT_BAD_PLAN, MAX_PLAN, Plan};
use core::ffi::CStr;

use alone::Command;
use arena::{Arena, Slots};
use crowd::Scope;
use disk::Disk;
use say::{Number, say};
use sys::{Errno, Inherited, Pointers};

/// Exit code for a wrong command line, and for a kernel that refuses what we cannot do without.
const EXIT_USAGE: u8 = 125;

/// Everything after the entry. Never returns: the container ends with the program.
fn run(
    arguments: Pointers<'static>,
    environment: Pointers<'static>,
    arena: &'static mut Arena,
    slots: &'static mut Slots,
) -> ! {
    let inherited = Inherited::take();
    match command_line::parse(arguments.iter().skip(1)) {
        Ok(Mode::Hold) => hold(),
        Ok(Mode::Help) => help::say_help(),
        Ok(Mode::Version) => help::say_version(),
        Ok(Mode::Plan(path)) => {
            sys::close_inherited();
            sys::occupy_standard_streams();
            let plan = read_plan(path, &mut arena.plan);
            let disk = Disk::begin(&plan, &mut slots.disk, &mut arena.log, &arena.disk);
            supervise(plan, inherited, None, disk, &mut arena.turn)
        }
        Ok(Mode::Alone(alone)) => {
            let options = slots.alone.write(alone);
            let argv = arguments.skip(options.command);
            let command = Command {
                argv,
                environment,
                terminal: sys::terminal(),
                inherited,
            };
            if options.parent_death_signal != 0 {
                sys::set_parent_death_signal(options.parent_death_signal)
                    .unwrap_or_else(|errno| refused(b"a parent death signal (prctl)", errno));
            }
            let name = argv.iter().next().and_then(|name| name.to_str().ok());
            let plan = alone::plan(options, &mut slots.command, name.unwrap_or("command"));
            supervise(
                plan,
                inherited,
                Some(command),
                Disk::none(),
                &mut arena.turn,
            )
        }
        Err(misuse) => help::say_misuse(misuse),
    }
}

fn supervise(
    plan: Plan<'static>,
    inherited: Inherited,
    command: Option<Command>,
    disk: Disk,
    buffers: &'static mut turn::Buffers,
) -> ! {
    let scope = match sys::getpid() {
        1 => Scope::Namespace,
        _ => Scope::Subreaper,
    };
    if scope == Scope::Subreaper {
        sys::adopt_orphans()
            .unwrap_or_else(|errno| refused(b"orphans (PR_SET_CHILD_SUBREAPER)", errno));
    }
    // A plan is the agent's; who runs a command may look at us as at the command.
    if command.is_none() {
        sys::hide_memory()
            .unwrap_or_else(|errno| refused(b"to hide memory (PR_SET_DUMPABLE)", errno));
    }
    match sys::signalfd() {
        Ok(signals) => {
            let task = turn::Task {
                plan,
                scope,
                inherited,
                command,
                disk,
            };
            turn::turn(task, signals, buffers)
        }
        Err(errno) => refused(b"signals (signalfd)", errno),
    }
}

/// Ends: the kernel, or a filter, does not let us have what we cannot do without.
fn refused(what: &[u8], errno: Errno) -> ! {
    say(&[
        b"refused: ",
        what,
        b": errno ",
        Number::new(errno.0).as_bytes(),
    ]);
    sys::exit(EXIT_USAGE)
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
