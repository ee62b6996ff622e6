//! Jars from Maven coordinates, fetched once and shared by all tests of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};

use crate::HarnessError;

/// Directory of jars for the service `name`, fetched with `pom` when it is not there yet.
///
/// # Errors
/// Maven or Java is missing, or the repository does not answer.
pub fn directory(name: &str, pom: &str) -> Result<PathBuf, HarnessError> {
    let dir = cache().join(name);
    let complete = dir.join("complete");
    if complete.exists() {
        return Ok(dir.join("lib"));
    }
    std::fs::create_dir_all(&dir).map_err(HarnessError::io(format!("create {}", dir.display())))?;
    let lock =
        std::fs::File::create(dir.join("lock")).map_err(HarnessError::io("create lock file"))?;
    flock(&lock, FlockOperation::LockExclusive)
        .map_err(|error| HarnessError::io("lock the cache of jars")(error.into()))?;
    if complete.exists() {
        return Ok(dir.join("lib"));
    }
    for program in ["java", "mvn"] {
        let found = Command::new(program).arg("-version").output().is_ok();
        if !found {
            return Err(HarnessError::Missing(format!(
                "{program} is not installed: type `scripts/setup test`, which says or does what is needed"
            )));
        }
    }
    std::fs::write(dir.join("pom.xml"), pom).map_err(HarnessError::io("write pom.xml"))?;
    let fetched = Command::new("mvn")
        .args([
            "-q",
            "-B",
            "dependency:copy-dependencies",
            "-DoutputDirectory=lib",
            "-DincludeScope=runtime",
        ])
        .current_dir(&dir)
        .output()
        .map_err(HarnessError::io("run mvn"))?;
    if !fetched.status.success() {
        let said = String::from_utf8_lossy(&fetched.stdout);
        return Err(HarnessError::Missing(format!(
            "mvn could not fetch the jars of {name}:\n{said}"
        )));
    }
    std::fs::write(&complete, "").map_err(HarnessError::io("mark the cache of jars"))?;
    Ok(dir.join("lib"))
}

/// `MONASCA_TEST_SERVICES`, or `services` in Cargo's target directory.
fn cache() -> PathBuf {
    if let Some(dir) = std::env::var_os("MONASCA_TEST_SERVICES") {
        return PathBuf::from(dir);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    target.join("services")
}
