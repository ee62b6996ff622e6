//! Threads of this process, as the kernel tells.

use std::fmt::Write as _;
use std::io;

/// One line each: id, state, CPU ticks, name.
///
/// # Errors
/// `/proc` cannot be read.
pub(super) fn list() -> io::Result<String> {
    let mut text = String::from("id state cpu_ticks name\n");
    let mut ids: Vec<u32> = std::fs::read_dir("/proc/self/task")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    ids.sort_unstable();
    for id in ids {
        // One that ended meanwhile is left out.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/self/task/{id}/stat")) else {
            continue;
        };
        let Some((name, fields)) = name_and_fields(&stat) else { continue };
        let field = |index: usize| fields.get(index).copied().unwrap_or("?");
        let ticks: u64 =
            [11, 12].iter().filter_map(|index| field(*index).parse::<u64>().ok()).sum();
        // Writing to a String does not fail.
        let _infallible = writeln!(text, "{id} {} {ticks} {name}", field(0));
    }
    Ok(text)
}

/// A name stands in parentheses and may hold some.
fn name_and_fields(stat: &str) -> Option<(&str, Vec<&str>)> {
    let (_, rest) = stat.split_once('(')?;
    let (name, fields) = rest.rsplit_once(')')?;
    Some((name, fields.split_whitespace().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_is_among_them() {
        let name = "a (thread) x";
        let listed = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(|| list().unwrap())
            .unwrap()
            .join()
            .unwrap();
        assert!(listed.lines().any(|line| line.ends_with(name)), "{listed}");
    }
}
