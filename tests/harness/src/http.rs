//! A client of a few lines for tests that ask a persister.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Status and body of `http://host:port/path`.
///
/// # Errors
/// Nobody answers, or not in HTTP.
pub fn get(url: &str) -> io::Result<(u16, String)> {
    get_with(url, &[])
}

/// As [`get`], with request headers.
///
/// # Errors
/// As [`get`].
pub fn get_with(url: &str, headers: &[(&str, &str)]) -> io::Result<(u16, String)> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let rest = url.strip_prefix("http://").ok_or_else(|| wrong("not an http URL"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(15)))?;
    // HTTP/1.0: the answer ends with the connection, and is never chunked.
    let mut request = format!("GET /{path} HTTP/1.0\r\nHost: {host}\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| wrong("no end of headers"))?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| wrong("no status"))?;
    Ok((status, body.to_owned()))
}

/// Waits until `url` answers 200; false when it does not within `timeout`.
#[must_use]
pub fn wait_ok(url: &str, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    while Instant::now() < deadline {
        if get(url).is_ok_and(|(status, _)| status == 200) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}
