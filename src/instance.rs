//! The stable name of this persister: an instance is one persister with its data directory.
//!
//! The name decides which ledger in Kafka is ours, so a data directory remembers whose it is, and a lost one is
//! recognised because the name does not depend on what was in it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::whole_file;

/// Where a machine keeps its id.
const MACHINE_IDS: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// Digits of the machine id in a name.
const MACHINE_DIGITS: usize = 12;

/// Why there is no name.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// The data directory belongs to another instance.
    #[error(
        "{} belongs to instance `{found}`, this one is `{expected}`: set `instance: {found}`, or start once with \
         `run --adopt` to make it this instance's",
        path.display()
    )]
    Foreign {
        /// The file that says so.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// The data directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// Names that are made up begin so.
const MADE_UP: &str = "unnamed-";
/// Longest name of a member that brokers accept.
const MEMBER_NAME_MAX: usize = 249;

/// Whether a name may be part of a group's and a file's name.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.len() <= 100 && is_member_name(name)
}

/// Whether brokers accept this as the name of a group's member.
#[must_use]
pub fn is_member_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=MEMBER_NAME_MAX).contains(&name.len())
        && name.chars().all(allowed)
        && !matches!(name, "." | "..")
}

/// The name under which `instance` is a member of its groups, `None` for a member without one. A named member has its
/// partitions back when it returns within its session, and nobody else notices. A name that was made up may be new at
/// the next start, and the partitions of the old one would wait for nothing.
///
/// Both pipelines have the same name, for they are members of two groups; where those are one, each has its own.
#[must_use]
pub fn member_name(config: &Config, instance: &str, pipeline: &str) -> Option<String> {
    let name = match config.kafka.group_instance_id.as_str() {
        "" if config.instance.is_empty() && instance.starts_with(MADE_UP) => return None,
        "" => instance,
        name => name,
    };
    let is_shared = config.metrics.group_id == config.alarms.group_id;
    Some(if is_shared { format!("{name}.{pipeline}") } else { name.to_owned() })
}

/// The configured name, or one made of the machine's id and the data directory's path, or, without either, one that is
/// made up and kept in the data directory, which is marked with it. With `adopt` a data directory of another instance
/// becomes ours.
///
/// # Errors
/// [`InstanceError`]: nothing was changed.
pub fn resolve(config: &Config, adopt: bool) -> Result<String, InstanceError> {
    let name = match config.instance.as_str() {
        "" => of_machine(&MACHINE_IDS, &config.data_dir),
        name => Some(name.to_owned()),
    };
    let path = config.data_dir.join("instance");
    let failed = |source| InstanceError::Io { path: path.clone(), source };
    let found = match std::fs::read_to_string(&path) {
        Ok(found) => Some(found.trim().to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let name = match (name, found) {
        (Some(name), Some(found)) if found == name => return Ok(name),
        (Some(expected), Some(found)) if !adopt => {
            return Err(InstanceError::Foreign { path, found, expected });
        }
        (Some(name), _) => name,
        (None, Some(found)) if is_name(&found) => return Ok(found),
        (None, _) => {
            tracing::warn!(
                code = "INSTANCE_GENERATED",
                file = %path.display(),
                "no `instance` is configured and the machine has no id: a name is made up and kept here, so a lost disk \
                 cannot be recognised"
            );
            made_up()
        }
    };
    whole_file::write(&path, format!("{name}\n").as_bytes()).map_err(failed)?;
    Ok(name)
}

fn of_machine(files: &[&str], data_dir: &Path) -> Option<String> {
    let id = files.iter().find_map(|file| {
        let id = std::fs::read_to_string(file).ok()?;
        let id = id.trim().get(..MACHINE_DIGITS)?;
        id.chars().all(|c| c.is_ascii_hexdigit()).then(|| id.to_owned())
    })?;
    let absolute = std::path::absolute(data_dir).ok()?;
    let path = crc32fast::hash(absolute.as_os_str().as_encoded_bytes());
    Some(format!("{id}-{path:08x}"))
}

fn made_up() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    format!("{MADE_UP}{:016x}", RandomState::new().hash_one(std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path, instance: &str) -> Config {
        Config { data_dir: dir.to_owned(), instance: instance.to_owned(), ..Config::default() }
    }

    #[test]
    fn a_data_directory_of_another_instance_is_refused_until_it_is_adopted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(resolve(&config(dir.path(), "edge-7"), false).unwrap(), "edge-7");
        assert_eq!(resolve(&config(dir.path(), "edge-7"), false).unwrap(), "edge-7");
        let error = resolve(&config(dir.path(), "edge-8"), false).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`edge-7`") && text.contains("`edge-8`") && text.contains("--adopt"));
        assert_eq!(resolve(&config(dir.path(), "edge-8"), true).unwrap(), "edge-8");
        assert!(resolve(&config(dir.path(), "edge-7"), false).is_err());
    }

    #[test]
    fn without_a_name_it_is_the_machine_and_the_path_and_survives_the_loss_of_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let id = dir.path().join("machine-id");
        std::fs::write(&id, "0123456789abcdef0123456789abcdef\n").unwrap();
        let id = id.to_str().unwrap();
        let name = |path: &str| of_machine(&["/nonexistent", id], Path::new(path)).unwrap();
        assert!(name("/a").starts_with("0123456789ab-") && is_name(&name("/a")));
        assert_eq!(name("/a"), name("/a"));
        assert_ne!(name("/a"), name("/b"));
        assert_eq!(of_machine(&["/nonexistent"], Path::new("/a")), None);
    }

    #[test]
    fn a_name_that_was_made_up_is_a_name() {
        assert!(is_name(&made_up()));
        assert_ne!(made_up(), made_up());
    }

    #[test]
    fn names_fit_into_groups_and_files() {
        assert!(is_name("edge-7.example_A"));
        for name in ["", ".", "..", "a b", "a/b", "\u{e4}", &"x".repeat(101)] {
            assert!(!is_name(name), "{name}");
        }
        assert!(is_member_name(&"x".repeat(249)));
        for name in ["", ".", "..", "a b", "a/b", "\u{e4}", &"x".repeat(250)] {
            assert!(!is_member_name(name), "{name}");
        }
    }

    #[test]
    fn a_member_has_the_name_of_its_instance_unless_that_was_made_up() {
        let dir = Path::new("/data");
        assert_eq!(member_name(&config(dir, "edge-7"), "edge-7", "metrics").unwrap(), "edge-7");
        let of_machine = member_name(&config(dir, ""), "0123456789ab-00000000", "metrics");
        assert_eq!(of_machine.unwrap(), "0123456789ab-00000000");
        assert_eq!(member_name(&config(dir, ""), &made_up(), "metrics"), None);
        let mut named = config(dir, "edge-7");
        named.kafka.group_instance_id = "pod-3".to_owned();
        for instance in ["edge-7", &made_up()] {
            assert_eq!(member_name(&named, instance, "metrics").unwrap(), "pod-3");
        }
    }

    #[test]
    fn two_members_of_one_group_have_two_names() {
        let mut config = config(Path::new("/data"), "edge-7");
        config.metrics.group_id = "monasca".to_owned();
        config.alarms.group_id = "monasca".to_owned();
        let name = |pipeline| member_name(&config, "edge-7", pipeline).unwrap();
        assert_eq!([name("metrics"), name("alarms")], ["edge-7.metrics", "edge-7.alarms"]);
        // The longest name leaves room for that.
        assert!(is_member_name(&format!("{}.metrics", "x".repeat(100))));
    }
}
