//! One line to standard error, without formatting machinery.

use super::sys;

/// Writes `container-init: `, the parts and a newline, in one go as far as it fits. Not at all when
/// that would have to wait: nobody who does not read holds us up.
pub fn say(parts: &[&[u8]]) {
    let mut line = [0u8; 512];
    let mut length = 0;
    let all = [&b"container-init: "[..]]
        .into_iter()
        .chain(parts.iter().copied());
    for byte in all.flatten().take(line.len() - 1) {
        if let Some(room) = line.get_mut(length) {
            *room = *byte;
            length += 1;
        }
    }
    if let Some(room) = line.get_mut(length) {
        *room = b'\n';
    }
    // Nobody may be there to read it, or somebody who does not.
    sys::offer(2, line.get(..=length).unwrap_or_default()).ok();
}

/// A number as decimal digits.
pub struct Number {
    digits: [u8; 20],
    begin: usize,
}

impl Number {
    /// The digits of a number that is not negative; 0 for one that is.
    pub fn new(value: i32) -> Self {
        Self::long(u64::try_from(value).unwrap_or(0))
    }

    /// The digits.
    #[inline(never)]
    pub fn long(value: u64) -> Self {
        let mut rest = value;
        let mut digits = [b'0'; 20];
        let mut begin = digits.len();
        for (at, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + (rest % 10) as u8;
            begin = at;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        Self { digits, begin }
    }

    /// The digits.
    pub fn as_bytes(&self) -> &[u8] {
        self.digits.get(self.begin..).unwrap_or_default()
    }
}
