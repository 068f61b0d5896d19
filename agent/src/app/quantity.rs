//! Kubernetes' quantities: `500m`, `128Mi`, `1.5`, `2e3`.
//!
//! The grammar is that of `k8s.io/apimachinery/pkg/api/resource` (`Quantity`); results are rounded
//! up to whole units, as there. No floating point is involved.

/// What is allowed, for messages.
pub(super) const CPU_ALLOWED: &str =
    "10m (a hundredth of a core) to 4096 cores, for example 500m, 2 or 1.5";
/// What is allowed, for messages.
pub(super) const MEMORY_ALLOWED: &str = "6Mi to 1Pi bytes, for example 128Mi, 2Gi or 134217728";

/// What is allowed, for messages.
pub(super) const SIZE_ALLOWED: &str = "4Ki to 1Pi bytes, for example 64Mi, 1Gi or 67108864";

/// Bytes of a file system; the lower bound is one page.
pub(super) fn size_bytes(text: &str) -> Option<u64> {
    bytes(text).filter(|bytes| (4 << 10..=1 << 50).contains(bytes))
}

/// Any number of bytes.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    scaled(text, 0)
}

/// The shortest spelling with a binary unit that [`bytes`] reads back: `10Mi`.
pub(crate) fn spell(bytes: u64) -> String {
    let units = [(50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")];
    let whole = |(shift, _): &(u32, &str)| bytes != 0 && bytes.trailing_zeros() >= *shift;
    match units.into_iter().find(whole) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// Thousandths of a core.
pub(super) fn cpu_millis(text: &str) -> Option<u64> {
    scaled(text, 3).filter(|millis| (10..=4_096_000).contains(millis))
}

/// Bytes. The lower bound is what runc itself needs to start a container.
pub(super) fn memory_bytes(text: &str) -> Option<u64> {
    scaled(text, 0).filter(|bytes| (6 << 20..=1 << 50).contains(bytes))
}

/// The quantity times 10^`shift`, rounded up; `None` when it is negative, malformed or too large.
fn scaled(text: &str, shift: i32) -> Option<u64> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = [whole, fraction].concat();
    // 24 digits and a factor of 2^60 stay within 127 bits.
    if digits.is_empty() || digits.len() > 18 || fraction.contains('.') {
        return None;
    }
    let mantissa: u128 = digits.parse().ok()?;
    let (binary, decimal) = factor(suffix)?;
    let exponent = decimal + shift - i32::try_from(fraction.len()).ok()?;
    let value = mantissa.checked_mul(1 << binary)?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
    let scaled = if exponent < 0 {
        value.div_ceil(power)
    } else {
        value.checked_mul(power)?
    };
    u64::try_from(scaled).ok()
}

/// The suffix as powers of two and of ten.
fn factor(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        other => {
            let exponent = other.strip_prefix(['e', 'E'])?;
            let exponent: i32 = exponent.parse().ok()?;
            (0, (-30..=18).contains(&exponent).then_some(exponent)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_mean_what_they_mean_in_kubernetes() {
        for (text, millis) in [
            ("500m", 500),
            ("2", 2000),
            ("1.5", 1500),
            ("0.1", 100),
            ("1e1", 10_000),
            ("10500u", 11),
        ] {
            assert_eq!(cpu_millis(text), Some(millis), "{text}");
        }
        for (text, bytes) in [
            ("128Mi", 128 << 20),
            ("1Gi", 1 << 30),
            ("0.5Gi", 1 << 29),
            ("128M", 128_000_000),
            ("134217728", 128 << 20),
            ("1e9", 1_000_000_000),
            ("128000000000m", 128_000_000),
        ] {
            assert_eq!(memory_bytes(text), Some(bytes), "{text}");
        }
    }

    #[test]
    fn bytes_are_spelled_as_they_are_read() {
        for (bytes_of, text) in [
            (0, "0"),
            (1023, "1023"),
            (64 << 10, "64Ki"),
            (10 << 20, "10Mi"),
            (3 << 29, "1536Mi"),
            (1 << 40, "1Ti"),
            (u64::MAX, "18446744073709551615"),
        ] {
            assert_eq!(spell(bytes_of), text);
        }
        for bytes_of in [0, 1, 1023, 64 << 10, 10_000_000, 10 << 20, 1 << 40] {
            assert_eq!(bytes(&spell(bytes_of)), Some(bytes_of));
        }
    }

    #[test]
    fn what_is_not_a_quantity_is_refused() {
        for text in [
            "",
            "m",
            "-1",
            "1.2.3",
            "1 Gi",
            "1gi",
            "128MB",
            "1e99",
            "NaN",
            "99999999999999999999",
            ".",
            "0",
            "+",
        ] {
            assert_eq!(cpu_millis(text), None, "{text}");
            assert_eq!(memory_bytes(text), None, "{text}");
        }
        assert_eq!(memory_bytes("1024Pi"), None);
        assert_eq!(cpu_millis("1m"), None);
    }
}
