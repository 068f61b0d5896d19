//! The names of the metrics are a promise: a golden file has them (`UPDATE_GOLDEN=1` writes it).
// A panic is the report of a test; clippy knows that only of functions marked as tests.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nodeagent::alarm::AlarmCode;
use nodeagent::instance::EffectKind;
use nodeagent::metrics::{Call, Facts, ImageFacts, Metrics, PoolFacts, Verdict, render};
use nodeagent::task::EndState;

fn page() -> String {
    let metrics = Metrics::default();
    let file = metrics.backend("file");
    file.called(Call::Register, Verdict::Ok, 2, Duration::from_micros(300));
    metrics.task_ended(EndState::Done, 2_400);
    metrics.activated("armed", Verdict::Ok, Some(1_900));
    metrics.activated("cached", Verdict::Failed, None);
    metrics.step_ended(EffectKind::Start, Verdict::Ok, Duration::from_millis(1));
    metrics.committed(Verdict::Ok, Duration::from_micros(400));
    metrics.refilled(Verdict::Failed);
    let facts = Facts {
        pools: vec![PoolFacts {
            app: "web".to_owned(),
            target: 3,
            warm_armed: 2,
            instances: vec![("active", 3), ("armed", 2)],
        }],
        alarms: vec![AlarmCode::Leak],
        ready: true,
        images: ImageFacts {
            fetched: vec![("registry", 700), ("peer", 300)],
            served_bytes: 900,
            uploads: 2,
        },
        ..Facts::default()
    };
    render(&metrics, &facts).finish()
}

fn manifest(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Lines `# HELP name text` and `# TYPE name kind`.
fn families(page: &str) -> String {
    let comment = |line: &&str| line.starts_with("# ");
    page.lines()
        .filter(comment)
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn names_types_and_help_texts_are_those_of_the_golden_file() {
    let golden = manifest("tests/golden/metrics.txt");
    let families = families(&page());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &families).unwrap();
    }
    assert_eq!(families, fs::read_to_string(golden).unwrap());
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let docs = fs::read_to_string(manifest("../docs/operations/api.md")).unwrap();
    let (_, section) = docs.split_once("## Metrics\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let row = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
    let mut documented: Vec<String> = section.lines().filter_map(row).collect();
    let families = families(&page());
    let types = families
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let name = |line: &str| line.split_once(' ').unwrap().0.to_owned();
    let mut existing: Vec<String> = types.map(name).collect();
    // The server's own.
    existing.push("nodeagent_api_requests_total".to_owned());
    documented.sort();
    existing.sort();
    assert_eq!(documented, existing);
}

#[test]
fn what_happened_is_counted_where_its_labels_say() {
    let page = page();
    for line in [
        "nodeagent_activations_total{from=\"armed\",outcome=\"ok\"} 1",
        "nodeagent_activations_total{from=\"cached\",outcome=\"failed\"} 1",
        "nodeagent_activation_duration_seconds_bucket{from=\"armed\",le=\"0.001\"} 0",
        "nodeagent_activation_duration_seconds_bucket{from=\"armed\",le=\"0.0025\"} 1",
        "nodeagent_task_duration_seconds_count{outcome=\"done\"} 1",
        "nodeagent_step_duration_seconds_sum{step=\"start\",outcome=\"ok\"} 0.001",
        "nodeagent_discovery_records_total{backend=\"file\"} 2",
        "nodeagent_refill_total{outcome=\"failed\"} 1",
        "nodeagent_alarm{code=\"leak\"} 1",
        "nodeagent_alarm{code=\"journal_lost\"} 0",
        "nodeagent_instances{app=\"web\",state=\"armed\"} 2",
        "nodeagent_target_instances{app=\"web\"} 3",
        "nodeagent_image_fetched_bytes_total{from=\"peer\"} 300",
        "nodeagent_image_served_bytes_total 900",
        "nodeagent_image_uploads 2",
    ] {
        assert!(
            page.lines().any(|found| found == line),
            "{line:?} is missing in {page}"
        );
    }
}
