//! Signals as images and manifests write them.

/// Names by number, from 1, as on x86-64 and arm64 (signal(7)).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// `SIGRTMIN` and `SIGRTMAX` as programs see them with glibc, and as Docker counts.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// The number of `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`, in any case.
pub fn signal_number(text: &str) -> Option<u8> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|n| (1..=64).contains(n));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: u8 = if offset.is_empty() {
            0
        } else {
            offset.strip_prefix('+')?.parse().ok()?
        };
        return RTMIN.checked_add(offset).filter(|n| *n <= RTMAX);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset: u8 = if offset.is_empty() {
            0
        } else {
            offset.strip_prefix('-')?.parse().ok()?
        };
        return RTMAX.checked_sub(offset).filter(|n| *n >= RTMIN);
    }
    let index = NAMES.iter().position(|known| *known == name)?;
    u8::try_from(index + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_read_however_an_image_writes_it() {
        for (text, expected) in [
            ("SIGTERM", 15),
            ("term", 15),
            ("15", 15),
            ("SIGQUIT", 3),
            ("SIGWINCH", 28),
            ("SIGSYS", 31),
            ("SIGRTMIN+3", 37),
            ("SIGRTMAX-2", 62),
            ("RTMIN", 34),
        ] {
            assert_eq!(signal_number(text), Some(expected), "{text}");
        }
        for bad in [
            "",
            "0",
            "65",
            "SIGFOO",
            "SIG",
            "SIGRTMIN+31",
            "SIGRTMAX-31",
            "SIGRTMIN3",
            "-9",
            "999",
        ] {
            assert_eq!(signal_number(bad), None, "{bad}");
        }
    }
}
