//! What OpenSSL says of a certificate that it refuses, in words for people; the same for a node of a database and for
//! whoever else shows one.

use std::net::IpAddr;

use openssl::nid::Nid;
use openssl::x509::X509Ref;

/// OpenSSL's number of the check that a certificate is valid already.
pub const NOT_YET_VALID: i32 = 9;
/// OpenSSL's number of the check that a certificate is still valid.
pub const EXPIRED: i32 = 10;
/// OpenSSL's number of the check that a certificate is made for a host's name.
pub const HOST_NAME: i32 = 62;
/// OpenSSL's number of the check that a certificate is made for an address.
pub const IP_ADDRESS: i32 = 64;

/// Names and times of a certificate, in parentheses. Whoever made it chose the names: they are cut, and cannot pretend to
/// be lines.
#[must_use]
pub fn describe(certificate: &X509Ref) -> String {
    const NAMES_MAX: usize = 200;
    let alternatives = certificate.subject_alt_names();
    let name = |name: &openssl::x509::GeneralNameRef| {
        name.dnsname().map(str::to_owned).or_else(|| address_of(name.ipaddress()?))
    };
    let mut names: Vec<String> = alternatives.iter().flatten().filter_map(name).collect();
    if names.is_empty() {
        let subject = certificate.subject_name().entries_by_nid(Nid::COMMONNAME);
        names.extend(subject.filter_map(|name| name.data().to_string().ok()));
    }
    let names: String = names.join(" ").escape_debug().take(NAMES_MAX).collect();
    let (from, to) = (certificate.not_before(), certificate.not_after());
    format!(" (certificate of {names}, valid from {from} to {to})")
}

fn address_of(bytes: &[u8]) -> Option<String> {
    let four = <[u8; 4]>::try_from(bytes).map(|bytes| IpAddr::from(bytes).to_string());
    let sixteen = <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::from(bytes).to_string());
    four.or(sixteen).ok()
}
