//! Passwords from files and variables. They are read when they are used, so that a changed one is taken with the next
//! connection, and never printed.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

/// Bits of a file's mode that let the group and others read it.
const READABLE_BY_OTHERS: u32 = 0o044;

/// A secret that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Others may read it.
    #[error("{key}: {path} can be read by its group or by others; type: chmod 600 {path}")]
    Exposed {
        /// The key that names the file.
        key: String,
        /// The file.
        path: PathBuf,
    },
    /// A directory, a device or a pipe.
    #[error("{key}: {path} is not a regular file")]
    NotAFile {
        /// The key that names the file.
        key: String,
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("{key}: cannot read {path}: {source}")]
    Read {
        /// The key that names the file.
        key: String,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The variable is not set, or not text.
    #[error("{key}: environment variable {variable} is not set")]
    Unset {
        /// The key that names the variable.
        key: String,
        /// The variable.
        variable: String,
    },
    /// There is nothing in it, or something that no password holds.
    #[error("{key}: what {place} holds is no password: it is {what}")]
    Unusable {
        /// The key that names the place.
        key: String,
        /// File or variable.
        place: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl SecretError {
    /// True when rights are the matter, and not the configuration.
    #[must_use]
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Exposed { .. } | Self::NotAFile { .. } => true,
            Self::Read { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Unset { .. } | Self::Unusable { .. } => false,
        }
    }
}

/// The secret of `key`, from the file or the variable, whichever is given; `None` when neither is.
///
/// # Errors
/// [`SecretError`]: its message names the key and the place, and never what is in it.
pub fn read(
    key: &str,
    file: Option<&Path>,
    variable: Option<&str>,
) -> Result<Option<SecretString>, SecretError> {
    if let Some(path) = file {
        let key = format!("{key}_file");
        check_private(&key, path)?;
        let bytes = std::fs::read(path).map_err(|source| SecretError::Read {
            key: key.clone(),
            path: path.to_owned(),
            source,
        })?;
        return usable(key, path.display().to_string(), bytes).map(Some);
    }
    if let Some(variable) = variable {
        let key = format!("{key}_env");
        let value = std::env::var(variable)
            .map_err(|_| SecretError::Unset { key: key.clone(), variable: variable.to_owned() })?;
        return usable(key, format!("variable {variable}"), value.into_bytes()).map(Some);
    }
    Ok(None)
}

/// Checks that `path` is a regular file that only its owner can read.
///
/// # Errors
/// [`SecretError`], with what to type.
pub fn check_private(key: &str, path: &Path) -> Result<(), SecretError> {
    if open(key, path)?.permissions().mode() & READABLE_BY_OTHERS != 0 {
        return Err(SecretError::Exposed { key: key.to_owned(), path: path.to_owned() });
    }
    Ok(())
}

/// Checks that `path` is a regular file that can be read.
///
/// # Errors
/// [`SecretError`].
pub fn check_readable(key: &str, path: &Path) -> Result<(), SecretError> {
    open(key, path).map(|_| ())
}

fn open(key: &str, path: &Path) -> Result<Metadata, SecretError> {
    let unreadable =
        |source| SecretError::Read { key: key.to_owned(), path: path.to_owned(), source };
    // Asked before it is opened: a pipe without a writer would never open.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(SecretError::NotAFile { key: key.to_owned(), path: path.to_owned() });
    }
    std::fs::File::open(path).and_then(|file| file.metadata()).map_err(unreadable)
}

fn usable(key: String, place: String, bytes: Vec<u8>) -> Result<SecretString, SecretError> {
    // The error of a failed conversion would hold the bytes; it ends here.
    let text = String::from_utf8(bytes).map_err(drop);
    let what = match &text {
        Err(()) => "not UTF-8 text",
        Ok(text) if text.trim_end_matches('\n').is_empty() => "empty",
        Ok(text) if text.contains('\0') => "text with a zero byte",
        Ok(text) => {
            let text = text.strip_suffix('\n').unwrap_or(text);
            return Ok(SecretString::from(text));
        }
    };
    Err(SecretError::Unusable { key, place, what })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use secrecy::ExposeSecret as _;

    use super::*;

    fn file(content: &[u8], mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        std::fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn one_newline_at_the_end_of_a_file_does_not_belong_to_the_password() {
        for (content, password) in [("a b\n", "a b"), ("a b", "a b"), ("a b\n\n", "a b\n")] {
            let file = file(content.as_bytes(), 0o600);
            let read = read("sasl.password", Some(file.path()), None).unwrap().unwrap();
            assert_eq!(read.expose_secret(), password);
            assert!(!format!("{read:?}").contains("a b"));
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_command_that_repairs_it() {
        for mode in [0o640, 0o604, 0o644] {
            let file = file(b"canary", mode);
            let error = read("sasl.password", Some(file.path()), None).unwrap_err();
            assert!(error.is_permission());
            let said = error.to_string();
            let command = format!("chmod 600 {}", file.path().display());
            assert!(said.contains(&command) && said.contains("sasl.password_file"), "{said}");
            assert!(!format!("{said}{error:?}").contains("canary"));
        }
    }

    #[test]
    fn a_directory_holds_no_password() {
        let dir = tempfile::tempdir().unwrap();
        let error = read("sasl.password", Some(dir.path()), None).unwrap_err();
        assert!(matches!(error, SecretError::NotAFile { .. }), "{error}");
    }

    #[test]
    fn what_is_no_password_is_refused_without_showing_it() {
        for content in [b"".as_slice(), b"\n", b"canary\xff", b"canary\0canary"] {
            let file = file(content, 0o600);
            let error = read("sasl.password", Some(file.path()), None).unwrap_err();
            assert!(!error.is_permission());
            assert!(!format!("{error}{error:?}").contains("canary"), "{error:?}");
        }
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        let error = read("sasl.password", None, Some("NO_SUCH_VARIABLE_HERE")).unwrap_err();
        assert!(error.to_string().contains("NO_SUCH_VARIABLE_HERE"), "{error}");
    }

    #[test]
    fn nothing_is_asked_for_where_nothing_is_named() {
        assert!(read("sasl.password", None, None).unwrap().is_none());
    }
}
