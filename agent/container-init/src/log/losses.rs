//! What a log could not take is counted, and told in the log when it takes again.

/// Bytes that are in no file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Losses {
    bytes: u64,
    errno: i32,
}

/// The sentence about lost bytes.
#[derive(Debug)]
pub struct Notice {
    text: [u8; 96],
    length: usize,
}

impl Losses {
    /// So many bytes could not be written.
    pub fn add(&mut self, bytes: usize, errno: i32) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.errno = errno;
    }

    /// What has to be told before anything else is written.
    pub fn notice(&self) -> Option<Notice> {
        if self.bytes == 0 {
            return None;
        }
        let mut notice = Notice {
            text: [0; 96],
            length: 0,
        };
        notice.push(b"container-init: ");
        notice.push_number(self.bytes);
        notice.push(b" bytes of log lost: errno ");
        notice.push_number(u64::from(self.errno.unsigned_abs()));
        Some(notice)
    }

    /// It was told.
    pub fn told(&mut self) {
        *self = Self::default();
    }
}

impl Notice {
    /// Its text, without a line break.
    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(..self.length).unwrap_or_default()
    }

    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if let Some(room) = self.text.get_mut(self.length) {
                *room = *byte;
                self.length += 1;
            }
        }
    }

    fn push_number(&mut self, number: u64) {
        let mut digits = [0; 20];
        let (mut begin, mut rest) = (digits.len(), number);
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            begin -= 1;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.push(digits.get(begin..).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_add_up_until_they_are_told_with_the_last_cause() {
        let mut losses = Losses::default();
        assert!(losses.notice().is_none());
        losses.add(4000, 122);
        losses.add(96, 28);
        let notice = losses.notice().unwrap();
        assert_eq!(
            notice.as_bytes(),
            b"container-init: 4096 bytes of log lost: errno 28"
        );
        losses.told();
        assert!(losses.notice().is_none());
        losses.add(usize::MAX, 5);
        losses.add(usize::MAX, 5);
        let notice = losses.notice().unwrap();
        assert_eq!(
            notice.as_bytes(),
            b"container-init: 18446744073709551615 bytes of log lost: errno 5"
        );
    }
}
