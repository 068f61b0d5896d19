//! The streams of a command, on the connection that was upgraded for it.
//!
//! Frames in both directions: a byte for the kind, the length of the rest as four bytes (big
//! endian), the rest. Kinds are ASCII: `i` input, `e` its end, `r` a size of the terminal
//! (`COLUMNSxROWS`) to the agent; `o` output, `p` complaints (stderr), `x` the exit code in decimal,
//! `f` why the exit is not known, which are the last, from the agent. A connection that ends
//! before them is an agent, or a network, that went away; one that its client closes ends the
//! command.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::v1::TerminalSize;

/// Name of the protocol in `Upgrade`.
pub(super) const PROTOCOL: &str = "nodeagent-exec";
/// Largest content of a frame.
pub const LARGEST_PIECE: usize = 64 * 1024;

/// What a client tells a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecInput {
    /// Bytes of its standard input.
    Data(Bytes),
    /// Its standard input ends.
    End,
    /// Its terminal has another size.
    Resize(TerminalSize),
}

/// What a client is told of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutput {
    /// Bytes of its standard output, or of its terminal.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// It ended with this code, 128 + signal when a signal ended it. The last that is told.
    Exit(u32),
    /// How it ended is not known, and why. The last that is told.
    Failed(String),
}

/// A frame of one direction.
pub(super) trait Frame: Sized {
    /// Kind and content.
    fn spell(self) -> (u8, Bytes);
    /// The frame of this kind, or what is wrong with it.
    fn parse(kind: u8, content: Bytes) -> Result<Self, &'static str>;
}

impl Frame for ExecInput {
    fn spell(self) -> (u8, Bytes) {
        match self {
            Self::Data(bytes) => (b'i', bytes),
            Self::End => (b'e', Bytes::new()),
            Self::Resize(size) => (b'r', format!("{}x{}", size.columns, size.rows).into()),
        }
    }

    fn parse(kind: u8, content: Bytes) -> Result<Self, &'static str> {
        match kind {
            b'i' => Ok(Self::Data(content)),
            b'e' => Ok(Self::End),
            b'r' => {
                let size = std::str::from_utf8(&content)
                    .ok()
                    .and_then(|text| text.split_once('x'));
                let number = |text: &str| text.parse().ok().filter(|number: &u16| *number > 0);
                let size = size.and_then(|(columns, rows)| {
                    Some(TerminalSize {
                        columns: number(columns)?,
                        rows: number(rows)?,
                    })
                });
                size.map(Self::Resize)
                    .ok_or("a size that is not COLUMNSxROWS")
            }
            _ => Err("a frame of a kind that is not known"),
        }
    }
}

impl Frame for ExecOutput {
    fn spell(self) -> (u8, Bytes) {
        match self {
            Self::Stdout(bytes) => (b'o', bytes),
            Self::Stderr(bytes) => (b'p', bytes),
            Self::Exit(code) => (b'x', code.to_string().into()),
            Self::Failed(why) => (b'f', why.into()),
        }
    }

    fn parse(kind: u8, content: Bytes) -> Result<Self, &'static str> {
        let text = || String::from_utf8_lossy(&content).into_owned();
        match kind {
            b'o' => Ok(Self::Stdout(content)),
            b'p' => Ok(Self::Stderr(content)),
            b'x' => text()
                .parse()
                .map(Self::Exit)
                .map_err(|_| "an exit code that is no number"),
            b'f' => Ok(Self::Failed(text())),
            _ => Err("a frame of a kind that is not known"),
        }
    }
}

/// Reads a frame; none when the other side has closed.
pub(super) async fn read<F: Frame>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<F>> {
    let malformed = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    let kind = match stream.read_u8().await {
        Ok(kind) => kind,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if length > LARGEST_PIECE {
        return Err(malformed("a frame of more than 64 KiB"));
    }
    let mut content = vec![0; length];
    stream.read_exact(&mut content).await?;
    F::parse(kind, content.into()).map(Some).map_err(malformed)
}

/// Writes a frame; what is larger than a frame goes as several.
pub(super) async fn write<F: Frame>(
    stream: &mut (impl AsyncWrite + Unpin),
    frame: F,
) -> io::Result<()> {
    let (kind, mut content) = frame.spell();
    loop {
        let piece = content.split_to(content.len().min(LARGEST_PIECE));
        let mut whole = Vec::with_capacity(5 + piece.len());
        whole.push(kind);
        // At most LARGEST_PIECE.
        whole.extend_from_slice(&(piece.len() as u32).to_be_bytes());
        whole.extend_from_slice(&piece);
        stream.write_all(&whole).await?;
        if content.is_empty() {
            return stream.flush().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all<F: Frame>(mut bytes: &[u8]) -> io::Result<Vec<F>> {
        let mut frames = Vec::new();
        while let Some(frame) = read(&mut bytes).await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn what_is_written_is_read() {
        let size = TerminalSize {
            columns: 132,
            rows: 43,
        };
        let inputs = [
            ExecInput::Data("ls\n".into()),
            ExecInput::Resize(size),
            ExecInput::End,
        ];
        let mut bytes = Vec::new();
        for input in inputs.clone() {
            write(&mut bytes, input).await.unwrap();
        }
        assert_eq!(read_all::<ExecInput>(&bytes).await.unwrap(), inputs);
        let outputs = [
            ExecOutput::Stdout("a".into()),
            ExecOutput::Stderr("b".into()),
            ExecOutput::Failed("gone".to_owned()),
            ExecOutput::Exit(137),
        ];
        let mut bytes = Vec::new();
        for output in outputs.clone() {
            write(&mut bytes, output).await.unwrap();
        }
        assert_eq!(read_all::<ExecOutput>(&bytes).await.unwrap(), outputs);
    }

    #[tokio::test]
    async fn a_piece_that_is_too_large_goes_as_several() {
        let mut bytes = Vec::new();
        let data = vec![7; LARGEST_PIECE + 1];
        write(&mut bytes, ExecInput::Data(data.into()))
            .await
            .unwrap();
        let frames: Vec<ExecInput> = read_all(&bytes).await.unwrap();
        let lengths = frames.iter().map(|frame| match frame {
            ExecInput::Data(data) => data.len(),
            other => panic!("{other:?}"),
        });
        assert_eq!(lengths.collect::<Vec<_>>(), [LARGEST_PIECE, 1]);
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused() {
        for (bytes, why) in [
            (&b"?\0\0\0\0"[..], "a frame of a kind that is not known"),
            (b"i\0\x01\0\x01", "a frame of more than 64 KiB"),
            (b"r\0\0\0\x030x1", "a size that is not COLUMNSxROWS"),
            (b"i\0\0\0\x05ab", "early eof"),
        ] {
            let refused = read_all::<ExecInput>(bytes).await.unwrap_err();
            assert_eq!(refused.to_string(), why);
        }
        let refused = read_all::<ExecOutput>(b"x\0\0\0\x01-").await.unwrap_err();
        assert_eq!(refused.to_string(), "an exit code that is no number");
    }
}
