//! `nodeagent`: the agent and its command line. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    nodeagent::cli::main(nodeagent::host::daemon)
}
