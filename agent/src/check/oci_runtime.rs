//! runc or crun: its version, and whether it works with this layout of control groups.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::cgroups::Layout;
use super::containerd::search_path;
use super::finding::Finding;

/// What the shim runs when nobody says otherwise.
const DEFAULT: &str = "runc";
/// How long it may take to say its version.
const DEADLINE: Duration = Duration::from_secs(2);

/// The program that makes containers.
#[derive(Debug, Clone)]
pub(super) struct OciRuntime {
    pub name: PathBuf,
    /// Where it is and the first line of `--version`; or why that is not known.
    pub says: Result<(PathBuf, String), String>,
}

pub(super) async fn read(binary: Option<&Path>) -> OciRuntime {
    let name = binary.unwrap_or(Path::new(DEFAULT));
    let path = match binary {
        Some(path) => Some(path.to_owned()),
        None => search_path()
            .into_iter()
            .map(|at| at.join(name))
            .find(|path| path.is_file()),
    };
    OciRuntime {
        name: name.to_owned(),
        says: match path {
            Some(path) => first_line(&path).await.map(|line| (path, line)),
            None => Err("it is not in PATH".to_owned()),
        },
    }
}

/// The only way to ask it. The program is the one that makes containers as root anyway.
async fn first_line(path: &Path) -> Result<String, String> {
    let mut command = tokio::process::Command::new(path);
    command
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output()).await;
    let output = output
        .map_err(|_| format!("{} --version did not end in 2 s", path.display()))?
        .map_err(|error| format!("{}: {error}", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.to_owned()),
        _ => Err(format!(
            "{} --version ended with {}",
            path.display(),
            output.status
        )),
    }
}

pub(super) fn judge(facts: &OciRuntime, layout: Layout) -> Vec<Finding> {
    let check = "runtime.binary";
    let (path, line) = match &facts.says {
        Ok((path, line)) => (path, line),
        Err(why) => {
            return vec![Finding::not(
                check,
                format!("{}: {why}", facts.name.display()),
                "no container can be started",
                "install it (Debian: apt install runc), or name another: runtime.binary",
            )];
        }
    };
    let found = format!("{line} ({})", path.display());
    let unknown = |found| {
        Finding::part(
            check,
            found,
            "nobody has tried the agent with it",
            "runc 1.1 or newer, or crun; name it: runtime.binary",
        )
    };
    let finding = match version(line) {
        Some(("runc", major, _)) if layout == Layout::V2 && major < 1 => Finding::not(
            check,
            found,
            "before 1.0 runc does not know control groups of version 2",
            "runc 1.1 or newer",
        ),
        Some(("runc", major, minor)) if (major, minor) >= (1, 1) => Finding::full(check, found),
        Some(("crun", 1.., _)) => Finding::full(check, found),
        _ => unknown(found),
    };
    vec![finding]
}

/// `runc version 1.1.5+ds1` is runc 1.1, `crun version 1.8.1` is crun 1.8.
fn version(line: &str) -> Option<(&str, u32, u32)> {
    let mut words = line.split_whitespace();
    let (name, number) = (words.next()?, words.nth(1)?);
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    Some((
        name,
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Works;

    fn works(line: &str, layout: Layout) -> Works {
        let facts = OciRuntime {
            name: "runc".into(),
            says: Ok(("/usr/sbin/runc".into(), line.to_owned())),
        };
        judge(&facts, layout)[0].works
    }

    #[test]
    fn a_runtime_is_judged_with_the_layout_it_has_to_work_with() {
        assert_eq!(works("runc version 1.1.5+ds1", Layout::Hybrid), Works::Full);
        assert_eq!(works("crun version 1.8.1", Layout::V2), Works::Full);
        assert_eq!(works("runc version 0.1.1", Layout::V2), Works::Not);
        assert_eq!(works("runc version 1.0.0~rc93", Layout::V1), Works::Part);
        assert_eq!(works("youki version 0.3.0", Layout::V2), Works::Part);
        assert_eq!(works("", Layout::V2), Works::Part);
    }

    #[tokio::test]
    async fn a_runtime_that_is_not_there_is_named() {
        let facts = read(Some(Path::new("/nowhere/runc"))).await;
        let finding = &judge(&facts, Layout::V2)[0];
        assert_eq!(finding.works, Works::Not);
        assert!(
            finding.found.starts_with("/nowhere/runc: "),
            "{}",
            finding.found
        );
    }
}
