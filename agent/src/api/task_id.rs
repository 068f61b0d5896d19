//! Task ids: what is allowed, and how one is made up for a caller who gave none.

use chrono::Utc;

/// Longest task id in bytes.
const LONGEST: usize = 128;

/// What is allowed, as a sentence.
pub(super) const TASK_ID_RULE: &str =
    "1 to 128 characters A-Z, a-z, 0-9, '.', '_', ':' and '-', for example peak-7";

/// Whether `id` may name a task: 1..=128 of `[A-Za-z0-9._:-]`.
pub fn is_task_id(id: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    (1..=LONGEST).contains(&id.len()) && id.bytes().all(allowed)
}

/// A new task id: the second it was made in, so that lists read well, and 64 random bits.
pub fn generate_task_id() -> String {
    let mut random = [0_u8; 8];
    // Cannot fail for 8 bytes once the pool is initialised (getrandom(2)); should it, the time in
    // nanoseconds still tells callers apart.
    let filled = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    let now = Utc::now();
    let tail = match filled {
        Ok(8) => u64::from_ne_bytes(random),
        _ => now.timestamp_nanos_opt().unwrap_or_default().unsigned_abs(),
    };
    format!("t-{}-{tail:016x}", now.format("%Y%m%dT%H%M%S"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_up_id_is_allowed_and_new() {
        let (one, other) = (generate_task_id(), generate_task_id());
        assert!(is_task_id(&one), "{one}");
        assert_ne!(one, other);
    }

    #[test]
    fn ids_that_would_need_quoting_are_not_allowed() {
        for bad in ["", "a b", "a/b", "ä", "a\n", &"x".repeat(129)] {
            assert!(!is_task_id(bad), "{bad:?}");
        }
        assert!(is_task_id("peak-7") && is_task_id("a.b_c:D") && is_task_id(&"x".repeat(128)));
    }
}
