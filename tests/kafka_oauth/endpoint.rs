//! An OAuth server of a few lines: it takes one client's credentials and signs tokens for it, or answers with something
//! else, by path.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openssl::base64;
use openssl::hash::MessageDigest;
use openssl::pkcs12::Pkcs12;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sign::Signer;
use openssl::ssl::{SslAcceptor, SslMethod};

pub const CLIENT: &str = "persister:1";
pub const SECRET: &str = "canary%of the client";
pub const SCOPE: &str = "metrics read";
pub const ISSUER: &str = "https://issuer.invalid";
pub const AUDIENCE: &str = "kafka";
/// Short, so that a test sees several, and long enough for a machine that has much to do.
pub const LIVES_S: i64 = 30;

pub struct Endpoint {
    keys: Arc<Keys>,
    encrypted: u16,
    plain: u16,
    /// Tokens that were given out.
    given: Arc<AtomicU64>,
}

/// What signs tokens, and what the broker is not told of.
struct Keys {
    known: PKey<Private>,
    unknown: PKey<Private>,
}

impl Endpoint {
    /// Serves with the certificate of a PKCS#12 file, and on another port without TLS.
    pub fn start(store: &Path, password: &str) -> Self {
        let store = Pkcs12::from_der(&std::fs::read(store).unwrap()).unwrap();
        let store = store.parse2(password).unwrap();
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
        acceptor.set_private_key(&store.pkey.unwrap()).unwrap();
        acceptor.set_certificate(&store.cert.unwrap()).unwrap();
        let acceptor = acceptor.build();
        let key = || PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
        let keys = Arc::new(Keys { known: key(), unknown: key() });
        let given = Arc::new(AtomicU64::new(0));
        let serve = |acceptor: Option<SslAcceptor>| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let (keys, given) = (Arc::clone(&keys), Arc::clone(&given));
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (acceptor, keys) = (acceptor.clone(), Arc::clone(&keys));
                    let given = Arc::clone(&given);
                    std::thread::spawn(move || match acceptor {
                        None => answer(stream, &keys, &given),
                        // Who does not trust us hangs up.
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream) {
                                answer(stream, &keys, &given);
                            }
                        }
                    });
                }
            });
            port
        };
        let (encrypted, plain) = (serve(Some(acceptor)), serve(None));
        Self { keys, encrypted, plain, given }
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}/{path}", self.encrypted)
    }

    pub fn plain_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.plain)
    }

    pub fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    /// What a broker needs to verify the tokens: a JSON web key set.
    pub fn key_set(&self) -> String {
        let rsa = self.keys.known.rsa().unwrap();
        let (n, e) = (url_safe(&rsa.n().to_vec()), url_safe(&rsa.e().to_vec()));
        format!(
            r#"{{"keys":[{{"kty":"RSA","kid":"one","use":"sig","alg":"RS256","n":"{n}","e":"{e}"}}]}}"#
        )
    }
}

fn url_safe(bytes: &[u8]) -> String {
    let encoded = base64::encode_block(bytes).replace('+', "-").replace('/', "_");
    encoded.trim_end_matches('=').to_owned()
}

fn answer(mut stream: impl Read + Write, keys: &Keys, given: &AtomicU64) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !is_whole(&request) {
        match stream.read(&mut buffer) {
            Ok(length) if length > 0 => request.extend_from_slice(&buffer[..length]),
            _ => return,
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let (status, body) = respond(&request, keys);
    if status == 200 {
        given.fetch_add(1, Ordering::Relaxed);
    }
    let head = format!(
        "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    // A client that is gone does not need it.
    stream.write_all(format!("{head}{body}").as_bytes()).ok();
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().unwrap())
    });
    body.len() >= length.unwrap_or(0)
}

fn respond(request: &str, keys: &Keys) -> (u16, String) {
    // As RFC 6749 writes them in the header.
    let credentials = base64::encode_block(b"persister%3A1:canary%25of+the+client");
    let is_client = request.lines().any(|line| {
        line.split_once(": ").is_some_and(|(name, value)| {
            name.eq_ignore_ascii_case("authorization") && value == format!("Basic {credentials}")
        })
    });
    if !is_client {
        return (401, r#"{"error":"invalid_client"}"#.to_owned());
    }
    if !request.ends_with("grant_type=client_credentials&scope=metrics+read") {
        return (400, r#"{"error":"invalid_request"}"#.to_owned());
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    let token = match path {
        "/token" => token(&keys.known, AUDIENCE, LIVES_S),
        "/forged" => token(&keys.unknown, AUDIENCE, LIVES_S),
        "/for-others" => token(&keys.known, "others", LIVES_S),
        "/ended" => token(&keys.known, AUDIENCE, -60),
        "/page" => return (200, "<html>canary</html>".to_owned()),
        "/moved" => return (302, String::new()),
        _ => return (500, "canary".to_owned()),
    };
    (200, format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":{LIVES_S}}}"#))
}

fn token(key: &PKey<Private>, audience: &str, lives_s: i64) -> String {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let now = i64::try_from(now).unwrap();
    let claims = format!(
        r#"{{"iss":"{ISSUER}","aud":"{audience}","sub":"persister","scope":"{SCOPE}","iat":{now},"exp":{}}}"#,
        now + lives_s
    );
    let signed =
        format!("{}.{}", url_safe(br#"{"alg":"RS256","kid":"one"}"#), url_safe(claims.as_bytes()));
    let mut signer = Signer::new(MessageDigest::sha256(), key).unwrap();
    signer.update(signed.as_bytes()).unwrap();
    format!("{signed}.{}", url_safe(&signer.sign_to_vec().unwrap()))
}
