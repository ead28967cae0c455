//! One operator of several acts: the one that holds the Lease.
//!
//! Times of others are never compared with the own clock: a lease has run out when it was not seen to
//! change for its whole length. Every write carries the resourceVersion that was read.
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

/// Without a renewal for so long it is free.
pub const DURATION: Duration = Duration::from_secs(15);
const RENEW_EVERY: Duration = Duration::from_secs(4);
/// A holder that could not renew for so long has stopped acting, well before another begins.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);

/// What the holder of the Lease may do next. Pure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    Create,
    Renew,
    TakeOver,
    Wait,
}

/// How one look at the Lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// As of the beginning of the look.
    Held,
    AnotherHolds,
    /// It changed between the look and the write.
    Raced,
}

/// The Lease as it was last seen, and since when it has looked like that.
#[derive(Clone, Debug)]
struct Seen {
    holder: String,
    resource_version: String,
    since: Instant,
}

fn turn(seen: Option<&Seen>, me: &str, now: Instant) -> Turn {
    match seen {
        None => Turn::Create,
        Some(s) if s.holder == me => Turn::Renew,
        Some(s) if s.holder.is_empty() => Turn::TakeOver,
        Some(s) if now.duration_since(s.since) >= DURATION => Turn::TakeOver,
        Some(_) => Turn::Wait,
    }
}

pub struct Election {
    api: Api<Lease>,
    name: String,
    me: String,
    seen: Option<Seen>,
    /// Before the last write that it held by: others count from later on.
    renewed: Instant,
}

impl Election {
    /// `me`: unique for each process.
    pub fn new(client: Client, namespace: &str, name: &str, me: &str) -> Election {
        Election {
            api: Api::namespaced(client, namespace),
            name: name.into(),
            me: me.into(),
            seen: None,
            renewed: Instant::now(),
        }
    }

    /// Returns once this process holds the Lease.
    pub async fn acquire(&mut self) {
        loop {
            let began = Instant::now();
            match tokio::time::timeout(RENEW_DEADLINE, self.step()).await {
                Ok(Ok(Step::Held)) => {
                    self.renewed = began;
                    return;
                }
                Ok(Ok(Step::Raced | Step::AnotherHolds)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the Lease cannot be read or written"),
                Err(_) => tracing::warn!("the Kubernetes API does not answer about the Lease"),
            }
            tokio::time::sleep(RENEW_EVERY / 2).await;
        }
    }

    /// Renews the Lease until it is lost, and says why. The caller ends the process.
    pub async fn hold(&mut self) -> String {
        loop {
            tokio::time::sleep(RENEW_EVERY.min(RENEW_DEADLINE / 4)).await;
            let left = RENEW_DEADLINE.saturating_sub(self.renewed.elapsed());
            let began = Instant::now();
            match tokio::time::timeout(left, self.step()).await {
                Ok(Ok(Step::Held)) => self.renewed = began,
                Ok(Ok(Step::AnotherHolds)) => return "another operator holds the Lease".into(),
                // Somebody has touched it: the next look says whether it is still this one's.
                Ok(Ok(Step::Raced)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the Lease was not renewed"),
                Err(_) => {}
            }
            if self.renewed.elapsed() >= RENEW_DEADLINE {
                return format!("the Lease was not renewed for {} s", RENEW_DEADLINE.as_secs());
            }
        }
    }

    /// Lets the next one begin at once.
    pub async fn release(&mut self) {
        let Ok(Some(mut lease)) = self.api.get_opt(&self.name).await else { return };
        if let Some(spec) = lease.spec.as_mut()
            && spec.holder_identity.as_deref() == Some(&self.me)
        {
            spec.holder_identity = Some(String::new());
            // Whether it succeeds or not, it runs out.
            let _ = self.api.replace(&self.name, &PostParams::default(), &lease).await;
        }
    }

    /// One look and at most one write.
    async fn step(&mut self) -> Result<Step, kube::Error> {
        let found = self.api.get_opt(&self.name).await?;
        self.look(found.as_ref());
        let written = match turn(self.seen.as_ref(), &self.me, Instant::now()) {
            Turn::Wait => return Ok(Step::AnotherHolds),
            Turn::Create => self.api.create(&PostParams::default(), &self.lease(None)).await,
            Turn::Renew | Turn::TakeOver => {
                let lease = self.lease(found);
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(lease) => {
                self.look(Some(&lease));
                Ok(Step::Held)
            }
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(Step::Raced),
            Err(e) => Err(e),
        }
    }

    fn look(&mut self, lease: Option<&Lease>) {
        let Some(lease) = lease else {
            self.seen = None;
            return;
        };
        let resource_version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref().is_some_and(|s| s.resource_version == resource_version) {
            return;
        }
        let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.clone());
        self.seen = Some(Seen {
            holder: holder.unwrap_or_default(),
            resource_version,
            since: Instant::now(),
        });
    }

    fn lease(&self, found: Option<Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let before = found.as_ref().and_then(|l| l.spec.clone()).unwrap_or_default();
        let mine = before.holder_identity.as_deref() == Some(&self.me);
        let metadata = found.map_or_else(
            || ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            |l| l.metadata,
        );
        let transitions = before.lease_transitions.unwrap_or(0);
        Lease {
            metadata,
            spec: Some(LeaseSpec {
                holder_identity: Some(self.me.clone()),
                lease_duration_seconds: Some(DURATION.as_secs() as i32),
                acquire_time: before.acquire_time.filter(|_| mine).or(Some(now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(if mine {
                    transitions
                } else {
                    transitions.saturating_add(1)
                }),
                ..LeaseSpec::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_over_only_when_it_stood_still_for_its_whole_length() {
        let since = Instant::now();
        let held = |holder: &str| {
            Some(Seen { holder: holder.into(), resource_version: "1".into(), since })
        };
        let at = |held: &Option<Seen>, after: Duration| turn(held.as_ref(), "me", since + after);
        assert_eq!(at(&None, Duration::ZERO), Turn::Create);
        assert_eq!(at(&held("me"), Duration::ZERO), Turn::Renew);
        assert_eq!(at(&held("you"), DURATION - Duration::from_millis(1)), Turn::Wait);
        assert_eq!(at(&held("you"), DURATION), Turn::TakeOver);
        assert_eq!(at(&held(""), Duration::ZERO), Turn::TakeOver, "it was let go");
        // A holder that cannot renew has ended before another may begin.
        assert!(RENEW_DEADLINE + RENEW_EVERY < DURATION);
    }
}
