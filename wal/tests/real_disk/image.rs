//! ext4 on a loop device whose backing file lies in memory: its copy while the victim stands still
//! is what a power cut leaves, and an undersized memory makes real syncs fail.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether this process may make file systems and mount them.
pub fn is_there() -> bool {
    let dir = tempfile::tempdir().unwrap();
    Memory::mount(dir.path(), 32).is_some_and(|memory| {
        memory
            .make_image("probe", 16)
            .is_some_and(|image| image.mount(&dir.path().join("probe-mount")).is_some())
    })
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A mounted file system; unmounted when dropped, whatever happened.
pub struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // Somebody may still be on his way out of it.
        for _ in 0..50 {
            if run("umount", &[text(&self.0)]) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        run("umount", &["-l", text(&self.0)]);
    }
}

/// A file system in memory, of a bounded size.
pub struct Memory {
    mounted: Mounted,
}

impl Memory {
    /// Mounts one; `None` without the rights.
    pub fn mount(at: &Path, mib: u64) -> Option<Self> {
        let at = at.join(format!("memory-{mib}"));
        std::fs::create_dir_all(&at).unwrap();
        let size = format!("size={mib}m");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", text(&at)])
            .then(|| Self { mounted: Mounted(at) })
    }

    /// A sparse file with an empty ext4 in it.
    pub fn make_image(&self, name: &str, mib: u64) -> Option<Image> {
        let path = self.mounted.0.join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(mib << 20).unwrap();
        // Large blocks, so that all of its own bookkeeping lies at the beginning.
        let made = run(
            "mkfs.ext4",
            &["-q", "-F", "-b", "4096", "-J", "size=4,location=1500", text(&path)],
        ) || run("mkfs.ext4", &["-q", "-F", "-b", "4096", text(&path)]);
        made.then_some(Image(path))
    }
}

/// A file with a file system in it.
pub struct Image(PathBuf);

impl Image {
    /// Mounts it through a loop device.
    pub fn mount(&self, at: &Path) -> Option<Mounted> {
        std::fs::create_dir_all(at).unwrap();
        run("mount", &["-o", "loop", text(&self.0), text(at)]).then(|| Mounted(at.to_path_buf()))
    }

    /// Gives the first part of it its memory, holes included: the file system's own bookkeeping
    /// must not fail, because then it stops as a whole, before any write of the log's fails.
    pub fn back(&self, mib: u64) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().read(true).write(true).open(&self.0).unwrap();
        let mut bytes = vec![0; 1 << 20];
        for at in (0..mib << 20).step_by(1 << 20) {
            file.read_exact_at(&mut bytes, at).unwrap();
            file.write_all_at(&bytes, at).unwrap();
        }
    }

    /// Lets the mounted device pass on one page at a time: the loop driver calls a longer write
    /// whole of which only the beginning had room, and no file system above it can know.
    pub fn one_page_at_a_time(&self) {
        let listed =
            Command::new("losetup").args(["-n", "-O", "NAME", "-j", text(&self.0)]).output();
        let device = String::from_utf8(listed.unwrap().stdout).unwrap();
        let name = device.trim().trim_start_matches("/dev/");
        std::fs::write(format!("/sys/block/{name}/queue/max_sectors_kb"), "4").unwrap();
    }

    /// A copy of what is in it now; `None` if somebody is still writing.
    pub fn copy_when_still(&self, to: &Path) -> Option<Image> {
        let other = to.with_extension("again");
        copy(&self.0, to);
        copy(&self.0, &other);
        let same = run("cmp", &["-s", text(to), text(&other)]);
        std::fs::remove_file(&other).unwrap();
        same.then(|| Image(to.to_path_buf()))
    }
}

impl Image {
    /// Its bytes, elsewhere.
    pub fn copy(&self, to: &Path) -> Image {
        copy(&self.0, to);
        Image(to.to_path_buf())
    }

    pub fn remove(self) {
        std::fs::remove_file(self.0).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    assert!(run("cp", &["--sparse=always", text(from), text(to)]), "copy {}", from.display());
}
