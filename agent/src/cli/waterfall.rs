//! The trail as a waterfall: each step a bar on one time axis.

use std::collections::{BTreeMap, BTreeSet};

use super::duration::millis;
use super::report::line;
use super::table::{Align, Table, plain};
use crate::api::v1::{Step, StepOutcome, Trail};

/// How much is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// Every step, or one line for each kind of step when the task has many instances.
    Fitting,
    /// Every step.
    All,
}

/// Columns of the time axis.
const AXIS: usize = 40;
/// More instances than this are summed up.
const MANY: usize = 8;

/// The waterfall for people.
pub(super) fn render(trail: &Trail, detail: Detail) -> String {
    let mut text = String::new();
    let state = trail.state;
    line(
        &mut text,
        format_args!(
            "task {}: {} {}: {state}, began {}",
            trail.task_id, trail.verb, trail.app, trail.started_at
        ),
    );
    if let Some(traceparent) = &trail.traceparent {
        line(
            &mut text,
            format_args!("traceparent {}", plain(traceparent)),
        );
    }
    if trail.steps.is_empty() {
        line(&mut text, format_args!("no step has ended yet"));
        return text;
    }
    let end = trail
        .steps
        .iter()
        .map(|s| s.start_ms + s.duration_ms)
        .fold(0.0, f64::max);
    let axis = Axis {
        whole_ms: end.max(trail.answer_ms.unwrap_or(0.0)),
    };
    let instances: BTreeSet<_> = trail
        .steps
        .iter()
        .filter_map(|s| s.instance.as_ref())
        .collect();
    text.push('\n');
    if detail == Detail::Fitting && instances.len() > MANY {
        text.push_str(&summed_up(&trail.steps, &axis));
    } else {
        text.push_str(&each(&trail.steps, &axis));
    }
    text.push('\n');
    text.push_str(&foot(trail));
    text
}

struct Axis {
    whole_ms: f64,
}

impl Axis {
    /// A bar of at least one column from `start` to `end`.
    fn bar(&self, start: f64, end: f64) -> String {
        let column = |ms: f64| {
            let part = if self.whole_ms > 0.0 {
                ms / self.whole_ms
            } else {
                0.0
            };
            // Truncation is the point: a position on the axis.
            (part.clamp(0.0, 1.0) * AXIS as f64) as usize
        };
        let from = column(start).min(AXIS - 1);
        let to = column(end).max(from + 1);
        format!(
            "|{}{}{}|",
            " ".repeat(from),
            "=".repeat(to - from),
            " ".repeat(AXIS - to)
        )
    }
}

fn each(steps: &[Step], axis: &Axis) -> String {
    let mut table = Table::new([
        ("STEP", Align::Left),
        ("INSTANCE", Align::Left),
        ("START ms", Align::Right),
        ("TOOK ms", Align::Right),
        ("", Align::Left),
        ("OUTCOME", Align::Left),
    ]);
    for step in steps {
        let attempt = match step.attempt {
            0 | 1 => String::new(),
            attempt => format!(" #{attempt}"),
        };
        table.row([
            format!("{}{attempt}", step.name),
            step.instance.clone().unwrap_or_else(|| "-".to_owned()),
            millis(step.start_ms),
            millis(step.duration_ms),
            axis.bar(step.start_ms, step.start_ms + step.duration_ms),
            match &step.error {
                Some(error) => format!("{}: {error}", step.outcome.as_str()),
                None => step.outcome.as_str().to_owned(),
            },
        ]);
    }
    table.render()
}

/// One line for each kind of step, in the order of their first start.
fn summed_up(steps: &[Step], axis: &Axis) -> String {
    let mut kinds: BTreeMap<&str, Vec<&Step>> = BTreeMap::new();
    for step in steps {
        kinds.entry(&step.name).or_default().push(step);
    }
    let first = |steps: &[&Step]| {
        steps
            .iter()
            .map(|s| s.start_ms)
            .fold(f64::INFINITY, f64::min)
    };
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by(|(_, a), (_, b)| first(a).total_cmp(&first(b)));

    let mut table = Table::new([
        ("STEP", Align::Left),
        ("TIMES", Align::Right),
        ("START ms", Align::Right),
        ("p50 ms", Align::Right),
        ("MAX ms", Align::Right),
        ("", Align::Left),
        ("NOT OK", Align::Right),
        ("SLOWEST", Align::Left),
    ]);
    for (name, mut steps) in kinds {
        let start = first(&steps);
        let end = steps
            .iter()
            .map(|s| s.start_ms + s.duration_ms)
            .fold(0.0, f64::max);
        steps.sort_by(|a, b| a.duration_ms.total_cmp(&b.duration_ms));
        // The nearest rank: the smallest duration that half of the steps do not exceed.
        let p50 = steps[(steps.len() - 1) / 2].duration_ms;
        let Some(slowest) = steps.last() else {
            continue;
        };
        let bad = steps
            .iter()
            .filter(|s| matches!(s.outcome, StepOutcome::Failed | StepOutcome::Retried));
        table.row([
            name.to_owned(),
            steps.len().to_string(),
            millis(start),
            millis(p50),
            millis(slowest.duration_ms),
            axis.bar(start, end),
            match bad.count() {
                0 => String::new(),
                bad => bad.to_string(),
            },
            slowest.instance.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.without_empty("NOT OK").render()
}

fn foot(trail: &Trail) -> String {
    let sum: f64 = trail.steps.iter().map(|step| step.duration_ms).sum();
    let covered = covered_ms(&trail.steps, trail.answer_ms.unwrap_or(f64::INFINITY));
    match trail.answer_ms {
        Some(answer) => {
            let share = if answer > 0.0 {
                100.0 * covered / answer
            } else {
                100.0
            };
            format!(
                "answer after {} ms; steps cover {} ms of it ({share:.1} %), {} ms one after another\n",
                millis(answer),
                millis(covered),
                millis(sum)
            )
        }
        None => format!(
            "no answer was sent yet; steps cover {} ms, {} ms one after another\n",
            millis(covered),
            millis(sum)
        ),
    }
}

/// Milliseconds before `until` in which at least one step was under way.
fn covered_ms(steps: &[Step], until: f64) -> f64 {
    let mut spans: Vec<(f64, f64)> = steps
        .iter()
        .map(|step| (step.start_ms, (step.start_ms + step.duration_ms).min(until)))
        .collect();
    spans.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut covered = 0.0;
    let mut reached = 0.0_f64;
    for (start, end) in spans {
        covered += (end - start.max(reached)).max(0.0);
        reached = reached.max(end);
    }
    covered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(start_ms: f64, duration_ms: f64) -> Step {
        Step {
            instance: None,
            name: "start".into(),
            attempt: 1,
            start_ms,
            duration_ms,
            outcome: StepOutcome::Ok,
            error: None,
        }
    }

    #[test]
    fn time_in_which_two_steps_run_counts_once() {
        let steps = [
            step(0.0, 2.0),
            step(1.0, 3.0),
            step(6.0, 1.0),
            step(6.2, 0.1),
        ];
        assert!((covered_ms(&steps, f64::INFINITY) - 5.0).abs() < 1e-9);
        assert!((covered_ms(&steps, 3.0) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_bar_stays_on_the_axis() {
        let axis = Axis { whole_ms: 10.0 };
        for (start, end) in [
            (0.0, 0.0),
            (10.0, 10.0),
            (9.99, 30.0),
            (0.0, 10.0),
            (-1.0, 2.0),
        ] {
            assert_eq!(axis.bar(start, end).len(), AXIS + 2, "{start}..{end}");
        }
        assert_eq!(Axis { whole_ms: 0.0 }.bar(0.0, 0.0).len(), AXIS + 2);
    }
}
