//! Keeps a set of names resolved: each again when its answer is over.

use super::{DnsName, Resolver};
use crate::translate::{DnsFamily, DnsRefresh};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A name is never asked for more often than this, in ms.
const SHORTEST: u64 = 100;

/// What became of a lookup.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The name.
    pub host: String,
    /// The family.
    pub family: DnsFamily,
    /// Its addresses, or why there are none.
    pub result: Result<Vec<IpAddr>, String>,
}

struct Running {
    name: DnsName,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One task a name.
pub struct Refresher {
    resolver: Resolver,
    running: HashMap<(String, DnsFamily), Running>,
    answers: mpsc::UnboundedSender<Answered>,
}

impl Refresher {
    /// No names yet; answers come out of the receiver.
    pub fn new(resolver: Resolver) -> (Refresher, mpsc::UnboundedReceiver<Answered>) {
        let (answers, receiver) = mpsc::unbounded_channel();
        (Refresher { resolver, running: HashMap::new(), answers }, receiver)
    }

    /// From now on these are the names. Must be called in a runtime.
    pub fn set(&mut self, names: Vec<DnsName>) {
        let mut before = std::mem::take(&mut self.running);
        for name in names {
            let key = (name.host.clone(), name.family);
            let kept = before.remove(&key).filter(|r| r.name == name);
            let running = kept.unwrap_or_else(|| Running {
                task: tokio::spawn(refresh(self.resolver.clone(), name.clone(), self.answers.clone())),
                name,
            });
            self.running.insert(key, running);
        }
    }
}

async fn refresh(resolver: Resolver, name: DnsName, answers: mpsc::UnboundedSender<Answered>) {
    let mut failures = 0;
    loop {
        let (result, ttl) = match resolver.lookup(&name.host, name.family).await {
            Ok(a) => (Ok(a.addresses), Some(a.ttl)),
            Err(e) => (Err(e.to_string()), None),
        };
        failures = if ttl.is_some() { 0 } else { failures + 1 };
        let pause = pause(&name.refresh, ttl, failures, fastrand::f64());
        let answered = Answered { host: name.host.clone(), family: name.family, result };
        if answers.send(answered).is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// Until a name is asked for again, in ms; `random` is from 0 to 1. `ttl`: that of the answer, `None` when nobody could
/// say, for the `failures`th time in a row (`StrictDnsClusterImpl::ResolveTarget::startResolve`).
fn pause(refresh: &DnsRefresh, ttl: Option<Duration>, failures: u32, random: f64) -> u64 {
    let part = |of: u64| (of as f64 * random) as u64;
    let after = match (ttl, refresh.failure) {
        (Some(ttl), _) if refresh.respect_ttl && !ttl.is_zero() => (ttl.as_millis() as u64).max(refresh.least),
        (None, Some((base, max))) => {
            let doubled = base.saturating_mul(1 << failures.saturating_sub(1).min(32));
            return part(doubled.min(max)).max(SHORTEST);
        }
        _ => refresh.rate,
    };
    after.saturating_add(part(refresh.jitter)).max(SHORTEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(host: &str, refresh: u64) -> DnsName {
        DnsName { host: host.into(), family: DnsFamily::V4Only, refresh: every(refresh) }
    }

    fn every(rate: u64) -> DnsRefresh {
        DnsRefresh { rate, respect_ttl: false, least: 0, jitter: 0, failure: None }
    }

    #[test]
    fn the_next_time_depends_on_what_came() {
        let minute = Some(Duration::from_secs(60));
        let usual = every(5000);
        assert_eq!([minute, Some(Duration::ZERO), None].map(|ttl| pause(&usual, ttl, 1, 0.5)), [5000; 3]);
        let ttl = DnsRefresh { respect_ttl: true, ..usual };
        assert_eq!([minute, Some(Duration::ZERO), None].map(|t| pause(&ttl, t, 1, 0.5)), [60_000, 5000, 5000]);
        let second = Some(Duration::from_secs(1));
        assert_eq!(pause(&DnsRefresh { least: 3000, ..ttl }, second, 0, 0.5), 3000);
        assert_eq!(pause(&DnsRefresh { jitter: 1000, ..ttl }, minute, 0, 0.5), 60_500);
        let failing = DnsRefresh { jitter: 1000, failure: Some((2000, 6000)), ..usual };
        assert_eq!([1, 2, 3, 4, u32::MAX].map(|n| pause(&failing, None, n, 0.5)), [1000, 2000, 3000, 3000, 3000]);
        assert_eq!(pause(&failing, None, 1, 0.0), SHORTEST);
        assert_eq!(pause(&every(1), None, 1, 0.0), SHORTEST);
    }

    #[test]
    fn clusters_that_share_a_name_get_the_shorter_of_each() {
        let one = DnsRefresh { rate: 1000, respect_ttl: false, least: 5, jitter: 0, failure: None };
        let other = DnsRefresh { rate: 9000, respect_ttl: true, least: 0, jitter: 7, failure: Some((1, 2)) };
        let both = DnsRefresh { rate: 1000, respect_ttl: true, least: 0, jitter: 0, failure: Some((1, 2)) };
        assert_eq!((one.and(other), other.and(one)), (both, both));
    }

    #[tokio::test]
    async fn a_name_is_resolved_again_until_it_is_not_wanted() {
        let (mut refresher, mut answers) = Refresher::new(Resolver::new(None));
        refresher.set(vec![name("127.0.0.7", 500)]);
        for _ in 0..2 {
            let a = answers.recv().await.unwrap();
            assert_eq!(a.result.unwrap(), ["127.0.0.7".parse::<IpAddr>().unwrap()]);
        }
        refresher.set(vec![name("127.0.0.8", 500)]);
        assert_eq!(answers.recv().await.unwrap().host, "127.0.0.8");
        assert_eq!(answers.recv().await.unwrap().host, "127.0.0.8");
        // What cannot be resolved is said too.
        refresher.set(vec![name("no such name", 500)]);
        assert!(answers.recv().await.unwrap().result.unwrap_err().contains("no such name"));
    }
}
