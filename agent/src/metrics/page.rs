//! The exposition: Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};

use super::instrument::{BOUNDS_US, Histogram};

/// Media type of [`Page::finish`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a family's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// They only grow.
    Counter,
    /// They go up and down.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Labels of a sample: names and values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A page of metrics under way.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Begins a family; its samples follow before the next one.
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        // Writing to a String cannot fail.
        let _ = writeln!(
            self.0,
            "# HELP {name} {help}\n# TYPE {name} {}",
            kind.as_str()
        );
        Family { page: self, name }
    }

    /// A family with one sample without labels.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }

    fn line(
        &mut self,
        name: &str,
        suffix: &str,
        labels: Labels<'_>,
        le: Option<&str>,
        value: impl Display,
    ) {
        let _ = write!(self.0, "{name}{suffix}");
        let all = labels.iter().copied().chain(le.map(|le| ("le", le)));
        for (n, (label, value)) in all.enumerate() {
            let before = if n == 0 { '{' } else { ',' };
            let value = escaped(value);
            let _ = write!(self.0, "{before}{label}=\"{value}\"");
        }
        if !labels.is_empty() || le.is_some() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}

/// A family that takes its samples.
#[derive(Debug)]
pub struct Family<'a> {
    page: &'a mut Page,
    name: &'a str,
}

impl Family<'_> {
    /// One value.
    pub fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        self.page.line(self.name, "", labels, None, value);
    }

    /// Buckets, sum and count.
    pub fn histogram(&mut self, labels: Labels<'_>, histogram: &Histogram) {
        let counts = histogram.cumulative();
        for (bound, count) in BOUNDS_US.iter().zip(counts) {
            let le = std::time::Duration::from_micros(*bound)
                .as_secs_f64()
                .to_string();
            self.page
                .line(self.name, "_bucket", labels, Some(&le), count);
        }
        let total = counts[BOUNDS_US.len()];
        self.page
            .line(self.name, "_bucket", labels, Some("+Inf"), total);
        self.page
            .line(self.name, "_sum", labels, None, histogram.sum_seconds());
        self.page.line(self.name, "_count", labels, None, total);
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_the_text_format() {
        let mut page = Page::default();
        page.single("up", Kind::Gauge, "Whether it is.", 1);
        let histogram = Histogram::default();
        histogram.observe_us(300);
        page.family("took_seconds", Kind::Histogram, "How long.")
            .histogram(&[("step", "a\"\n\\")], &histogram);
        let text = page.finish();
        assert!(
            text.starts_with("# HELP up Whether it is.\n# TYPE up gauge\nup 1\n"),
            "{text}"
        );
        for line in [
            "took_seconds_bucket{step=\"a\\\"\\n\\\\\",le=\"0.00025\"} 0\n",
            "took_seconds_bucket{step=\"a\\\"\\n\\\\\",le=\"0.0005\"} 1\n",
            "took_seconds_bucket{step=\"a\\\"\\n\\\\\",le=\"+Inf\"} 1\n",
            "took_seconds_sum{step=\"a\\\"\\n\\\\\"} 0.0003\n",
            "took_seconds_count{step=\"a\\\"\\n\\\\\"} 1\n",
        ] {
            assert!(text.contains(line), "{line:?} is missing in {text}");
        }
    }
}
