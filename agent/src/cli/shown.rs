//! What a container wrote, as a terminal may have it.

/// How bytes from a container get out of the process.
pub(super) struct Shown {
    terminal: bool,
    /// The first byte of a C1 control in UTF-8 was the last of a piece.
    begun: bool,
}

impl Shown {
    pub(super) fn new(terminal: bool) -> Self {
        Self {
            terminal,
            begun: false,
        }
    }

    /// As they are, for programs; for a terminal without anything that it would obey but line
    /// breaks and tabs: C0 and C1 controls and DEL (ECMA-48).
    pub(super) fn spell(&mut self, piece: &[u8]) -> Vec<u8> {
        if !self.terminal {
            return piece.to_vec();
        }
        let mut text = Vec::with_capacity(piece.len());
        for byte in piece {
            if std::mem::take(&mut self.begun) {
                match byte {
                    0x80..=0x9f => {
                        text.extend_from_slice(format!("\\u{{{byte:x}}}").as_bytes());
                        continue;
                    }
                    _ => text.push(0xc2),
                }
            }
            match byte {
                0xc2 => self.begun = true,
                b'\n' | b'\t' => text.push(*byte),
                0..0x20 | 0x7f => text.extend_from_slice(format!("\\u{{{byte:x}}}").as_bytes()),
                _ => text.push(*byte),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_that_a_container_wrote() {
        let mut shown = Shown::new(true);
        let of = |shown: &mut Shown, bytes: &[u8]| String::from_utf8(shown.spell(bytes)).unwrap();
        assert_eq!(
            of(&mut shown, b"a\x1b[2Jb\tc\n\r"),
            "a\\u{1b}[2Jb\tc\n\\u{d}"
        );
        assert_eq!(of(&mut shown, "é\u{9b}x".as_bytes()), "é\\u{9b}x");
        let pieces = [&b"\xc2"[..], b"\x9b2J", b"\xc2", b"\xb5"];
        let told: Vec<u8> = pieces.iter().flat_map(|piece| shown.spell(piece)).collect();
        assert_eq!(String::from_utf8(told).unwrap(), "\\u{9b}2Jµ");
        assert_eq!(Shown::new(false).spell(b"\x1b[2J"), b"\x1b[2J");
    }
}
