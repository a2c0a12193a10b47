//! Keeps a set of names resolved: each again when its answer is over.

use super::{DnsName, Resolver};
use crate::translate::DnsFamily;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// An answer is never asked for more often than this, whatever its time to live says.
const SHORTEST: Duration = Duration::from_millis(500);

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
    let usual = Duration::from_millis(name.refresh).max(SHORTEST);
    loop {
        let (result, pause) = match resolver.lookup(&name.host, name.family).await {
            Ok(a) if name.respect_ttl => (Ok(a.addresses), a.ttl.max(SHORTEST)),
            Ok(a) => (Ok(a.addresses), usual),
            Err(e) => (Err(e.to_string()), usual),
        };
        let answered = Answered { host: name.host.clone(), family: name.family, result };
        if answers.send(answered).is_err() {
            return;
        }
        // Jitter: names that came in one response are not all asked for at one instant.
        tokio::time::sleep(pause.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(host: &str, refresh: u64) -> DnsName {
        DnsName { host: host.into(), family: DnsFamily::V4Only, refresh, respect_ttl: false }
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
