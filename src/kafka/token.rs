//! Keeps a client of ours in tokens, where the brokers want them.

use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use secrecy::ExposeSecret as _;

use super::identity;
use crate::clock::wall_ms;
use crate::config::{KafkaConfig, KafkaOauth, SaslMechanism};
use crate::kafka_token::{self, RETRY, TokenError};

/// One client's tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    /// None: no tokens are wanted.
    oauth: Option<KafkaOauth>,
    due: Duration,
}

impl Tokens {
    /// The first one is due at once.
    pub(super) fn new(kafka: &KafkaConfig) -> Self {
        let sasl = &kafka.security.sasl;
        let wanted = sasl.mechanism == Some(SaslMechanism::OauthBearer);
        Self { oauth: wanted.then(|| sasl.oauthbearer.clone()), due: Duration::ZERO }
    }

    /// Gives the client a token when it is time for one: true when it has got one now. A refused attempt is repeated in
    /// a later call; what the client has lasts as long as it does.
    ///
    /// # Errors
    /// There is none to be had.
    pub(super) fn keep<C: ClientContext>(
        &mut self,
        client: &Client<C>,
        now: Duration,
    ) -> Result<bool, TokenError> {
        let Some(oauth) = self.oauth.as_ref().filter(|_| now >= self.due) else { return Ok(false) };
        let begun = Instant::now();
        let outcome = give(client, oauth);
        // Counted from the end: an attempt may take its time, and others need theirs.
        let wait = outcome.as_ref().map_or(RETRY, |lives_ms| renewed_after(*lives_ms));
        self.due = now.saturating_add(begun.elapsed()).saturating_add(wait);
        outcome.map(|_| true)
    }
}

/// Gives the client a token; returns how long it lives from now, in milliseconds.
fn give<C: ClientContext>(client: &Client<C>, oauth: &KafkaOauth) -> Result<i64, TokenError> {
    let token = kafka_token::fetch(oauth, wall_ms())?;
    let text = token.text.expose_secret();
    identity::set_token(client, text, token.expires_ms, &token.principal, &oauth.extensions)
        .map_err(TokenError::NotTaken)?;
    Ok(token.expires_ms.saturating_sub(wall_ms()))
}

/// With a fifth of its life left there is time for several attempts.
fn renewed_after(lives_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(lives_ms).unwrap_or(0) / 5 * 4).max(Duration::from_secs(1))
}
