//! `nodeagent status --watch`: the events of the API as a picture that stays true.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use rustix::termios::tcgetwinsize;
use tokio::time::{Instant, sleep_until};

use super::{Output, Report, status};
use crate::api::v1::{Alarm, Event, EventKey, HostStatus, InstanceChange, Pool, Status};
use crate::api::{Client, ClientError};

/// Changes that come within this time are drawn together.
const TOGETHER: Duration = Duration::from_millis(100);

/// Shows what is true and what changes, until SIGINT or the end of the patience with an agent that
/// is away.
pub(super) async fn run(
    client: &Client,
    output: Output,
    app: Option<&str>,
    host: HostStatus,
) -> Report {
    let watched = match output {
        Output::Json => lines(client, app).await,
        Output::Table => pictures(client, app, host).await,
    };
    match watched {
        Ok(()) => Report::done(),
        Err(error) => Report::failure(output, &error),
    }
}

/// Resolves at the first SIGINT; never when the process cannot listen for it (then the kernel's
/// default ends it).
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// One line of JSON for each event.
async fn lines(client: &Client, app: Option<&str>) -> Result<(), ClientError> {
    let mut events = client.events(app);
    let mut out = io::stdout();
    let mut interrupted = std::pin::pin!(interrupted());
    loop {
        let event = tokio::select! {
            event = events.next() => event?,
            () = interrupted.as_mut() => return Ok(()),
        };
        // Documents are plain values: their JSON always exists.
        let data = event.data().unwrap_or_default();
        let line = format!("{{\"event\":\"{}\",\"data\":{data}}}\n", event.name());
        // A reader that closed its pipe (`| head`) has what it wanted.
        if out
            .write_all(line.as_bytes())
            .and_then(|()| out.flush())
            .is_err()
        {
            return Ok(());
        }
    }
}

/// The tables of `status`, drawn again when something has changed.
async fn pictures(client: &Client, app: Option<&str>, host: HostStatus) -> Result<(), ClientError> {
    let mut events = client.events(app);
    let mut watched = Watched::new(host);
    let mut screen = Screen::new();
    let mut due: Option<Instant> = None;
    let mut interrupted = std::pin::pin!(interrupted());
    loop {
        if due.is_some_and(|due| due <= Instant::now()) {
            due = None;
            let text = status::render(&watched.status(), app);
            // As with lines.
            if screen.draw(&text).is_err() {
                return Ok(());
            }
        }
        let event = tokio::select! {
            event = events.next() => event?,
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => continue,
            () = interrupted.as_mut() => return Ok(()),
        };
        if matches!(event, Event::Synced | Event::Alarm(_))
            && let Ok(status) = client.status().await
        {
            // What events do not tell: another agent process, containerd, discovery.
            watched.host = status.host;
        }
        watched.apply(event);
        if watched.synced && due.is_none() {
            due = Some(Instant::now() + TOGETHER);
        }
    }
}

/// What is true, by the events that were told.
struct Watched {
    host: HostStatus,
    /// Whether everything was told that was true when the stream began.
    synced: bool,
    pools: BTreeMap<String, Pool>,
    instances: BTreeMap<EventKey, InstanceChange>,
    alarms: BTreeMap<EventKey, Alarm>,
}

impl Watched {
    fn new(host: HostStatus) -> Self {
        Self {
            host,
            synced: false,
            pools: BTreeMap::new(),
            instances: BTreeMap::new(),
            alarms: BTreeMap::new(),
        }
    }

    fn apply(&mut self, event: Event) {
        let key = event.key();
        match (event, key) {
            (Event::Reset, _) => *self = Self::new(self.host.clone()),
            (Event::Synced, _) => self.synced = true,
            (Event::App(change), _) => {
                match change.pool {
                    Some(pool) => self.pools.insert(change.app, pool),
                    None => self.pools.remove(&change.app),
                };
            }
            (Event::Instance(change), Some(key)) => {
                match change.instance {
                    Some(_) => self.instances.insert(key, change),
                    None => self.instances.remove(&key),
                };
            }
            (Event::Alarm(change), Some(key)) => {
                match change.standing {
                    true => self.alarms.insert(key, change.alarm),
                    false => self.alarms.remove(&key),
                };
            }
            // The tables have no tasks and no pulls; the others have keys.
            (Event::Task(_) | Event::Pull(_) | Event::Instance(_) | Event::Alarm(_), _) => {}
        }
    }

    /// As `GET /v1/status` would say it.
    fn status(&self) -> Status {
        let mut pools = self.pools.clone();
        for change in self.instances.values() {
            if let Some(pool) = pools.get_mut(&change.app) {
                pool.instances.extend(change.instance.clone());
            }
        }
        Status {
            host: self.host.clone(),
            pools: pools.into_values().collect(),
            alarms: self.alarms.values().cloned().collect(),
        }
    }
}

/// Where the picture is drawn.
struct Screen {
    terminal: bool,
    drawn: bool,
}

impl Screen {
    fn new() -> Self {
        Self {
            terminal: io::stdout().is_terminal(),
            drawn: false,
        }
    }

    /// On a terminal in place of the last picture, cut to its size; elsewhere below it, after an
    /// empty line.
    fn draw(&mut self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let first = !std::mem::replace(&mut self.drawn, true);
        if !self.terminal {
            let gap = if first { "" } else { "\n" };
            write!(out, "{gap}{text}")?;
            return out.flush();
        }
        let size = tcgetwinsize(&out).ok();
        let size = size.map_or((24, 80), |size| (size.ws_row, size.ws_col));
        // Erase in display, cursor home; then each line erases what was longer (ECMA-48).
        let begin = if first { "\x1b[2J\x1b[H" } else { "\x1b[H" };
        write!(out, "{begin}")?;
        for line in cut(text, size.0.into(), size.1.into()) {
            write!(out, "{line}\x1b[K\r\n")?;
        }
        write!(out, "\x1b[J")?;
        out.flush()
    }
}

/// The lines that fit, the last row left to the cursor.
fn cut(text: &str, rows: usize, columns: usize) -> Vec<String> {
    let room = rows.saturating_sub(1).max(1);
    let all = text.lines().count();
    let mut lines: Vec<String> = text
        .lines()
        .take(room)
        .map(|line| line.chars().take(columns.max(1)).collect())
        .collect();
    if all > room
        && let Some(last) = lines.last_mut()
    {
        *last = format!("... {} more lines", all - room + 1);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_cut_to_the_terminal_and_says_what_is_missing() {
        assert_eq!(cut("abcdef\nb\n", 24, 3), ["abc", "b"]);
        assert_eq!(cut("a\nb\nc\nd\n", 4, 80), ["a", "b", "... 2 more lines"]);
        assert_eq!(cut("a\nb\n", 0, 0), ["... 2 more lines"]);
    }
}
