//! The agent's own log: lines on stderr, of the levels that `NODEAGENT_LOG` names.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

const VARIABLE: &str = "NODEAGENT_LOG";

/// Begins to log. A filter that cannot be read is named in the first line, and `info` is logged.
pub(super) fn start() {
    let (filter, refused) = filter(std::env::var(VARIABLE).ok().as_deref());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .init();
    if let Some(refused) = refused {
        tracing::warn!("{refused}");
    }
}

/// Comma-separated `level` or `target=level`; targets are modules, such as `nodeagent::gate`.
fn filter(value: Option<&str>) -> (Targets, Option<String>) {
    let default = || Targets::new().with_default(LevelFilter::INFO);
    match value {
        None | Some("") => (default(), None),
        Some(value) => match value.parse() {
            Ok(filter) => (filter, None),
            Err(error) => {
                let refused = format!(
                    "{VARIABLE} is {value:?}: {error}; allowed are off, error, warn, info, debug and trace, \
                     each alone or as target=level, separated by commas; info is logged"
                );
                (default(), Some(refused))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn levels_are_those_that_the_variable_names() {
        let (filter, refused) = filter(Some("info,nodeagent::gate=debug"));
        assert_eq!(refused, None);
        assert!(filter.would_enable("nodeagent::pool", &Level::INFO));
        assert!(!filter.would_enable("nodeagent::pool", &Level::DEBUG));
        assert!(filter.would_enable("nodeagent::gate::session", &Level::DEBUG));
    }

    #[test]
    fn without_it_and_with_nonsense_info_is_logged() {
        for value in [None, Some(""), Some("info,gate=loud")] {
            let (filter, refused) = filter(value);
            assert!(filter.would_enable("nodeagent::pool", &Level::INFO));
            assert!(!filter.would_enable("nodeagent::pool", &Level::DEBUG));
            assert_eq!(
                refused.is_some(),
                value.is_some_and(|value| !value.is_empty())
            );
        }
        let refused = filter(Some("info,gate=loud")).1;
        assert!(
            refused
                .is_some_and(|text| text.contains("\"info,gate=loud\"") && text.contains("debug"))
        );
    }
}
