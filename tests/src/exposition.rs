//! Prometheus' text format, read strictly: what it allows and nothing else.
//!
//! Each family once, its HELP and TYPE before its samples; names, labels and escapes by the format's
//! grammar; counters end in `_total` and are not negative; histograms are cumulative and whole.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// Labels of a sample, by name.
pub type Labels = BTreeMap<String, String>;

/// A page: the samples by metric and labels.
#[derive(Debug, Default)]
pub struct Exposition {
    samples: BTreeMap<String, BTreeMap<Labels, f64>>,
}

impl Exposition {
    /// Reads a page.
    pub fn parse(text: &str) -> Result<Self> {
        ensure!(text.ends_with('\n'), "the last line has no end");
        let mut page = Self::default();
        let mut families = BTreeSet::new();
        let (mut name, mut kind) = (String::new(), String::new());
        let mut helped = None;
        for line in text.lines() {
            page.line(line, &mut families, &mut name, &mut kind, &mut helped)
                .with_context(|| format!("in {line:?}"))?;
        }
        Ok(page)
    }

    fn line(
        &mut self,
        line: &str,
        families: &mut BTreeSet<String>,
        name: &mut String,
        kind: &mut String,
        helped: &mut Option<String>,
    ) -> Result<()> {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (family, text) = help.split_once(' ').context("no help text")?;
            ensure!(is_name(family, true) && !text.is_empty(), "not a help");
            ensure!(families.insert(family.to_owned()), "the family comes twice");
            *helped = Some(family.to_owned());
            return Ok(());
        }
        if let Some(of) = line.strip_prefix("# TYPE ") {
            let (family, of) = of.split_once(' ').context("no type")?;
            ensure!(
                helped.take().as_deref() == Some(family),
                "TYPE without HELP"
            );
            ensure!(
                ["counter", "gauge", "histogram"].contains(&of),
                "unknown type"
            );
            ensure!(
                (of == "counter") == family.ends_with("_total"),
                "a counter ends in _total"
            );
            (*name, *kind) = (family.to_owned(), of.to_owned());
            return Ok(());
        }
        let end = line.find(['{', ' ']).context("not a sample")?;
        let (metric, rest) = line.split_at(end);
        let suffix = metric
            .strip_prefix(name.as_str())
            .context("a sample of another family")?;
        let histogram = ["_bucket", "_sum", "_count"].contains(&suffix);
        ensure!(
            if kind == "histogram" {
                histogram
            } else {
                suffix.is_empty()
            },
            "wrong suffix"
        );
        let (labels, value) = labels(rest)?;
        ensure!(
            (suffix == "_bucket") == labels.contains_key("le"),
            "le belongs to buckets"
        );
        let value: f64 = value.parse().context("not a number")?;
        ensure!(kind == "gauge" || value >= 0.0, "negative");
        let known = self.samples.entry(metric.to_owned()).or_default();
        ensure!(
            known.insert(labels, value).is_none(),
            "the sample comes twice"
        );
        Ok(())
    }

    /// The value of a sample; `labels` are all of it.
    pub fn value(&self, metric: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let labels: Labels = labels.iter().map(owned).collect();
        self.samples.get(metric)?.get(&labels).copied()
    }

    /// Every histogram is cumulative, and its `+Inf` is its count.
    pub fn check_histograms(&self) -> Result<()> {
        for (metric, samples) in &self.samples {
            let Some(family) = metric.strip_suffix("_bucket") else {
                continue;
            };
            let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
            for (labels, value) in samples {
                let mut rest = labels.clone();
                let le = rest.remove("le").context("a bucket without le")?;
                let le = if le == "+Inf" {
                    f64::INFINITY
                } else {
                    le.parse()?
                };
                series.entry(rest).or_default().push((le, *value));
            }
            for (labels, mut buckets) in series {
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                let rising = buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1);
                ensure!(rising, "{family} {labels:?} is not cumulative: {buckets:?}");
                let count = self.samples.get(&format!("{family}_count"));
                let count = count.and_then(|counts| counts.get(&labels)).copied();
                let (le, last) = buckets.last().copied().context("no bucket")?;
                ensure!(
                    le.is_infinite() && Some(last) == count,
                    "{family} {labels:?}: {last} of {count:?}"
                );
            }
        }
        Ok(())
    }
}

fn is_name(text: &str, colon: bool) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_' || (colon && c == ':');
    text.starts_with(first) && text.chars().all(|c| first(c) || c.is_ascii_digit())
}

/// `{a="b",c="d"} 1` as labels and the text of the value.
fn labels(text: &str) -> Result<(Labels, &str)> {
    let mut labels = Labels::new();
    let Some(mut rest) = text.strip_prefix('{') else {
        return Ok((labels, text.strip_prefix(' ').context("no value")?));
    };
    loop {
        let (name, after) = rest.split_once("=\"").context("not a label")?;
        ensure!(is_name(name, false), "label {name:?}");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().context("a value without end")? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, c @ ('\\' | '"'))) => c,
                    other => bail!("escape {other:?}"),
                }),
                (_, c) => value.push(c),
            }
        };
        ensure!(
            labels.insert(name.to_owned(), value).is_none(),
            "label {name} comes twice"
        );
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => {
                let value = rest.strip_prefix("} ").context("no end of labels")?;
                return Ok((labels, value));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_format_is_refused() {
        let good = "# HELP a b\n# TYPE a gauge\na{x=\"1\\n\"} 2\n";
        let page = Exposition::parse(good).unwrap();
        assert_eq!(page.value("a", &[("x", "1\n")]), Some(2.0));
        for bad in [
            "a 1\n",
            "# HELP a b\n# TYPE a gauge\na 1",
            "# HELP a b\n# TYPE a counter\na 1\n",
            "# HELP a b\n# TYPE a gauge\nb 1\n",
            "# HELP a b\n# TYPE a gauge\na 1\na 2\n",
            "# HELP a b\n# TYPE a gauge\na{x=1} 1\n",
            "# HELP a b\n# TYPE a gauge\na{x=\"1\"}1\n",
            "# HELP a b\n# TYPE a gauge\na x\n",
            "# TYPE a gauge\na 1\n",
        ] {
            assert!(Exposition::parse(bad).is_err(), "{bad:?}");
        }
    }
}
