//! What a node says of itself: a handful of short texts by name, as chitchat carries them.

/// Longest text taken from another node.
const TEXT_BYTES_MAX: usize = 512;
/// Free bytes are told in such steps: they change all the time, and each change is a message.
const FREE_STEP_BYTES: u64 = 64 << 20;
const CPU_STEP_PERCENT: u32 = 5;

/// What a node publishes. It helps and never decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub name: String,
    pub zone: String,
    pub client_url: String,
    /// `host:port` of the peer port.
    pub peer_address: String,
    pub version: String,
    /// Replicas of partitions, and those that lead.
    pub replicas: u32,
    pub leaders: u32,
    pub disk_free_bytes: u64,
    pub disk_total_bytes: u64,
    /// Processor time of the process, 100: one core.
    pub cpu_percent: u32,
}

impl Facts {
    /// Rounded, so that what hardly changed is told as unchanged.
    pub fn rounded(mut self) -> Facts {
        self.disk_free_bytes -= self.disk_free_bytes % FREE_STEP_BYTES;
        self.cpu_percent -= self.cpu_percent % CPU_STEP_PERCENT;
        self
    }

    pub fn to_pairs(&self) -> [(&'static str, String); 10] {
        [
            ("name", self.name.clone()),
            ("zone", self.zone.clone()),
            ("client_url", self.client_url.clone()),
            ("peer_address", self.peer_address.clone()),
            ("version", self.version.clone()),
            ("replicas", self.replicas.to_string()),
            ("leaders", self.leaders.to_string()),
            ("disk_free_bytes", self.disk_free_bytes.to_string()),
            ("disk_total_bytes", self.disk_total_bytes.to_string()),
            ("cpu_percent", self.cpu_percent.to_string()),
        ]
    }

    /// Never fails: names that are not known, of a newer version, are left out, and so are texts that
    /// could not be shown and numbers that are none.
    pub fn from_pairs<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Facts {
        let mut facts = Facts::default();
        for (name, value) in pairs {
            if value.len() > TEXT_BYTES_MAX || value.chars().any(char::is_control) {
                continue;
            }
            let text = || value.to_owned();
            match name {
                "name" => facts.name = text(),
                "zone" => facts.zone = text(),
                "client_url" => facts.client_url = text(),
                "peer_address" => facts.peer_address = text(),
                "version" => facts.version = text(),
                "replicas" => facts.replicas = value.parse().unwrap_or(0),
                "leaders" => facts.leaders = value.parse().unwrap_or(0),
                "disk_free_bytes" => facts.disk_free_bytes = value.parse().unwrap_or(0),
                "disk_total_bytes" => facts.disk_total_bytes = value.parse().unwrap_or(0),
                "cpu_percent" => facts.cpu_percent = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_told_is_heard(texts in prop::collection::vec("[^\\p{Cc}]{0,60}", 5), n in any::<u64>()) {
            let facts = Facts {
                name: texts[0].clone(),
                zone: texts[1].clone(),
                client_url: texts[2].clone(),
                peer_address: texts[3].clone(),
                version: texts[4].clone(),
                replicas: n as u32,
                leaders: (n >> 3) as u32,
                disk_free_bytes: n,
                disk_total_bytes: n.rotate_left(7),
                cpu_percent: (n >> 32) as u32,
            };
            let pairs = facts.to_pairs();
            let heard = Facts::from_pairs(pairs.iter().map(|(k, v)| (*k, v.as_str())));
            prop_assert_eq!(&heard, &facts);
            let rounded = heard.rounded();
            prop_assert_eq!(rounded.clone().rounded(), rounded);
        }
    }

    #[test]
    fn what_cannot_be_shown_is_left_out() {
        let long = "a".repeat(TEXT_BYTES_MAX + 1);
        let pairs = [
            ("name", "a\x1b[31m"),
            ("zone", long.as_str()),
            ("replicas", "-1"),
            ("leaders", "2"),
            ("of_a_newer_version", "x"),
        ];
        let facts = Facts::from_pairs(pairs.into_iter());
        assert_eq!(facts, Facts { leaders: 2, ..Facts::default() });
    }
}
