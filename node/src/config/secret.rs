//! Settings that must not be shown, and the files that they may come from.
use super::{Settings, Sources};
use std::fmt;
use std::path::Path;

/// What `openssl rand -hex 16` prints.
const KEY_BYTES_MIN: usize = 32;
const KEY_BYTES_MAX: usize = 1_024;

/// A text that no log and no error shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: &str) -> Secret {
        Secret(text.to_owned())
    }

    pub fn text(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { "hidden" })
    }
}

pub fn is_key(text: &str) -> bool {
    (KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Reads the gossip keys that are in files.
pub fn read_keys(s: &mut Settings, sources: &Sources<'_>, faults: &mut Vec<String>) {
    let keys = [
        ("gossip_key", &mut s.gossip_key, &s.gossip_key_file),
        ("gossip_previous_key", &mut s.gossip_previous_key, &s.gossip_previous_key_file),
    ];
    for (name, key, file) in keys {
        if file.is_empty() {
            continue;
        }
        if !key.is_empty() {
            faults.push(format!("{name} and {name}_file are both set: one is enough"));
            continue;
        }
        match (sources.read_file)(Path::new(file)) {
            Ok(text) if is_key(text.trim()) => *key = Secret::new(text.trim()),
            Ok(text) => faults.push(format!(
                "{name}_file: {file} holds {} bytes, and a key has {KEY_BYTES_MIN} to \
                 {KEY_BYTES_MAX} bytes of text in one line",
                text.trim().len()
            )),
            Err(e) => faults.push(format!("{name}_file: {file} cannot be read: {e}")),
        }
    }
    if s.gossip_key.is_empty() && !s.gossip_previous_key.is_empty() {
        faults
            .push("gossip_previous_key is set and gossip_key is not: set the new key, too".into());
    }
}
