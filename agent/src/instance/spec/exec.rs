//! The process of a command in a running container: the app's user, groups, capabilities, limits,
//! environment and directory, within the same walls.

use container_init::plan::{self, Rlimit};
use oci_spec::OciSpecError;
use oci_spec::runtime::{Box, BoxBuilder, PosixRlimit, PosixRlimitBuilder, Process, UserBuilder};

use super::limits;
use crate::app::CapabilitySet;

/// `TERM` of a command with a terminal, where the app's environment has none.
const TERM: &str = "TERM=xterm";

/// What a command is executed as: `app` of the container's plan, but for `command`. `recorded` is
/// the container's own process, whose walls it keeps; `terminal` is columns and rows of one.
pub fn command(
    recorded: &Process,
    app: &plan::Process<'_>,
    command: &[String],
    terminal: Option<(u16, u16)>,
) -> Result<Process, OciSpecError> {
    let groups: Vec<u32> = app.groups.iter().collect();
    let user = UserBuilder::default()
        .uid(app.uid)
        .gid(app.gid)
        .additional_gids(groups)
        .build()?;
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let mut env: Vec<String> = app.env.iter().map(text).collect();
    if terminal.is_some() && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push(TERM.to_owned());
    }
    let bounding = CapabilitySet::of_mask(app.capabilities);
    // As container-init has it: a user other than root begins without any.
    let own = match app.uid {
        0 => bounding,
        _ => CapabilitySet::NONE,
    };
    let capabilities = super::capabilities(bounding, own)?;
    let mut process = recorded.clone();
    process
        .set_terminal(Some(terminal.is_some()))
        .set_console_size(terminal.map(size).transpose()?)
        .set_user(user)
        .set_args(Some(command.to_vec()))
        .set_env(Some(env))
        .set_cwd(text(app.cwd).into())
        .set_capabilities(Some(capabilities))
        .set_rlimits(Some(of_app(recorded, app)?));
    Ok(process)
}

fn size((columns, rows): (u16, u16)) -> Result<Box, OciSpecError> {
    BoxBuilder::default().width(columns).height(rows).build()
}

/// The app's limits; what it leaves open is as the container has it.
fn of_app(recorded: &Process, app: &plan::Process<'_>) -> Result<Vec<PosixRlimit>, OciSpecError> {
    let mut all = recorded.rlimits().clone().unwrap_or_default();
    for Rlimit {
        resource,
        soft,
        hard,
    } in app.rlimits.iter()
    {
        let Some(typ) = limits::named(resource) else {
            continue;
        };
        all.retain(|limit| limit.typ() != typ);
        let limit = PosixRlimitBuilder::default().typ(typ).soft(soft).hard(hard);
        all.push(limit.build()?);
    }
    Ok(all)
}
