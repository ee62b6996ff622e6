//! Who may ask what: names that browsers may use, tokens, and how often a wrong one may be tried.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use secrecy::ExposeSecret as _;
use tracing::Instrument as _;

use super::routes::Problem;
use super::site::Site;
use crate::config::HttpConfig;
use crate::secrets;
use crate::sync::lock;

/// A shorter token could be guessed.
const TOKEN_BYTES_LEAST: usize = 32;
/// So many wrong tokens a second are looked at; who sends more waits.
const WRONG_PER_S_MOST: u32 = 5;

/// What a path lets one do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing that anybody must not know: for supervisors and scrapers.
    Open,
    /// Look. With a token where the address is not this machine's own.
    Look,
    /// Change something: always with a token, or through the unix socket.
    Change,
}

/// Where a request comes from.
#[derive(Clone, Copy)]
pub(super) enum Peer {
    /// From this address.
    Network(SocketAddr),
    /// Through the unix socket, whose rights say who may.
    Socket,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::Socket => f.write_str("unix socket"),
        }
    }
}

/// Who may ask.
#[derive(Debug)]
pub struct Guard {
    token_file: Option<PathBuf>,
    allowed_hosts: Vec<String>,
    is_public: bool,
    wrong: Mutex<(Option<Instant>, u32)>,
}

/// A token that protects nothing.
#[derive(Debug, thiserror::Error)]
#[error(
    "http.token_file: the token has {bytes} bytes, and needs at least {TOKEN_BYTES_LEAST}; for example: openssl rand -hex 32"
)]
pub struct WeakToken {
    bytes: usize,
}

impl Guard {
    /// Rules as configured; the token is read now, so that one that is missing or weak is known at the start, and again
    /// with each request that has one, so that it can be changed.
    ///
    /// # Errors
    /// The token cannot be read, others can read it, or it is short.
    pub fn new(config: &HttpConfig) -> anyhow::Result<Self> {
        let guard = Self {
            token_file: config.token_file.clone(),
            allowed_hosts: config.allowed_hosts.clone(),
            is_public: !config.bind.ip().is_loopback(),
            wrong: Mutex::default(),
        };
        guard.token()?;
        Ok(guard)
    }

    fn token(&self) -> anyhow::Result<Option<secrecy::SecretString>> {
        let token = secrets::read("http.token", self.token_file.as_deref(), None)?;
        if let Some(token) = &token {
            let bytes = token.expose_secret().len();
            if bytes < TOKEN_BYTES_LEAST {
                return Err(WeakToken { bytes }.into());
            }
        }
        Ok(token)
    }

    /// Whether the request names this machine as people here do: a page that a browser was lured to does not.
    fn is_host_known(&self, headers: &HeaderMap) -> bool {
        let Some(host) = headers.get(header::HOST) else { return true };
        let Ok(host) = host.to_str() else { return false };
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        name.is_empty()
            || name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok()
            || self.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    }

    /// How long somebody who sends a wrong token waits.
    fn wrong_again(&self) -> Duration {
        let now = Instant::now();
        let mut wrong = lock(&self.wrong);
        if wrong.0.is_none_or(|since| now.saturating_duration_since(since) > Duration::from_secs(1))
        {
            *wrong = (Some(now), 0);
        }
        wrong.1 = wrong.1.saturating_add(1);
        if wrong.1 > WRONG_PER_S_MOST { Duration::from_secs(1) } else { Duration::ZERO }
    }
}

fn refused(status: StatusCode, title: &'static str, detail: &str) -> Problem {
    Problem { status, title, detail: detail.to_owned() }
}

/// Lets a request through, or answers it.
pub(super) async fn guard(
    State(site): State<Site>,
    access: Access,
    request: Request,
    next: Next,
) -> Response {
    let guard = &site.parts.guard;
    let peer = request.extensions().get::<Peer>().copied();
    // No browser gets to a unix socket.
    if !matches!(peer, Some(Peer::Socket)) && !guard.is_host_known(request.headers()) {
        let detail = "this host name is not in http.allowed_hosts";
        return refused(StatusCode::FORBIDDEN, "unknown host", detail).into_response();
    }
    let who = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
    let needs_token = match access {
        Access::Open => false,
        Access::Look => guard.is_public,
        Access::Change => true,
    } && !matches!(peer, Some(Peer::Socket));
    if needs_token && let Err(problem) = check_token(guard, request.headers()).await {
        if access == Access::Change {
            let (path, result) = (request.uri().path(), problem.title);
            tracing::warn!(code = "CONTROL", path, who, result, "order over HTTP");
        }
        return problem.into_response();
    }
    if access == Access::Change {
        let span = tracing::info_span!("order", who);
        return next.run(request).instrument(span).await;
    }
    next.run(request).await
}

async fn check_token(guard: &Guard, headers: &HeaderMap) -> Result<(), Problem> {
    let token = guard.token().map_err(|error| {
        refused(StatusCode::FORBIDDEN, "no token can be checked", &error.to_string())
    })?;
    let Some(token) = token else {
        let detail = "nothing can be changed over TCP without http.token_file; the unix socket (http.socket) needs none";
        return Err(refused(StatusCode::FORBIDDEN, "no token is configured", detail));
    };
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
        .unwrap_or_default();
    let token = token.expose_secret().as_bytes();
    // How far they agree must not show in the time it takes.
    if given.len() == token.len() && openssl::memcmp::eq(given, token) {
        return Ok(());
    }
    let wait = guard.wrong_again();
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
    let detail = "send the token of http.token_file: Authorization: Bearer ...";
    Err(refused(StatusCode::UNAUTHORIZED, "a token is needed", detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_answered() {
        let config = HttpConfig {
            allowed_hosts: vec!["persister.example".to_owned()],
            ..HttpConfig::default()
        };
        let guard = Guard::new(&config).unwrap();
        let known = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            guard.is_host_known(&headers)
        };
        for host in
            ["127.0.0.1:8091", "[::1]:8091", "localhost:1", "LOCALHOST", "persister.example"]
        {
            assert!(known(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8091", "127.0.0.1.evil.example"] {
            assert!(!known(host), "{host}");
        }
    }

    #[test]
    fn who_tries_many_tokens_waits() {
        let guard = Guard::new(&HttpConfig::default()).unwrap();
        let waits = (0..8).filter(|_| !guard.wrong_again().is_zero()).count();
        assert_eq!(waits, 3);
    }
}
