//! What a benchmark reports: samples, rows beside their peer, a table and a JSON file.
//!
//! The shape is that of `target/bench/NAME.json`; a figure without its peer's in the same run is
//! orientation only.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Measurements of one case, sorted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self(values)
    }
}

impl Samples {
    /// How many.
    pub fn n(&self) -> usize {
        self.0.len()
    }

    /// The smallest value that `percent` of the values do not exceed (nearest rank); 0 of none.
    pub fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or(0.0)
    }

    /// The same measurements without a part that is known: what is left may be below 0.
    pub fn less(&self, known: f64) -> Self {
        self.0.iter().map(|value| value - known).collect()
    }

    /// The median.
    pub fn p50(&self) -> f64 {
        self.percentile(50)
    }

    /// The 99th percentile.
    pub fn p99(&self) -> f64 {
        self.percentile(99)
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.percentile(100)
    }
}

/// Which cases of a benchmark are wanted, and how often each is measured: `BENCH_CASES` and
/// `BENCH_TIMES`; all, as often as is usual, without them.
#[derive(Debug, Clone)]
pub struct Selection {
    cases: Option<Vec<String>>,
    times: Option<usize>,
}

impl Selection {
    /// What the environment says of `bench`, in capitals; names of cases stand between `separators`.
    pub fn of(bench: &str, separators: &[char]) -> Self {
        let said = |what: &str| std::env::var(format!("{bench}_{what}")).ok();
        let words = |list: String| {
            let words = list.split(separators).map(|word| word.trim().to_owned());
            words.collect()
        };
        Self {
            cases: said("CASES").map(words),
            times: said("TIMES").and_then(|times| times.parse().ok()),
        }
    }

    /// Whether this case is wanted.
    pub fn has(&self, case: &str) -> bool {
        let cases = self.cases.as_ref();
        cases.is_none_or(|cases| cases.iter().any(|wanted| wanted == case))
    }

    /// How often a case is measured that usually is so often.
    pub fn times(&self, usual: usize) -> usize {
        self.times.unwrap_or(usual)
    }
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// The peer's p50 divided by ours.
    RatioAtLeast(f64),
    /// In the row's unit.
    P50AtMost(f64),
    /// In the row's unit.
    P99AtMost(f64),
    /// In the row's unit.
    MaxAtMost(f64),
}

/// One line of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was measured.
    pub case: String,
    /// The state things were in.
    pub state: String,
    /// Unit of the figures.
    pub unit: String,
    /// Number of measurements.
    pub n: usize,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
    /// What ran beside it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peer: Option<String>,
    /// How often.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peer_n: Option<usize>,
    /// Its median.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peer_p50: Option<f64>,
    /// The peer's median divided by ours: how many times faster (or smaller) ours is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ratio: Option<f64>,
    /// What it should be.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<String>,
    /// Whether it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub met: Option<bool>,
}

impl Row {
    /// A row without peer and target.
    pub fn new(case: &str, state: &str, unit: &str, samples: &Samples) -> Self {
        Self {
            case: case.to_owned(),
            state: state.to_owned(),
            unit: unit.to_owned(),
            n: samples.n(),
            p50: rounded(samples.p50()),
            p99: rounded(samples.p99()),
            max: rounded(samples.max()),
            peer: None,
            peer_n: None,
            peer_p50: None,
            ratio: None,
            target: None,
            met: None,
        }
    }

    /// Sets the peer of the same run.
    pub fn beside(mut self, peer: &str, samples: &Samples) -> Self {
        self.peer = Some(peer.to_owned());
        self.peer_n = Some(samples.n());
        self.peer_p50 = Some(rounded(samples.p50()));
        self.ratio = (self.p50 > 0.0).then(|| rounded(samples.p50() / self.p50));
        self
    }

    /// Sets what it should be: all of `targets`.
    pub fn wanted(mut self, targets: &[Target]) -> Self {
        let texts: Vec<String> = targets
            .iter()
            .map(|target| match target {
                Target::RatioAtLeast(ratio) => format!("ratio >= {ratio}"),
                Target::P50AtMost(most) => format!("p50 <= {most}"),
                Target::P99AtMost(most) => format!("p99 <= {most}"),
                Target::MaxAtMost(most) => format!("max <= {most}"),
            })
            .collect();
        self.met = Some(targets.iter().all(|target| match target {
            Target::RatioAtLeast(least) => self.ratio.is_some_and(|ratio| ratio >= *least),
            Target::P50AtMost(most) => self.p50 <= *most,
            Target::P99AtMost(most) => self.p99 <= *most,
            Target::MaxAtMost(most) => self.max <= *most,
        }));
        self.target = Some(texts.join(", "));
        self
    }
}

/// Microseconds of a millisecond are the last digit that means anything here.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The machine that the figures are from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// `uname -r`.
    pub kernel: String,
    /// `v1` (hybrid included) or `v2`.
    pub cgroup: String,
    /// Version of containerd.
    pub containerd: String,
    /// OCI runtime.
    pub runtime: String,
}

impl Machine {
    /// This machine; `containerd` is the version of the one that was used.
    pub fn here(containerd: String) -> Self {
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            cgroup: if v2 { "v2" } else { "v1" }.to_owned(),
            containerd,
            runtime: "runc".to_owned(),
        }
    }
}

/// One benchmark's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its name.
    pub bench: String,
    /// Where it ran.
    pub host: Machine,
    /// Its figures.
    pub rows: Vec<Row>,
}

impl Report {
    /// Writes `target/bench/<name>.json` and prints the table.
    pub fn publish(&self) -> Result<()> {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bench");
        fs::create_dir_all(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        let file = directory.join(format!("{}.json", self.bench));
        let text = serde_json::to_string_pretty(self).context("write the report")?;
        fs::write(&file, text + "\n").with_context(|| format!("write {}", file.display()))?;
        println!("{}", self.table());
        println!("target/bench/{}.json", self.bench);
        Ok(())
    }

    /// The table for people.
    pub fn table(&self) -> String {
        let Machine {
            cores,
            kernel,
            cgroup,
            containerd,
            runtime,
        } = &self.host;
        let mut table = format!(
            "{} on {cores} cores, kernel {kernel}, cgroup {cgroup}, containerd {containerd}, {runtime}\n\n",
            self.bench
        );
        let line = |cells: [&str; 10]| {
            let [case, unit, n, p50, p99, max, peer, ratio, target, met] = cells;
            format!(
                "{case:<34} {unit:<5} {n:>5} {p50:>9} {p99:>9} {max:>9}  {peer:<22} {ratio:>7}  {target:<26} {met}"
            )
            .trim_end()
            .to_owned()
        };
        let head = [
            "case",
            "unit",
            "n",
            "p50",
            "p99",
            "max",
            "peer (p50)",
            "ratio",
            "target",
            "met",
        ];
        // Writing to a String cannot fail.
        let _ = writeln!(table, "{}", line(head));
        for row in &self.rows {
            let number = |value: f64| format!("{value:.2}");
            let peer = match (&row.peer, row.peer_p50) {
                (Some(peer), Some(p50)) => format!("{peer} ({p50:.1})"),
                _ => String::new(),
            };
            let met = match row.met {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "",
            };
            let _ = writeln!(
                table,
                "{}",
                line([
                    &row.case,
                    &row.unit,
                    &row.n.to_string(),
                    &number(row.p50),
                    &number(row.p99),
                    &number(row.max),
                    &peer,
                    &row.ratio.map(number).unwrap_or_default(),
                    row.target.as_deref().unwrap_or_default(),
                    met,
                ])
            );
        }
        table.push('\n');
        for row in &self.rows {
            let _ = writeln!(table, "{}: {}", row.case, row.state);
        }
        table
    }

    /// The cases that miss their target.
    pub fn short(&self) -> Vec<&Row> {
        self.rows
            .iter()
            .filter(|row| row.met == Some(false))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let samples: Samples = (1..=200).rev().map(f64::from).collect();
        assert_eq!(
            (samples.p50(), samples.p99(), samples.max()),
            (100.0, 198.0, 200.0)
        );
        let one: Samples = [7.0].into_iter().collect();
        assert_eq!((one.p50(), one.p99(), one.max()), (7.0, 7.0, 7.0));
        assert_eq!(Samples::default().p50(), 0.0);
    }

    #[test]
    fn a_row_that_misses_one_of_its_targets_is_short() {
        let ours: Samples = [2.0, 2.0, 20.0].into_iter().collect();
        let peer: Samples = [120.0].into_iter().collect();
        let row = Row::new("armed", "warm", "ms", &ours).beside("ctr run -d", &peer);
        assert_eq!(row.ratio, Some(60.0));
        let fast = row.clone().wanted(&[Target::RatioAtLeast(50.0)]);
        assert_eq!(fast.met, Some(true));
        let slow = row.wanted(&[Target::RatioAtLeast(50.0), Target::P99AtMost(15.0)]);
        assert_eq!(slow.met, Some(false));
        assert_eq!(slow.target.as_deref(), Some("ratio >= 50, p99 <= 15"));
    }
}
