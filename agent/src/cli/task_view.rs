//! A task in words and columns.

use super::duration;
use super::report::line;
use super::table::{Align, Table, plain};
use crate::api::v1::{Current, Task, TaskInstance, TaskState, TaskSummary, Verb};

/// The task for people.
pub(super) fn render(task: &Task) -> String {
    let mut text = String::new();
    let took = duration::took(task.elapsed_ms);
    let outcome = match task.state {
        TaskState::Running => format!("running for {took}"),
        state => format!("{state} in {took}"),
    };
    let (verb, name) = (task.verb, task.instance.as_ref().unwrap_or(&task.app));
    let what = what(&task.into());
    line(
        &mut text,
        format_args!("task {}: {verb} {name} {what}: {outcome}", task.task_id),
    );
    if task.replayed {
        line(
            &mut text,
            format_args!(
                "this is the recorded answer of {}; nothing was done",
                task.created_at
            ),
        );
    }
    line(
        &mut text,
        format_args!(
            "target {} (seq {}), active {}",
            task.target, task.target_seq, task.active
        ),
    );
    if let Some(detail) = &task.detail {
        line(&mut text, format_args!("{}", plain(detail)));
    }
    if let Some(current) = &task.current {
        line(&mut text, format_args!("now: {}", now(current)));
    }
    if !task.instances.is_empty() {
        text.push('\n');
        text.push_str(&instances(&task.instances));
    }
    text
}

/// What was asked of an app or an instance, as on the command line.
pub(super) fn what(task: &TaskSummary) -> String {
    match (task.verb, task.step, &task.process) {
        (Verb::Restart, _, Some(process)) => format!("--process {process} --strategy reuse"),
        (Verb::Restart, _, None) => "--strategy reuse".to_owned(),
        (_, Some(step), _) => format!("--step {step}"),
        (_, None, _) => format!("--to {}", task.to),
    }
}

fn now(current: &Current) -> String {
    let Current {
        target,
        target_seq,
        active,
        starting,
        armed,
        draining,
        failed,
    } = current;
    format!(
        "target {target} (seq {target_seq}), active {active}, starting {starting}, armed {armed}, \
         draining {draining}, failed {failed}"
    )
}

fn instances(instances: &[TaskInstance]) -> String {
    let mut table = Table::new([
        ("INSTANCE", Align::Left),
        ("STATE", Align::Left),
        ("FROM", Align::Left),
        ("GENERATION", Align::Right),
        ("ADDRESS", Align::Left),
        ("ERROR", Align::Left),
    ]);
    for instance in instances {
        table.row([
            instance.name.clone(),
            instance.state.to_string(),
            instance.from.as_str().to_owned(),
            instance.generation.to_string(),
            address(instance),
            match &instance.error {
                Some(error) => format!("{}: {}", error.code, error.detail),
                None => String::new(),
            },
        ]);
    }
    table.without_empty("ERROR").render()
}

fn address(instance: &TaskInstance) -> String {
    match (&instance.address, instance.port) {
        (Some(address), Some(port)) => format!("{address}:{port}"),
        (Some(address), None) => address.clone(),
        (None, _) => "-".to_owned(),
    }
}
