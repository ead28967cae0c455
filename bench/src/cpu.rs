//! Processor time of processes, from `/proc`.
use std::time::Duration;

/// Linux reports processor time in hundredths of a second on every architecture that it runs on.
const TICKS_PER_S: u64 = 100;

/// Time that a process has used, user and system together; zero when it is gone.
pub fn used(pid: u32) -> Duration {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|s| parse_stat(&s))
        .map_or(Duration::ZERO, |s| s.cpu)
}

/// Time that these processes have used together.
pub fn used_by_all(pids: &[u32]) -> Duration {
    pids.iter().map(|&p| used(p)).sum()
}

/// Processes whose parent, or whose parent's parent, is `pid`, by the name of their program.
pub fn children_named(pid: u32, name: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let all: Vec<(u32, Stat)> = entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|p: u32| {
            let text = std::fs::read_to_string(format!("/proc/{p}/stat")).ok()?;
            Some((p, parse_stat(&text)?))
        })
        .collect();
    let parent_of = |p: u32| all.iter().find(|(q, _)| *q == p).map(|(_, s)| s.parent);
    all.iter()
        .filter(|(_, s)| s.parent == pid || parent_of(s.parent) == Some(pid))
        // The kernel keeps 15 bytes of a name.
        .filter(|(_, s)| s.name == name[..name.len().min(15)])
        .map(|(p, _)| *p)
        .collect()
}

#[derive(Debug, PartialEq)]
struct Stat {
    name: String,
    parent: u32,
    cpu: Duration,
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The name may hold spaces and brackets: fields count from the last bracket.
    let (before, after) = text.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Stat {
        name: name.to_owned(),
        parent: fields.get(1)?.parse().ok()?,
        cpu: Duration::from_millis(ticks * 1_000 / TICKS_PER_S),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_name() {
        let line = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 5 6 7";
        let want = Stat { name: "a) b (c".into(), parent: 7, cpu: Duration::from_secs(2) };
        assert_eq!(parse_stat(line), Some(want));
        assert_eq!(parse_stat("42 (x) S 7"), None);
    }

    #[test]
    fn this_process_has_a_parent_and_uses_time() {
        let text = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert!(parse_stat(&text).unwrap().parent > 0);
        assert_eq!(used(0), Duration::ZERO);
    }
}
