//! One HTTP request inside a host's network, or to a unix socket: blocking, HTTP/1.0, the whole
//! body at once.
//!
//! Made for pages of instances, the registry and the agent's API, whose servers all close the
//! connection at the end of the answer. No redirects, no TLS, no reuse.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

/// Longest wait for a connection, and between two parts of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header fields in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header field of that name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut named = self.headers.iter().filter(|(n, _)| n == name);
        named.next().map(|(_, value)| value.as_str())
    }

    /// The body as text, what is not UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// GETs `target` from `server`.
pub fn get(netns: &Netns, server: SocketAddr, target: &str) -> Result<Response> {
    request(netns, "GET", server, target, &[], &[])
}

/// Sends one request and reads the answer to its end.
pub fn request(
    netns: &Netns,
    method: &str,
    server: SocketAddr,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response> {
    let head = head(method, target, &server.to_string(), headers, body.len());
    let whole = || -> Result<Response> {
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE).context("connect")?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .context("set a deadline")?;
        stream
            .set_write_timeout(Some(PATIENCE))
            .context("set a deadline")?;
        parse(&exchange(&mut stream, &head, body)?)
    };
    netns
        .run(whole)
        .with_context(|| format!("{method} http://{server}{target}"))
}

/// Sends one request to a unix socket, which belongs to no network; `patience` bounds each wait.
/// Returns the time from the first byte sent to the last one received, too.
pub fn request_unix(
    socket: &Path,
    method: &str,
    target: &str,
    body: &[u8],
    patience: Duration,
) -> Result<(Response, Duration)> {
    let json = [("Content-Type", "application/json")];
    let head = head(method, target, "localhost", &json, body.len());
    let timed = || -> Result<_> {
        let mut stream = UnixStream::connect(socket).context("connect")?;
        stream
            .set_read_timeout(Some(patience))
            .context("set a deadline")?;
        stream
            .set_write_timeout(Some(patience))
            .context("set a deadline")?;
        let start = Instant::now();
        let answer = exchange(&mut stream, &head, body)?;
        let took = start.elapsed();
        Ok((parse(&answer)?, took))
    };
    timed().with_context(|| format!("{method} {target} at {}", socket.display()))
}

fn head(method: &str, target: &str, host: &str, headers: &[(&str, &str)], length: usize) -> String {
    let mut head = format!("{method} {target} HTTP/1.0\r\nHost: {host}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {length}\r\n\r\n"));
    head
}

fn exchange(stream: &mut (impl Read + Write), head: &str, body: &[u8]) -> Result<Vec<u8>> {
    let mut request = head.as_bytes().to_vec();
    request.extend_from_slice(body);
    stream.write_all(&request).context("send the request")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read the answer")?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> Result<Response> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        bail!("the answer ends within its head ({} bytes)", answer.len());
    };
    let head = String::from_utf8_lossy(&answer[..end]);
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok());
    let Some(status) = status else {
        bail!("not a status line: {status_line:?}");
    };
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let body = answer[end + 4..].to_vec();
    let announced = headers.iter().find(|(name, _)| name == "content-length");
    if let Some((_, announced)) = announced
        && *announced != body.len().to_string()
    {
        bail!("the body has {} bytes of {announced}", body.len());
    }
    Ok(Response {
        status,
        headers,
        body,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_was_cut_off_is_not_an_answer() {
        let whole = b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(parse(whole).unwrap().text(), "hello");
        let cut = parse(&whole[..whole.len() - 1]).unwrap_err();
        assert_eq!(cut.to_string(), "the body has 4 bytes of 5");
        let head = parse(&whole[..20]).unwrap_err();
        assert_eq!(
            head.to_string(),
            "the answer ends within its head (20 bytes)"
        );
    }
}
