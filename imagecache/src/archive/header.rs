//! One header block: 512 bytes of fixed fields (tar(5), POSIX.1-1988 `ustar`).

use super::entry::Timestamp;

/// Bytes of a block.
pub(super) const BLOCK: usize = 512;

/// A block as it stands in the archive.
pub(super) type Block = [u8; BLOCK];

/// The fields of a header, before what extends them was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: Timestamp,
    pub atime: Option<Timestamp>,
    pub typeflag: u8,
    pub device: (u32, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Gnu,
}

impl Header {
    pub fn parse(block: &Block) -> Result<Self, String> {
        check_sum(block)?;
        let format = match &block[257..265] {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar\0") => Format::Ustar,
            _ => Format::V7,
        };
        let mut name = until_nul(&block[..100]).to_vec();
        if format == Format::Ustar {
            let prefix = until_nul(&block[345..500]);
            if !prefix.is_empty() {
                name = [prefix, b"/", &name].concat();
            }
        }
        let narrow = |what: &str, field: &[u8]| -> Result<u32, String> {
            let number = number(field).ok_or_else(|| format!("its {what} is no number"))?;
            u32::try_from(number).map_err(|_| format!("its {what} is {number}"))
        };
        let size = number(&block[124..136]).ok_or("its size is no number")?;
        let mtime = number(&block[136..148]).ok_or("its time is no number")?;
        let device = match format {
            Format::V7 => (0, 0),
            _ => (
                narrow("major device number", &block[329..337])?,
                narrow("minor device number", &block[337..345])?,
            ),
        };
        Ok(Self {
            name,
            link: until_nul(&block[157..257]).to_vec(),
            // Only what chmod(2) takes: writers add the kind of the file.
            mode: narrow("mode", &block[100..108])? & 0o7777,
            uid: narrow("uid", &block[108..116])?,
            gid: narrow("gid", &block[116..124])?,
            size: u64::try_from(size).map_err(|_| format!("its size is {size}"))?,
            mtime: Timestamp::seconds(mtime),
            atime: match format {
                Format::Gnu => number(&block[345..357])
                    .filter(|s| *s != 0)
                    .map(Timestamp::seconds),
                _ => None,
            },
            typeflag: block[156],
            device,
        })
    }
}

/// The text up to its first NUL.
pub(super) fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and NULs, or, with the top bit set, a big-endian number in two's
/// complement (GNU's base-256). An empty field is 0.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let sign: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        let begin = sign << 6 | i128::from(first & 0x3f);
        let value = field[1..]
            .iter()
            .fold(begin, |value, byte| value << 8 | i128::from(*byte));
        return i64::try_from(value).ok();
    }
    let text = until_nul(field);
    let text = std::str::from_utf8(text).ok()?.trim_matches(' ');
    if text.is_empty() {
        return Some(0);
    }
    let octal = text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    octal.then(|| i64::from_str_radix(text, 8).ok()).flatten()
}

/// The sum of all bytes with the sum's own field as spaces; old writers added signed bytes.
fn check_sum(block: &Block) -> Result<(), String> {
    let said = number(&block[148..156]).ok_or("its check sum is no number")?;
    let of_field = |position: usize| (148..156).contains(&position);
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (position, byte) in block.iter().enumerate() {
        let byte = if of_field(position) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    match said == unsigned || said == signed {
        true => Ok(()),
        false => Err(format!("its check sum is {said}, its bytes say {unsigned}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"0000648\0"), None);
        assert_eq!(number(b"-000001\0"), None);
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\x00"), Some(256));
        assert_eq!(
            number(b"\x80\0\0\0\x02\0\0\0\0\0\0\0"),
            Some(0x0200_0000_0000_0000)
        );
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xff"), Some(-1));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Some(-2));
        assert_eq!(
            number(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            None
        );
        assert_eq!(number(b""), None);
    }
}
