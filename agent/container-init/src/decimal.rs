//! Numbers in decimal digits, as the kernel and people write them.

/// The number that these digits are, nothing else being there; `None` also when it is too large.
pub fn parse<N: TryFrom<u64>>(digits: &[u8]) -> Option<N> {
    if digits.is_empty() {
        return None;
    }
    let number = digits.iter().try_fold(0u64, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })?;
    N::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn only_digits_that_fit_are_a_number() {
        assert_eq!(parse::<u64>(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(parse::<u64>(b"18446744073709551616"), None);
        assert_eq!(parse::<u8>(b"255"), Some(255));
        assert_eq!(parse::<u8>(b"256"), None);
        for text in [&b""[..], b"-1", b"+1", b" 1", b"1 ", b"0x1"] {
            assert_eq!(parse::<u32>(text), None, "{text:?}");
        }
    }
}
