//! Small files that are there whole or not at all.

use std::io::Write as _;
use std::path::Path;

/// Writes `bytes` to `path`, durably: whatever ends the process or the machine meanwhile, the file has all of them or is
/// as it was.
///
/// # Errors
/// The directory cannot be written; a file of the same name and `.new` may be left there.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    let mut file = std::fs::File::create(new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(new, path)?;
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
