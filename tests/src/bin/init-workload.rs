//! What runs below an init under measurement: see [`nodeagent_tests::init::Workload`].

use std::process::ExitCode;

use nodeagent_tests::init::Workload;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match Workload::run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("init-workload: {error:#}");
            ExitCode::FAILURE
        }
    }
}
