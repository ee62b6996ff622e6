//! Why a node cannot be talked to. The driver says of all nodes together that none can be; each contact point, asked
//! once more by a connection of our own with the same settings, says what is the matter with it. Nothing but the
//! question which options a node has is sent, and nothing depends on the answer but words and verdict.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::PoisonError;
use std::time::Duration;

use openssl::ssl::{HandshakeError, SslConnectorBuilder, SslStream};

use super::session::CassandraConfig;
use super::tls::{CODE, Refusal, names_of};
use crate::error::{StoreError, Verdict};

/// How long a node may take for each part of the answer.
const WAIT: Duration = Duration::from_secs(3);
/// How long a node that refuses our certificate takes to say so.
const MOMENT: Duration = Duration::from_millis(500);
/// CQL's question for options, version 4 of its protocol.
const OPTIONS: [u8; 9] = [0x04, 0, 0, 0, 0x05, 0, 0, 0, 0];
/// The first byte of any answer to it.
const ANSWER: u8 = 0x84;
/// The first byte of an alert of TLS.
const ALERT: u8 = 0x15;
/// Nodes named in one message.
const NAMED_MAX: usize = 3;

/// What a contact point says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It speaks CQL, in TLS of this version or in none.
    Speaks(Option<&'static str>),
    /// It does not answer, or not for sure in a way that only a person repairs.
    Away(String),
    /// TLS keeps it from being talked to.
    Refuses(String),
}

/// Texts, in small letters, and what they mean.
const KNOWN: &[(&str, &str)] = &[
    ("wrong version number", NO_TLS),
    ("packet length too long", NO_TLS),
    ("record layer failure", NO_TLS),
    (
        "certificate required",
        "it asks for a client certificate: set store.cassandra.tls.certificate_file and key_file, or keystore_file",
    ),
    (
        "alert handshake failure",
        "it asks for a client certificate or refuses ours, or has no version of TLS or cipher in common with us: check store.cassandra.tls.certificate_file and key_file, or keystore_file",
    ),
    (
        "alert bad certificate",
        "it asks for a client certificate, or refuses ours: check store.cassandra.tls.certificate_file and key_file, or keystore_file",
    ),
    (
        "alert unknown ca",
        "it does not know who signed our certificate: the CA of store.cassandra.tls.certificate_file must be in its trust store",
    ),
    (
        "alert certificate unknown",
        "it refuses our certificate: its CA must be in the node's trust store, and it must be valid now; renew store.cassandra.tls.certificate_file or keystore_file",
    ),
    (
        "alert certificate expired",
        "our certificate has expired: renew store.cassandra.tls.certificate_file or keystore_file",
    ),
    (
        "protocol version",
        "it has no version of TLS in common with us: it must offer TLS 1.2 or 1.3",
    ),
];

const NO_TLS: &str = "the port does not answer in TLS: use the port of client_encryption_options in store.cassandra.contact_points; nothing is sent in plain text instead";
const USE_TLS: &str = "the port expects TLS: set store.cassandra.protocol to tls";
const PERHAPS_TLS: &str = "it hangs up at the first request, as a port does that expects TLS: if it does, set store.cassandra.protocol to tls";
const PERHAPS_NO_TLS: &str = "it hangs up during the handshake of TLS: check that the port is one that speaks TLS, and that the node asks for no client certificate that we do not have";

/// Asks each contact point.
///
/// # Errors
/// Our own certificates cannot be used: nobody was asked.
pub async fn ask(config: &CassandraConfig) -> Result<Vec<(String, Answer)>, StoreError> {
    let config = config.clone();
    let asked = tokio::task::spawn_blocking(move || {
        config
            .contact_points
            .iter()
            .map(|point| Ok((point.clone(), ask_one(&config, point)?)))
            .collect()
    });
    asked.await.unwrap_or_else(|error| {
        Err(StoreError::new(Verdict::Retry, "DB_ERROR", format!("ask the nodes: {error}")))
    })
}

/// The same error with what is the matter with each node; another one where TLS is.
pub(super) async fn explain(config: &CassandraConfig, error: StoreError) -> StoreError {
    let answers = match ask(config).await {
        Ok(answers) => answers,
        Err(ours) => return ours,
    };
    let said = |wanted: fn(&Answer) -> Option<&String>| -> Vec<String> {
        let named = |(point, answer): &(String, Answer)| {
            wanted(answer).map(|what| format!("{point}: {what}"))
        };
        answers.iter().filter_map(named).take(NAMED_MAX).collect()
    };
    let refuses = said(|answer| if let Answer::Refuses(what) = answer { Some(what) } else { None });
    if !refuses.is_empty() {
        return StoreError::new(Verdict::Wait, CODE, refuses.join("; "));
    }
    let away = said(|answer| if let Answer::Away(what) = answer { Some(what) } else { None });
    if away.is_empty() {
        return error;
    }
    StoreError::new(error.verdict, error.code, away.join("; "))
}

fn ask_one(config: &CassandraConfig, point: &str) -> Result<Answer, StoreError> {
    let addresses: Vec<SocketAddr> = match point.to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => return Ok(Answer::Away(format!("the name has no address: {error}"))),
    };
    let mut last = Answer::Away("the name has no address".to_owned());
    for address in addresses {
        let stream = TcpStream::connect_timeout(&address, WAIT).and_then(|stream| {
            stream.set_read_timeout(Some(WAIT))?;
            stream.set_write_timeout(Some(WAIT))?;
            Ok(stream)
        });
        last = match (stream, &config.tls) {
            (Err(error), _) => Answer::Away(format!("no connection to {address}: {error}")),
            (Ok(stream), None) => in_plain_text(stream),
            (Ok(stream), Some(tls)) => {
                let refusal = Refusal::default();
                let names = names_of(&config.contact_points);
                let context = tls.context(names, Refusal::clone(&refusal))?;
                in_tls(context, address, stream, &refusal)
            }
        };
        if matches!(last, Answer::Speaks(_)) {
            break;
        }
    }
    Ok(last)
}

/// The first byte of the answer to [`OPTIONS`]; `None` when the other side hangs up.
fn first_byte(mut stream: impl Read + Write) -> std::io::Result<Option<u8>> {
    let mut first = [0];
    stream.write_all(&OPTIONS)?;
    stream.flush()?;
    let length = stream.read(&mut first)?;
    Ok(first.first().copied().filter(|_| length > 0))
}

fn in_plain_text(stream: TcpStream) -> Answer {
    use std::io::ErrorKind;
    match first_byte(stream) {
        Ok(Some(ANSWER)) => Answer::Speaks(None),
        Ok(Some(ALERT)) => Answer::Refuses(USE_TLS.to_owned()),
        Ok(Some(_)) => Answer::Away("the port does not answer in CQL's protocol".to_owned()),
        Ok(None) => Answer::Away(PERHAPS_TLS.to_owned()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {
            Answer::Away(PERHAPS_TLS.to_owned())
        }
        Err(error) => Answer::Away(format!("no answer: {error}")),
    }
}

fn in_tls(
    context: SslConnectorBuilder,
    address: SocketAddr,
    stream: TcpStream,
    refusal: &Refusal,
) -> Answer {
    let configured = context.build().configure().and_then(|mut connection| {
        // As the driver does: the address, and no name.
        connection.set_use_server_name_indication(false);
        connection.set_verify_hostname(false);
        connection.param_mut().set_ip(address.ip())?;
        Ok(connection)
    });
    let connection = match configured {
        Ok(connection) => connection,
        Err(error) => return Answer::Away(format!("OpenSSL: {error}")),
    };
    match connection.connect("", stream) {
        Ok(mut stream) => {
            let version = stream.ssl().version_str();
            // With TLS 1.3 a node says only now that it refuses our certificate. What is sent to one that is about to
            // hang up would have the system forget what it said.
            if let Err(answer) = hangs_up(&mut stream) {
                return answer;
            }
            match first_byte(&mut stream) {
                Ok(Some(ANSWER)) => Answer::Speaks(Some(version)),
                Ok(Some(_)) => {
                    Answer::Away("the port does not answer in CQL's protocol".to_owned())
                }
                Ok(None) => Answer::Away(PERHAPS_NO_TLS.to_owned()),
                Err(error) => meaning(&error.to_string()),
            }
        }
        Err(HandshakeError::Failure(failed)) => {
            match refusal.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(why) => Answer::Refuses(why),
                None => meaning(&failed.error().to_string()),
            }
        }
        Err(HandshakeError::WouldBlock(_)) => {
            Answer::Away(format!("no answer to the handshake of TLS within {WAIT:?}"))
        }
        Err(HandshakeError::SetupFailure(error)) => Answer::Away(format!("OpenSSL: {error}")),
    }
}

/// Waits for a moment whether the other side ends what was just begun.
fn hangs_up(stream: &mut SslStream<TcpStream>) -> Result<(), Answer> {
    use std::io::ErrorKind;
    let within = |stream: &SslStream<TcpStream>, wait| {
        let set = stream.get_ref().set_read_timeout(Some(wait));
        set.map_err(|error| Answer::Away(format!("no answer: {error}")))
    };
    within(stream, MOMENT)?;
    match stream.read(&mut [0]) {
        Ok(0) => return Err(Answer::Away(PERHAPS_NO_TLS.to_owned())),
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
        Err(error) => return Err(meaning(&error.to_string())),
    }
    within(stream, WAIT)
}

fn meaning(text: &str) -> Answer {
    let small = text.to_lowercase();
    if let Some((_, meaning)) = KNOWN.iter().find(|(sign, _)| small.contains(sign)) {
        return Answer::Refuses(format!("{meaning} ({text})"));
    }
    if small.contains("ssl routines") && !small.contains("unexpected eof") {
        return Answer::Refuses(format!("check store.cassandra.tls ({text})"));
    }
    if small.contains("eof") || small.contains("reset") {
        return Answer::Away(format!("{PERHAPS_NO_TLS} ({text})"));
    }
    Answer::Away(format!("no answer: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_openssl_says_becomes_what_to_do() {
        for (text, what) in [
            (
                "error:0A00010B:SSL routines:ssl3_get_record:wrong version number",
                "does not answer in TLS",
            ),
            (
                "error:0A00045C:SSL routines:ssl3_read_bytes:tlsv13 alert certificate required:SSL alert number 116",
                "asks for a client certificate",
            ),
            (
                "error:0A000415:SSL routines::sslv3 alert certificate expired",
                "our certificate has expired",
            ),
            ("error:0A0000FF:SSL routines::something new", "check store.cassandra.tls"),
        ] {
            assert!(
                matches!(meaning(text), Answer::Refuses(found) if found.contains(what)),
                "{text}: {:?}",
                meaning(text)
            );
        }
        assert!(matches!(meaning("unexpected EOF"), Answer::Away(_)));
    }
}
