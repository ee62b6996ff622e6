//! Exit codes, after `sysexits.h`, so that a supervisor knows whether a restart helps.

use std::io::ErrorKind;

use wal::WalError;

use crate::config::ConfigError;
use crate::instance::InstanceError;
use crate::kafka::group::MemberError;
use crate::secrets::SecretError;

/// Stopped as asked.
pub const OK: u8 = 0;
/// The command line makes no sense.
pub const USAGE: u8 = 64;
/// Something that is asked, over HTTP or by `check-config --connect`, does not answer.
pub const UNAVAILABLE: u8 = 69;
/// A fault of this program.
pub const SOFTWARE: u8 = 70;
/// The disk failed: restart after a look at it.
pub const DISK: u8 = 74;
/// Temporary: the directory is locked, the Kafka client cannot go on.
pub const TEMPORARY: u8 = 75;
/// No permission: a restart does not help.
pub const PERMISSION: u8 = 77;
/// The configuration or the version of the data, or another process has this one's name: a restart does not help.
pub const CONFIGURATION: u8 = 78;

/// Ends the process now. Exit handlers of C libraries are not run: OpenSSL's frees what a thread of the Kafka client,
/// which may outlive a stop by seconds when no broker answers, is still using.
pub fn leave(code: u8) -> ! {
    use std::io::Write as _;
    // What is not written by now has no reader any more.
    drop(std::io::stdout().flush());
    drop(std::io::stderr().flush());
    leave_unflushed(code)
}

/// The same where somebody is just writing, and nobody reads.
pub fn leave_unflushed(code: u8) -> ! {
    signal_hook::low_level::exit(i32::from(code))
}

/// The exit code for what ended the process.
#[must_use]
pub fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.downcast_ref::<ConfigError>().is_some()
            || matches!(cause.downcast_ref::<InstanceError>(), Some(InstanceError::Foreign { .. }))
        {
            return CONFIGURATION;
        }
        if cause.downcast_ref::<crate::cli::NoAnswer>().is_some() {
            return UNAVAILABLE;
        }
        if cause.downcast_ref::<crate::http::WeakToken>().is_some() {
            return CONFIGURATION;
        }
        if let Some(error) = cause.downcast_ref::<SecretError>() {
            return if error.is_permission() { PERMISSION } else { CONFIGURATION };
        }
        if let Some(error) = cause.downcast_ref::<WalError>() {
            return match error {
                WalError::Locked { .. } => TEMPORARY,
                WalError::NewerVersion { .. }
                | WalError::ForeignSegment { .. }
                | WalError::CarryRefused { .. }
                | WalError::Config(_) => CONFIGURATION,
                WalError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                    PERMISSION
                }
                _ => DISK,
            };
        }
        if let Some(error) = cause.downcast_ref::<MemberError>() {
            return match error {
                MemberError::Fenced { .. } => CONFIGURATION,
                MemberError::Fatal { .. } => TEMPORARY,
            };
        }
        if cause.downcast_ref::<crate::intake::IntakeError>().is_some() {
            return DISK;
        }
        if cause.downcast_ref::<rdkafka::error::KafkaError>().is_some() {
            return CONFIGURATION;
        }
        if let Some(error) = cause.downcast_ref::<std::io::Error>() {
            return match error.kind() {
                ErrorKind::PermissionDenied => PERMISSION,
                ErrorKind::AddrInUse => TEMPORARY,
                _ => DISK,
            };
        }
    }
    SOFTWARE
}
