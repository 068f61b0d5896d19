//! One line on stderr while a person waits.

use std::convert::Infallible;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use super::table::plain;
use crate::api::Client;

/// A wait shorter than this shows nothing.
const QUIET: Duration = Duration::from_secs(1);
/// How often the line is drawn.
const PERIOD: Duration = Duration::from_millis(500);

/// Waits for `call`. When stderr is a terminal and the wait is longer than a second, says how many
/// instances of `app` are active.
pub(super) async fn shown_while<T>(
    call: impl Future<Output = T>,
    client: &Client,
    app: &str,
    to: Option<u32>,
) -> T {
    if !std::io::stderr().is_terminal() {
        return call.await;
    }
    let began = Instant::now();
    tokio::select! {
        answer = call => {
            if began.elapsed() >= QUIET {
                draw("");
            }
            answer
        }
        never = keep_drawing(client, app, to, began) => match never {},
    }
}

async fn keep_drawing(client: &Client, app: &str, to: Option<u32>, began: Instant) -> Infallible {
    tokio::time::sleep(QUIET).await;
    loop {
        draw(&sentence(client, app, to, began).await);
        tokio::time::sleep(PERIOD).await;
    }
}

async fn sentence(client: &Client, app: &str, to: Option<u32>, began: Instant) -> String {
    let waited = began.elapsed().as_secs();
    let pool = match client.status().await {
        Ok(status) => status.pools.into_iter().find(|pool| pool.app == app),
        Err(_) => None,
    };
    let Some(pool) = pool else {
        return format!("waiting, {waited} s");
    };
    let counts = [
        ("starting", pool.starting),
        ("draining", pool.draining),
        ("failed", pool.failed),
    ];
    let to = to.unwrap_or(pool.target);
    let mut text = format!("{}: {} active of {to}", plain(app), pool.active);
    for (name, count) in counts {
        if count > 0 {
            text.push_str(&format!(", {count} {name}"));
        }
    }
    format!("{text}, {waited} s")
}

/// Redraws the line; an empty one clears it.
fn draw(text: &str) {
    let mut stderr = std::io::stderr();
    // A terminal that went away is no reason to stop waiting.
    write!(stderr, "\r{text}\x1b[K").ok();
    stderr.flush().ok();
}
