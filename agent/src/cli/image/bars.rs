//! How far a pull or a verification is, on stderr while a person waits for it.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use crate::api::Client;
use crate::api::v1::{ImageList, LayerStage, PullDocument};
use crate::cli::size::size;
use crate::cli::status::short;

/// How often they are drawn.
const PERIOD: Duration = Duration::from_millis(250);
/// Characters of a bar.
const WIDTH: u64 = 24;
/// Bars at a time: more layers than lines of a terminal are not worth a bar each.
const MOST: usize = 16;

/// Waits for `call`, and draws what `text` makes of the agent's list of images when stderr is a
/// terminal.
pub(super) async fn shown_while<T>(
    call: impl Future<Output = T>,
    client: &Client,
    text: &dyn Fn(&ImageList) -> String,
) -> T {
    if !std::io::stderr().is_terminal() {
        return call.await;
    }
    let mut lines = 0;
    let answer = tokio::select! {
        answer = call => answer,
        never = keep_drawing(client, text, &mut lines) => match never {},
    };
    redraw(&mut lines, "");
    answer
}

async fn keep_drawing(
    client: &Client,
    text: &dyn Fn(&ImageList) -> String,
    lines: &mut usize,
) -> Infallible {
    loop {
        tokio::time::sleep(PERIOD).await;
        if let Ok(list) = client.images().await {
            redraw(lines, &text(&list));
        }
    }
}

/// Replaces the lines that were drawn last.
fn redraw(lines: &mut usize, text: &str) {
    let mut out = String::new();
    if *lines > 0 {
        // CPL and ED of ECMA-48.
        let _ = write!(out, "\x1b[{lines}F\x1b[J");
    }
    out.push_str(text);
    *lines = text.lines().count();
    let mut stderr = std::io::stderr();
    stderr.write_all(out.as_bytes()).ok();
    stderr.flush().ok();
}

/// A bar for each layer of the pull of `image`.
pub(super) fn of_pull(list: &ImageList, image: &str) -> String {
    let mut pulls = list.pulls.iter();
    // The agent knows it by its full name.
    let pull = pulls.find(|pull| pull.reference.ends_with(image));
    pull.map(bars).unwrap_or_default()
}

/// What is being verified.
pub(super) fn verification(list: &ImageList) -> String {
    let Some(verification) = &list.verification else {
        return String::new();
    };
    let what = match &verification.image {
        Some(image) => format!("what is unpacked of {image}"),
        None => "layers".to_owned(),
    };
    let (done, of) = (verification.done, verification.of);
    format!("{done} of {of}: {what}\n")
}

fn bars(pull: &PullDocument) -> String {
    let mut text = String::new();
    let unfinished = pull.layers.iter().filter(|l| l.stage != LayerStage::Ready);
    for layer in unfinished.take(MOST) {
        let done = match layer.bytes {
            0 => WIDTH,
            bytes => (layer.fetched.min(bytes) * WIDTH) / bytes,
        };
        let bar: String = (0..WIDTH)
            .map(|at| if at < done { '#' } else { '.' })
            .collect();
        let _ = writeln!(
            text,
            "{} [{bar}] {:>10} of {:>10}  {}",
            short(&layer.digest),
            size(layer.fetched),
            size(layer.bytes),
            layer.stage.as_str()
        );
    }
    let ready = pull.layers.iter().filter(|l| l.stage == LayerStage::Ready);
    let _ = writeln!(
        text,
        "{} of {} layers ready",
        ready.count(),
        pull.layers.len()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::v1::{PullLayer, VerificationDocument};

    #[test]
    fn a_bar_says_how_much_of_a_layer_is_here_and_what_is_done_with_it() {
        let layer = |digest: &str, fetched, stage| PullLayer {
            digest: format!("sha256:{digest}"),
            bytes: 2048,
            fetched,
            stage,
        };
        let pull = PullDocument {
            reference: "r.lan/web:1".to_owned(),
            layers: vec![
                layer("aaaaaaaaaaaaaaaa", 2048, LayerStage::Ready),
                layer("bbbbbbbbbbbbbbbb", 1024, LayerStage::Fetching),
            ],
        };
        assert_eq!(
            bars(&pull),
            "bbbbbbbbbbbb [############............]    1.0 KiB of    2.0 KiB  fetching\n\
             1 of 2 layers ready\n"
        );
    }

    #[test]
    fn a_verification_says_how_far_it_is_and_at_what() {
        let mut list = ImageList::default();
        assert_eq!(verification(&list), "");
        list.verification = Some(VerificationDocument {
            image: None,
            done: 2,
            of: 9,
        });
        assert_eq!(verification(&list), "2 of 9: layers\n");
        list.verification = list.verification.map(|told| VerificationDocument {
            image: Some("r.lan/web:1".to_owned()),
            ..told
        });
        assert_eq!(
            verification(&list),
            "2 of 9: what is unpacked of r.lan/web:1\n"
        );
    }
}
