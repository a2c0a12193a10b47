//! Names → addresses, without a thread: hickory over the system's own configuration.
//!
//! `/etc/resolv.conf` and `/etc/hosts` are read again when they changed. Nothing is cached here: who asks knows how long
//! an answer holds.

mod refresh;

use crate::store::DnsName;
use crate::translate::DnsFamily;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioTime};
use hickory_resolver::Resolver as Hickory;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

pub use refresh::{Answered, Refresher};

/// Files that say how names are resolved.
const SYSTEM: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// A time to live that is a day but for the time that asking took.
const WHOLE_DAY: Duration = Duration::from_secs(86_400 - 60);
/// For a name server that is to be connected to.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A name that has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// The name servers did not answer, or not sensibly.
    #[error("cannot resolve \"{host}\": {reason}")]
    Lookup {
        /// The name.
        host: String,
        /// Their word.
        reason: String,
    },
    /// The system's configuration cannot be read.
    #[error("cannot resolve \"{host}\": /etc/resolv.conf: {reason}")]
    System {
        /// The name.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The addresses of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// In the order in which they came.
    pub addresses: Vec<IpAddr>,
    /// Its time to live; 0: it has none.
    pub ttl: Duration,
}

type Stamp = [Option<SystemTime>; SYSTEM.len()];

/// Resolves names. Clones share all.
#[derive(Clone, Default)]
pub struct Resolver {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    mark: Option<u32>,
    stamp: Stamp,
    by_strategy: HashMap<u8, Arc<Hickory<Sockets>>>,
}

impl Resolver {
    /// A resolver whose sockets carry `mark` (`SO_MARK`).
    pub fn new(mark: Option<u32>) -> Resolver {
        Resolver { shared: Arc::new(Mutex::new(Shared { mark, ..Shared::default() })) }
    }

    /// The addresses of a name of one family, or of the family that is preferred; none, if that is what the name servers
    /// say. An address is its own answer.
    ///
    /// # Errors
    /// [`DnsError`] when nobody could say.
    pub async fn lookup(&self, host: &str, family: DnsFamily) -> Result<Answer, DnsError> {
        let inner = self.inner(family).map_err(|reason| DnsError::System { host: host.to_owned(), reason })?;
        let failed = |reason: String| DnsError::Lookup { host: host.to_owned(), reason };
        let found = match inner.lookup_ip(host).await {
            Ok(found) => found,
            Err(e) if e.is_no_records_found() => return Ok(Answer { addresses: Vec::new(), ttl: Duration::ZERO }),
            Err(e) => return Err(failed(e.to_string())),
        };
        let ttl = found.valid_until().saturating_duration_since(Instant::now());
        // What stands in a file, or is an address, is said to live for a day.
        let ttl = if ttl < WHOLE_DAY { ttl } else { Duration::ZERO };
        Ok(Answer { addresses: found.iter().collect(), ttl })
    }

    fn inner(&self, family: DnsFamily) -> Result<Arc<Hickory<Sockets>>, String> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp: Stamp = SYSTEM.map(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok());
        if shared.stamp != stamp {
            shared.by_strategy.clear();
            shared.stamp = stamp;
        }
        let strategy = match family {
            DnsFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
            DnsFamily::V4Only => LookupIpStrategy::Ipv4Only,
            DnsFamily::V6Only => LookupIpStrategy::Ipv6Only,
            DnsFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
            DnsFamily::All => LookupIpStrategy::Ipv4AndIpv6,
        };
        if let Some(known) = shared.by_strategy.get(&(strategy as u8)) {
            return Ok(known.clone());
        }
        let sockets = Sockets { mark: shared.mark, handle: TokioHandle::default() };
        let mut builder = Hickory::builder(sockets).map_err(|e| e.to_string())?;
        let options = builder.options_mut();
        options.ip_strategy = strategy;
        options.use_hosts_file = ResolveHosts::Always;
        options.cache_size = 0;
        let built = Arc::new(builder.build().map_err(|e| e.to_string())?);
        shared.by_strategy.insert(strategy as u8, built.clone());
        Ok(built)
    }
}

/// Marks a socket, so that a rule of the firewall can tell it from captured traffic.
pub(crate) fn set_mark<'a>(socket: impl Into<socket2::SockRef<'a>>, mark: Option<u32>) -> io::Result<()> {
    match mark {
        Some(mark) => socket
            .into()
            .set_mark(mark)
            .map_err(|e| io::Error::new(e.kind(), format!("SO_MARK {mark}: {e} (it needs CAP_NET_ADMIN)"))),
        None => Ok(()),
    }
}

/// Where hickory gets its sockets from: tokio's, marked.
#[derive(Clone)]
struct Sockets {
    mark: Option<u32>,
    handle: TokioHandle,
}

impl RuntimeProvider for Sockets {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> TokioHandle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        bind: Option<SocketAddr>,
        limit: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let mark = self.mark;
        Box::pin(async move {
            let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            set_mark(&socket, mark)?;
            if let Some(bind) = bind {
                socket.bind(bind)?;
            }
            let connected = tokio::time::timeout(limit.unwrap_or(CONNECT_TIMEOUT), socket.connect(server)).await??;
            Ok(AsyncIoTokioAsStd(connected))
        })
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        _server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<UdpSocket>>>> {
        let mark = self.mark;
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            set_mark(&socket, mark)?;
            Ok(socket)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_hosts_file_and_addresses_need_no_name_server() {
        let resolver = Resolver::new(None);
        let v4 = resolver.lookup("localhost", DnsFamily::V4Only).await.unwrap();
        assert_eq!(v4.addresses, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        let literal = resolver.lookup("::1", DnsFamily::Auto).await.unwrap();
        assert_eq!(literal.addresses, ["::1".parse::<IpAddr>().unwrap()]);
    }

    #[tokio::test]
    async fn what_cannot_be_resolved_is_named() {
        let e = Resolver::new(None).lookup("no such name", DnsFamily::All).await.unwrap_err();
        assert!(e.to_string().contains("\"no such name\""), "{e}");
    }

    #[tokio::test]
    async fn a_mark_is_set_or_what_it_needs_is_said() {
        let socket = TcpSocket::new_v4().unwrap();
        match set_mark(&socket, Some(7)) {
            Ok(()) => assert_eq!(socket2::SockRef::from(&socket).mark().unwrap(), 7),
            Err(e) => assert!(e.to_string().contains("SO_MARK 7") && e.to_string().contains("CAP_NET_ADMIN"), "{e}"),
        }
    }
}
