//! What the author may have meant.

/// The member of `known` nearest to `given`, when one is near enough to be a slip.
pub(crate) fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |text: &str| text.replace(['_', '-'], "").to_lowercase();
    let given = plain(given);
    known
        .iter()
        .map(|name| (strsim::osa_distance(&given, &plain(name)), *name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).clamp(1, 4))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The sentence for a field that is not in `known`.
pub(crate) fn unknown_field(given: &str, known: &[&str]) -> String {
    match nearest(given, known) {
        Some(name) => format!("unknown field, did you mean {name}?"),
        None if known.is_empty() => "unknown field, no fields are allowed here".to_owned(),
        None => format!("unknown field, known here: {}", known.join(", ")),
    }
}

/// What is allowed where one word of `known` is wanted, and what was nearly written.
pub(crate) fn one_of(given: &str, known: &[&str]) -> String {
    let list = known.join(", ");
    match nearest(given, known) {
        Some(name) => format!("one of {list} (did you mean {name}?)"),
        None => format!("one of {list}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_a_stranger_is_not() {
        let known = ["terminationGracePeriodSeconds", "drainSeconds", "env"];
        assert_eq!(
            unknown_field("terminationGracePeriodSecond", &known),
            "unknown field, did you mean terminationGracePeriodSeconds?"
        );
        assert_eq!(
            unknown_field("drain_seconds", &known),
            "unknown field, did you mean drainSeconds?"
        );
        assert_eq!(
            unknown_field("volumes", &known),
            "unknown field, known here: terminationGracePeriodSeconds, drainSeconds, env"
        );
    }
}
