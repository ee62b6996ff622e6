//! A running persister, asked over TCP or through its unix socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};

use crate::secrets;

/// An order may take the persister some seconds.
const TIME_MAX: Duration = Duration::from_secs(20);

/// What lets one ask.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TokenArgs {
    /// File with the token that the persister's http.token_file holds.
    #[arg(long, env = "MONASCA_PERSISTER_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// Where a persister answers, and what lets one ask.
#[derive(Debug)]
pub(super) struct Running {
    pub url: String,
    token: Option<SecretString>,
}

/// Nobody answered, or not to the end.
#[derive(Debug, thiserror::Error)]
#[error("ask {place}")]
pub(crate) struct NoAnswer {
    place: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// An answer, whatever its status.
pub(super) struct Answer {
    pub status: u16,
    pub body: String,
}

impl Running {
    /// The one at `http://HOST:PORT`, or `unix:PATH`.
    pub fn at(url: &str, token: &TokenArgs) -> anyhow::Result<Self> {
        let token = secrets::read("--token-file", token.token_file.as_deref(), None)?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), token })
    }

    /// What this path answers.
    pub fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.exchange(path, None)
    }

    /// What this path answers to an order.
    pub fn post(&self, path: &str, body: &serde_json::Value) -> anyhow::Result<Answer> {
        self.exchange(path, Some(&body.to_string()))
    }

    fn exchange(&self, path: &str, body: Option<&str>) -> anyhow::Result<Answer> {
        let place = format!("{}{path}", self.url);
        let answer = match self.url.strip_prefix("unix:") {
            Some(socket) => through_socket(Path::new(socket), path, body),
            None => over_tcp(&place, body, self.token.as_ref()),
        };
        Ok(answer.map_err(|error| NoAnswer { place, source: error.into() })?)
    }
}

fn over_tcp(
    address: &str,
    body: Option<&str>,
    token: Option<&SecretString>,
) -> anyhow::Result<Answer> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIME_MAX))
        .http_status_as_error(false)
        .build()
        .into();
    let bearer = token.map(|token| format!("Bearer {}", token.expose_secret()));
    let answered = match body {
        Some(body) => {
            let mut request = agent.post(address).header("Content-Type", "application/json");
            if let Some(bearer) = &bearer {
                request = request.header("Authorization", bearer);
            }
            request.send(body)
        }
        None => {
            let mut request = agent.get(address);
            if let Some(bearer) = &bearer {
                request = request.header("Authorization", bearer);
            }
            request.call()
        }
    };
    let mut response = answered?;
    let status = response.status().as_u16();
    let body = response.body_mut().read_to_string().context("read the answer")?;
    Ok(Answer { status, body })
}

/// HTTP/1.0: the answer ends where the connection does. The socket's rights say who may, a token is not needed.
fn through_socket(socket: &Path, path: &str, body: Option<&str>) -> anyhow::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIME_MAX))?;
    stream.set_write_timeout(Some(TIME_MAX))?;
    let request = match body {
        Some(body) => format!(
            "POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
        None => format!("GET {path} HTTP/1.0\r\n\r\n"),
    };
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer { status: status.context("no status in the answer")?, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_unix_socket_is_asked_as_an_address_is() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap();
            stream.write_all(b"HTTP/1.0 409 Conflict\r\nx: y\r\n\r\n{\"a\": 1}").unwrap();
            String::from_utf8(request[..read].to_vec()).unwrap()
        });
        let running =
            Running::at(&format!("unix:{}", socket.display()), &TokenArgs::default()).unwrap();
        let answer = running.post("/path", &serde_json::json!({"b": 2})).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (409, "{\"a\": 1}"));
        let request = server.join().unwrap();
        assert!(request.starts_with("POST /path HTTP/1.0\r\n") && request.ends_with("{\"b\":2}"));
    }
}
