//! container-init: there, executable, static, of this version.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::finding::Finding;

/// What the program says of itself when it is used wrongly; stands in its bytes.
const MARK: &str = container_init::MARK;
/// A program larger than this is none of ours.
const LARGEST: u64 = 16 * 1024 * 1024;

/// The file at `runtime.container_init`.
#[derive(Debug, Clone)]
pub(super) struct Init {
    pub path: PathBuf,
    /// Or why it cannot be read.
    pub file: Result<Program, String>,
}

/// What its bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub executable: bool,
    pub linkage: Linkage,
    /// Version in its mark, when it has one.
    pub version: Option<String>,
}

/// How an ELF file (elf(5)) is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Linkage {
    /// It needs nothing else.
    Static,
    /// It names an interpreter, which images do not have to have.
    Dynamic,
    /// A program for another kind of machine.
    OtherMachine,
    /// No ELF file at all.
    NoProgram,
}

pub(super) fn read(path: &Path) -> Init {
    Init {
        path: path.to_owned(),
        file: program(path).map_err(|error| error.to_string()),
    }
}

fn program(path: &Path) -> io::Result<Program> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() || metadata.len() > LARGEST {
        return Err(io::Error::other("it is not a file of at most 16 MiB"));
    }
    let bytes = std::fs::read(path)?;
    Ok(Program {
        executable: metadata.mode() & 0o111 != 0,
        linkage: linkage(&bytes),
        version: marked(&bytes),
    })
}

/// Reads the ELF header and looks for PT_INTERP among the program headers (elf(5)).
fn linkage(bytes: &[u8]) -> Linkage {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| {
        let field = bytes.get(at..at + 2)?;
        Some(u16::from_le_bytes(field.try_into().ok()?))
    };
    let headers = || {
        let field = bytes.get(32..40)?;
        let begin = usize::try_from(u64::from_le_bytes(field.try_into().ok()?)).ok()?;
        Some((begin, usize::from(u16_at(54)?), usize::from(u16_at(56)?)))
    };
    // 64 bits, little endian.
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Linkage::NoProgram;
    }
    let own = if cfg!(target_arch = "aarch64") {
        183
    } else {
        62
    };
    if u16_at(18) != Some(own) {
        return Linkage::OtherMachine;
    }
    let Some((begin, size, count)) = headers() else {
        return Linkage::NoProgram;
    };
    let kind = |index: usize| {
        let at = begin.checked_add(index.checked_mul(size)?)?;
        let field = bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(field.try_into().ok()?))
    };
    if (0..count).any(|index| kind(index) == Some(PT_INTERP)) {
        return Linkage::Dynamic;
    }
    Linkage::Static
}

fn marked(bytes: &[u8]) -> Option<String> {
    let name = MARK
        .rsplit_once(' ')
        .map_or(MARK, |(name, _)| name)
        .as_bytes();
    let at = bytes
        .windows(name.len())
        .position(|window| window == name)?;
    let rest = bytes.get(at + name.len() + 1..)?;
    let end = rest
        .iter()
        .position(|b| !(b.is_ascii_digit() || *b == b'.'))?;
    let version = std::str::from_utf8(rest.get(..end)?).ok()?;
    (!version.is_empty()).then(|| version.to_owned())
}

pub(super) fn judge(init: &Init) -> Vec<Finding> {
    let check = "container_init.program";
    let means = "no container can be started: it is the first process of each";
    let path = init.path.display();
    let mend = "install nodeagent's package, or name the file: runtime.container_init";
    let own = env!("CARGO_PKG_VERSION");
    let not = |found: String| Finding::not(check, found, means, mend);
    let finding = match &init.file {
        Err(why) => not(format!("{path}: {why}")),
        Ok(program) => match program.linkage {
            Linkage::NoProgram => not(format!("{path} is not a program")),
            Linkage::OtherMachine => not(format!("{path} is for another kind of machine")),
            Linkage::Dynamic => not(format!(
                "{path} is linked dynamically; images need not have what it asks for"
            )),
            Linkage::Static if !program.executable => Finding::part(
                check,
                format!("{path} is not executable"),
                "the agent makes a copy that is, but nobody can try it by hand",
                format!("chmod 0755 {path}"),
            ),
            Linkage::Static => match &program.version {
                Some(version) if version == own => {
                    Finding::full(check, format!("{version}, static ({path})"))
                }
                Some(version) => Finding::part(
                    check,
                    format!("{path} is of version {version}, nodeagent of {own}"),
                    "they may not understand each other",
                    "install both from one package",
                ),
                None => Finding::part(
                    check,
                    format!("{path} does not say that it is container-init"),
                    "it may be another program",
                    mend,
                ),
            },
        },
    };
    vec![finding]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;

    fn init(linkage: Linkage, version: Option<&str>) -> Init {
        Init {
            path: "/x/container-init".into(),
            file: Ok(Program {
                executable: true,
                linkage,
                version: version.map(str::to_owned),
            }),
        }
    }

    fn works(init: &Init) -> Works {
        judge(init)[0].works
    }

    #[test]
    fn only_a_static_program_of_this_version_works_in_full() {
        let own = env!("CARGO_PKG_VERSION");
        assert_eq!(works(&init(Linkage::Static, Some(own))), Works::Full);
        assert_eq!(works(&init(Linkage::Static, Some("0.0.1"))), Works::Part);
        assert_eq!(works(&init(Linkage::Static, None)), Works::Part);
        for wrong in [Linkage::Dynamic, Linkage::OtherMachine, Linkage::NoProgram] {
            assert_eq!(works(&init(wrong, Some(own))), Works::Not, "{wrong:?}");
        }
        let absent = read(Path::new("/nowhere/container-init"));
        assert_eq!(works(&absent), Works::Not);
    }

    #[test]
    fn a_shell_is_a_dynamic_program_and_a_script_is_none() {
        let own = Path::new("/bin/sh");
        assert_eq!(program(own).unwrap().linkage, Linkage::Dynamic);
        assert_eq!(linkage(b"#!/bin/sh\n"), Linkage::NoProgram);
        assert_eq!(linkage(b"\x7fELF\x02\x01"), Linkage::OtherMachine);
        let mut lying = std::fs::read(own).unwrap();
        lying[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(
            linkage(&lying),
            Linkage::Static,
            "headers beyond the end are none"
        );
    }

    #[test]
    fn the_mark_is_found_where_it_stands() {
        let version = env!("CARGO_PKG_VERSION");
        let bytes = format!("\0\0{MARK}; usage: ...\0");
        assert_eq!(marked(bytes.as_bytes()).as_deref(), Some(version));
        assert_eq!(marked(b"nothing of ours"), None);
    }
}
