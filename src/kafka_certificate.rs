//! Why a broker's certificate is refused. The client library says only that it is; OpenSSL, asked once more by a
//! handshake of our own with the same settings, says which check fails and what the certificate holds. Nothing is sent
//! behind the handshake, and nothing depends on the answer but the words.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openssl::ssl::{HandshakeError, SslConnector, SslMethod, SslVerifyMode};
use openssl::x509::X509StoreContextRef;
use openssl::x509::store::X509StoreBuilder;
use storage::certificate::{EXPIRED, HOST_NAME, IP_ADDRESS, NOT_YET_VALID, describe};

use crate::config::KafkaTls;
use crate::kafka_trouble::Trouble;
use crate::sync::lock;

/// How long a broker may take for each part of the answer; it has answered the client library just now.
const WAIT: Duration = Duration::from_secs(2);

/// The same trouble with the reason in its message and in its hint, if it is a refused certificate and the broker
/// shows it again.
#[must_use]
pub fn explain(trouble: Trouble, tls: &KafkaTls) -> Trouble {
    if !trouble.message.contains("certificate verify failed") {
        return trouble;
    }
    let asked = address(&trouble.message).and_then(|(host, port)| ask(host, port, tls));
    let Some((check, what)) = asked else { return trouble };
    let hint = match check {
        EXPIRED => "the broker's certificate has expired: renew it, or set this machine's clock",
        NOT_YET_VALID => "the broker's certificate is not valid yet: check this machine's clock",
        HOST_NAME | IP_ADDRESS => {
            "the broker's certificate is made for another name: it must hold the one in kafka.bootstrap_servers and in the brokers' advertised.listeners"
        }
        _ => {
            "the broker's certificate is not signed by a certificate in kafka.security.tls.ca_file, or without one, by any that the system trusts"
        }
    };
    Trouble { message: format!("{}: {what}", trouble.message), hint, ..trouble }
}

/// Host and port in `sasl_ssl://host:port/1: …`.
fn address(message: &str) -> Option<(&str, u16)> {
    let (_, rest) = message.split_once("ssl://")?;
    let (address, _) = rest.split_once('/')?;
    let (host, port) = address.rsplit_once(':')?;
    Some((host.trim_start_matches('[').trim_end_matches(']'), port.parse().ok()?))
}

/// The check that fails, and in words, with what the refused certificate says of itself.
fn ask(host: &str, port: u16, tls: &KafkaTls) -> Option<(i32, String)> {
    let mut builder = SslConnector::builder(SslMethod::tls_client()).ok()?;
    if let Some(ca_file) = &tls.ca_file {
        // As for the client library: these certificates, and not the system's beside them.
        builder.set_cert_store(X509StoreBuilder::new().ok()?.build());
        builder.set_ca_file(ca_file).ok()?;
    }
    let refused = Arc::new(Mutex::new(None));
    let found = Arc::clone(&refused);
    builder.set_verify_callback(SslVerifyMode::PEER, move |fine, context| {
        if !fine {
            *lock(&found) = Some(reason(context));
        }
        fine
    });
    let configuration =
        builder.build().configure().ok()?.verify_hostname(!tls.insecure_skip_hostname_verification);
    for address in (host, port).to_socket_addrs().ok()? {
        let Ok(stream) = TcpStream::connect_timeout(&address, WAIT) else { continue };
        stream.set_read_timeout(Some(WAIT)).ok()?;
        stream.set_write_timeout(Some(WAIT)).ok()?;
        return match configuration.connect(host, stream) {
            Err(HandshakeError::Failure(_)) => lock(&refused).take(),
            _ => None,
        };
    }
    None
}

fn reason(context: &X509StoreContextRef) -> (i32, String) {
    let error = context.error();
    let said = context.current_cert().map(describe).unwrap_or_default();
    (error.as_raw(), format!("{}{said}", error.error_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka_trouble::{Class, classify};

    #[test]
    fn the_broker_is_found_in_the_message() {
        for (message, found) in [
            ("ssl://kafka.example:9093/bootstrap: SSL handshake failed", ("kafka.example", 9093)),
            ("sasl_ssl://[::1]:9093/1: SSL handshake failed", ("::1", 9093)),
        ] {
            assert_eq!(address(message), Some(found));
        }
        assert_eq!(address("GroupCoordinator: SSL handshake failed"), None);
    }

    #[test]
    fn a_trouble_stays_as_it_is_when_the_broker_does_not_answer_again() {
        let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let text = format!("ssl://{port}/1: SSL handshake failed: certificate verify failed");
        let trouble = classify(Class::Ssl, &text).unwrap();
        assert_eq!(explain(trouble.clone(), &KafkaTls::default()), trouble);
    }
}
