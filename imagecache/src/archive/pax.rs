//! Extended headers of POSIX.1-2001: records `LENGTH KEY=VALUE\n` that replace a header's fields.

use super::entry::{Timestamp, Xattr};
use super::header::Header;
use super::sparse::{self, Extent};

/// Prefix of the keys of extended attributes.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// The records of one extended header, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    pub fn parse(mut text: &[u8]) -> Result<Self, String> {
        let mut records = Vec::new();
        while !text.is_empty() {
            let (record, rest) = next(text).ok_or("a PAX record is damaged")?;
            text = rest;
            let (key, value) = record;
            // Texts of names end at no NUL: a reader in C would take another name.
            let is_text = !key.starts_with(XATTR);
            if key.contains(&0) || (is_text && value.contains(&0)) {
                return Err(format!("PAX record {} contains NUL", shown(key)));
            }
            records.push((key.to_vec(), value.to_vec()));
        }
        Ok(Self(records))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The last value of `key`; none where it is empty, which takes a value back.
    fn get(&self, key: &str) -> Option<&[u8]> {
        let mut found = self.0.iter().rev().filter(|(k, _)| k == key.as_bytes());
        found
            .next()
            .map(|(_, value)| &value[..])
            .filter(|value| !value.is_empty())
    }

    /// Puts the records in the place of the header's fields.
    pub fn apply(&self, header: &mut Header) -> Result<(), String> {
        if let Some(name) = self.get("path") {
            header.name = name.to_vec();
        }
        if let Some(link) = self.get("linkpath") {
            header.link = link.to_vec();
        }
        if let Some(size) = self.number("size")? {
            header.size = size;
        }
        for (key, field) in [("uid", &mut header.uid), ("gid", &mut header.gid)] {
            if let Some(id) = self.number(key)? {
                *field = u32::try_from(id).map_err(|_| format!("PAX record {key} is {id}"))?;
            }
        }
        if let Some(mtime) = self.time("mtime")? {
            header.mtime = mtime;
        }
        if let Some(atime) = self.time("atime")? {
            header.atime = Some(atime);
        }
        // Sparse files of 1.0 stand under a name of their own.
        if let Some(name) = self.get("GNU.sparse.name") {
            header.name = name.to_vec();
        }
        Ok(())
    }

    /// Extended attributes, each once.
    pub fn xattrs(&self) -> Vec<Xattr> {
        let mut found: Vec<Xattr> = Vec::new();
        for (key, value) in &self.0 {
            let Some(name) = key.strip_prefix(XATTR).filter(|name| !name.is_empty()) else {
                continue;
            };
            found.retain(|(before, _)| before != name);
            if !value.is_empty() {
                found.push((name.to_vec(), value.clone()));
            }
        }
        found
    }

    /// The true size, where the data begins with a map of format 1.0.
    pub fn sparse_version_1(&self) -> Result<Option<u64>, String> {
        let version = (self.get("GNU.sparse.major"), self.get("GNU.sparse.minor"));
        match version {
            (Some(b"1"), Some(b"0")) => match self.number("GNU.sparse.realsize")? {
                Some(size) => Ok(Some(size)),
                None => Err("a sparse file has no real size".to_owned()),
            },
            _ => Ok(None),
        }
    }

    /// True size and map of formats 0.0 and 0.1.
    pub fn sparse_map(&self) -> Result<Option<(u64, Vec<Extent>)>, String> {
        let Some(real_size) = self.number("GNU.sparse.size")? else {
            return Ok(None);
        };
        let mut numbers = Vec::new();
        if let Some(map) = self.get("GNU.sparse.map") {
            for text in map.split(|byte| *byte == b',') {
                numbers.push(decimal("GNU.sparse.map", text)?);
            }
        } else {
            for (key, value) in &self.0 {
                if matches!(&key[..], b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
                    numbers.push(decimal("GNU.sparse.offset", value)?);
                }
            }
        }
        sparse::pairs(&numbers).map(|extents| Some((real_size, extents)))
    }

    fn number(&self, key: &str) -> Result<Option<u64>, String> {
        self.get(key).map(|text| decimal(key, text)).transpose()
    }

    fn time(&self, key: &str) -> Result<Option<Timestamp>, String> {
        let Some(text) = self.get(key) else {
            return Ok(None);
        };
        match time(text) {
            Some(time) => Ok(Some(time)),
            None => Err(format!("PAX record {key} is {}", shown(text))),
        }
    }
}

type Record<'a> = (&'a [u8], &'a [u8]);

/// The first record, and what follows it.
fn next(text: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let space = text.iter().position(|byte| *byte == b' ')?;
    let length = decimal("", &text[..space]).ok()?;
    let length = usize::try_from(length).ok().filter(|n| *n > space + 1)?;
    let (record, rest) = text.split_at_checked(length)?;
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.is_empty()).then_some(((key, value), rest))
}

fn decimal(key: &str, text: &[u8]) -> Result<u64, String> {
    let digits = std::str::from_utf8(text).ok();
    let digits = digits.filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    let number = digits.and_then(|text| text.parse().ok());
    number.ok_or_else(|| format!("PAX record {key} is {}", shown(text)))
}

/// `-12.345`: seconds with a fraction, of which nine digits count.
fn time(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let (negative, digits) = match whole.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, whole),
    };
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if digits.is_empty() || !are_digits(digits) || !are_digits(fraction) {
        return None;
    }
    let seconds: i64 = digits.parse().ok()?;
    let nine: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: u32 = nine.parse().ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp {
            seconds,
            nanoseconds,
        },
        (true, 0) => Timestamp::seconds(-seconds),
        (true, _) => Timestamp {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

fn shown(text: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(pairs: &[(&str, &str)]) -> Records {
        let pair =
            |(key, value): &(&str, &str)| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        Records(pairs.iter().map(pair).collect())
    }

    #[test]
    fn records_are_read_by_their_lengths() {
        let text = b"11 path=a\nb\n14 linkpath=x\n".as_slice();
        assert_eq!(
            Records::parse(text),
            Err("a PAX record is damaged".to_owned())
        );
        let text = b"12 path=a\nb\n14 linkpath=x\n".as_slice();
        assert_eq!(
            Records::parse(text),
            Ok(records(&[("path", "a\nb"), ("linkpath", "x")]))
        );
        for damaged in [
            "0 a=b\n",
            "6 a=b",
            "7 a=b\n",
            "99999999999999999999 a=b\n",
            "5 =b\n",
            "x",
        ] {
            assert!(Records::parse(damaged.as_bytes()).is_err(), "{damaged:?}");
        }
        assert!(Records::parse(b"11 path=a\0b\n".as_slice()).is_err());
    }

    #[test]
    fn an_attribute_keeps_its_last_value_and_an_empty_one_takes_it_back() {
        let given = records(&[
            ("SCHILY.xattr.user.a", "1"),
            ("SCHILY.xattr.user.b", "2"),
            ("SCHILY.xattr.user.a", "3"),
            ("SCHILY.xattr.user.b", ""),
            ("SCHILY.xattr.", "4"),
        ]);
        assert_eq!(given.xattrs(), [(b"user.a".to_vec(), b"3".to_vec())]);
    }

    #[test]
    fn times_are_seconds_with_a_fraction() {
        let at = |seconds, nanoseconds| {
            Some(Timestamp {
                seconds,
                nanoseconds,
            })
        };
        assert_eq!(time(b"12"), at(12, 0));
        assert_eq!(time(b"12.5"), at(12, 500_000_000));
        assert_eq!(time(b"12.0000000019"), at(12, 1));
        assert_eq!(time(b"-1.25"), at(-2, 750_000_000));
        assert_eq!(time(b"-3"), at(-3, 0));
        for none in ["", ".5", "1e3", "+1", "1.-5", "99999999999999999999"] {
            assert_eq!(time(none.as_bytes()), None, "{none:?}");
        }
    }
}
