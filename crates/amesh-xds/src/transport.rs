//! The aggregated stream to a control plane: connects, keeps at it, and says what happens.
//!
//! A task connects to the servers in turn and hands every response on; who owns the [`Link`] answers. It starts again
//! at once when a stream that had said something ends (control planes end streams regularly, `GOAWAY` "max_age"), and
//! with an exponential, jittered back-off otherwise.

mod connect;
mod goaway;
mod tls;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use crate::dns::{DnsError, Resolver};
use backon::{BackoffBuilder, ExponentialBuilder};
use envoy_types::pb::envoy::service::discovery::v3::{
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient as Stub, DeltaDiscoveryRequest,
    DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Status, Streaming};

pub use tls::{Tls, TlsError};

/// Largest response, in bytes. tonic's own limit of 4 MiB is passed by a mesh of middle size.
const MAX_MESSAGE: usize = 512 << 20;
/// Starting again at once is for streams that end now and then.
const AT_ONCE: Duration = Duration::from_secs(5);
/// First pause of the back-off.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause of the back-off, before jitter.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Which of the two protocols is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Incremental.
    #[default]
    Delta,
    /// State of the world.
    Sotw,
}

/// Where a control plane listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A name or address (without brackets), and a port.
    Host {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// A unix socket.
    Unix(PathBuf),
}

/// A target that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no server: write host:port, [address]:port or unix:/path")]
pub struct TargetError(String);

impl std::str::FromStr for Target {
    type Err = TargetError;

    fn from_str(s: &str) -> Result<Target, TargetError> {
        let bad = || TargetError(s.to_owned());
        if let Some(path) = s.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() { Ok(Target::Unix(path)) } else { Err(bad()) };
        }
        let (host, port) = s.rsplit_once(':').ok_or_else(bad)?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let ok = match bare {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && !host.contains([':', '[', ']', '/', '@', ' ']),
        };
        let port = port.parse().ok().filter(|p| *p != 0).ok_or_else(bad)?;
        if ok {
            Ok(Target::Host { host: bare.unwrap_or(host).to_owned(), port })
        } else {
            Err(bad())
        }
    }
}

impl Target {
    /// What stands in `:authority`.
    fn authority(&self) -> String {
        match self {
            Target::Unix(_) => "localhost".to_owned(),
            other => other.to_string(),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
            Target::Host { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Target::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// A control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Where.
    pub target: Target,
    /// `None`: plaintext.
    pub tls: Option<Tls>,
}

/// What a link needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Tried in turn; at least one.
    pub servers: Vec<Server>,
    /// Which protocol.
    pub protocol: Protocol,
    /// File with a bearer token, read for every stream, so a rotated one is taken up. Never sent over plaintext TCP.
    pub token_file: Option<PathBuf>,
    /// Value of the `clusterid` header, which Istio checks a token with.
    pub cluster_id: Option<String>,
    /// `SO_MARK` of every socket, those to name servers too.
    pub mark: Option<u32>,
    /// A stream whose first response does not come for so long is worth a word; with another server at hand, that one
    /// is tried.
    pub patience: Duration,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The name has no address.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// No socket.
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    /// TLS, its files or the peer's certificate.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// HTTP/2.
    #[error("HTTP/2: {0}")]
    Http(String),
    /// The token.
    #[error("token file {}: {reason}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The server refused the stream, or ended it with a word.
    #[error("{0}")]
    Status(String),
    /// The connection under the stream is gone.
    #[error("the stream broke off: {0}")]
    Broken(String),
    /// Nothing happened.
    #[error("{what} within {} s", limit.as_secs())]
    Timeout {
        /// What did not happen.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// `GOAWAY`.
    #[error("the server asks to connect anew (GOAWAY)")]
    GoAway,
    /// The stream ended without a word.
    #[error("the server ended the stream")]
    Ended,
}

/// A response of either protocol.
#[derive(Debug)]
pub enum Response {
    /// Incremental.
    Delta(DeltaDiscoveryResponse),
    /// State of the world.
    Sotw(DiscoveryResponse),
}

/// Where requests of a stream go. Sending after its end does nothing.
#[derive(Clone, Debug)]
pub enum Requests {
    /// Incremental.
    Delta(mpsc::UnboundedSender<DeltaDiscoveryRequest>),
    /// State of the world.
    Sotw(mpsc::UnboundedSender<DiscoveryRequest>),
}

/// What happens on a link.
#[derive(Debug)]
pub enum Event {
    /// A server (index into [`Settings::servers`]) is being connected to.
    Connecting(usize),
    /// There is a connection. Nothing goes out, and nothing comes, before the first requests.
    Connected(Requests),
    /// A response.
    Response(Response),
    /// Connected, but nothing came for a while.
    Silent(Duration),
    /// The connection or the attempt has ended.
    Ended {
        /// Why.
        error: TransportError,
        /// The ordinary end of a stream.
        ordinary: bool,
        /// When it is tried again.
        pause: Duration,
    },
}

/// A task that keeps a stream.
#[derive(Debug)]
pub struct Link {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl Link {
    /// Starts. Must be called in a runtime.
    pub fn start(settings: Settings, resolver: Resolver) -> Link {
        // Short: who is slow to take responses in holds the server back.
        let (sender, events) = mpsc::channel(2);
        let task = tokio::spawn(async move {
            // It ends when nobody listens any more, and then there is nobody to tell.
            let _ = keep(&settings, &resolver, &sender).await;
        });
        Link { events, task }
    }

    /// What happens next; `None` never, but for a link whose task has died. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Nobody listens any more.
struct Unheard;

type Events = mpsc::Sender<Event>;

async fn say(events: &Events, event: Event) -> Result<(), Unheard> {
    events.send(event).await.map_err(|_| Unheard)
}

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_jitter()
        // Without a seed of its own every process would wait for the same time.
        .with_jitter_seed(fastrand::u64(..))
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .without_max_times()
        .build()
}

async fn keep(settings: &Settings, resolver: &Resolver, events: &Events) -> Result<(), Unheard> {
    let mut pauses = backoff();
    let mut at_once: Option<Instant> = None;
    let mut failed_in_turn = 0;
    let mut i = 0;
    loop {
        let Some(server) = settings.servers.get(i) else { return Ok(()) };
        say(events, Event::Connecting(i)).await?;
        let mut heard = false;
        let error = session(settings, server, resolver, events, &mut heard).await?;
        let mut pause = Duration::ZERO;
        if heard {
            pauses = backoff();
            failed_in_turn = 0;
            if at_once.is_some_and(|t| t.elapsed() < AT_ONCE) {
                pause = pauses.next().unwrap_or(LONGEST_PAUSE);
            }
            at_once = Some(Instant::now());
        } else {
            i = (i + 1) % settings.servers.len();
            failed_in_turn += 1;
            // All servers get their turn before there is a pause.
            if failed_in_turn % settings.servers.len() == 0 {
                pause = pauses.next().unwrap_or(LONGEST_PAUSE);
            }
        }
        // Control planes end streams now and then: after a while (`GOAWAY`), and when they are rolled. If it is worse
        // than that, connecting again will fail.
        let ended = matches!(error, TransportError::GoAway | TransportError::Ended | TransportError::Broken(_));
        let ordinary = ended && heard && pause.is_zero();
        say(events, Event::Ended { error, ordinary, pause }).await?;
        tokio::time::sleep(pause).await;
    }
}

/// One connection, from beginning to end; comes back with why it ended.
async fn session(
    settings: &Settings,
    server: &Server,
    resolver: &Resolver,
    events: &Events,
    heard: &mut bool,
) -> Result<TransportError, Unheard> {
    let token = match token(settings, server) {
        Ok(token) => token,
        Err(e) => return Ok(e),
    };
    let (channel, goaway) = match connect::connect(settings, server, resolver).await {
        Ok(connected) => connected,
        Err(e) => return Ok(e),
    };
    let mut stub = Stub::new(channel).max_decoding_message_size(MAX_MESSAGE);
    macro_rules! stream {
        ($kind:ident, $method:ident) => {{
            let (requests, outgoing) = mpsc::unbounded_channel();
            let request = with_headers(UnboundedReceiverStream::new(outgoing), token, settings);
            say(events, Event::Connected(Requests::$kind(requests))).await?;
            // The answer's headers come with the first response, so waiting for them is waiting for it.
            let opened = async { stub.$method(request).await.map(tonic::Response::into_inner) };
            // What came before it is read first. The server still serves the old stream for a while; nobody needs it.
            tokio::select! {
                biased;
                ended = read(opened, Response::$kind, settings, events, heard) => ended,
                () = goaway.notified() => Ok(TransportError::GoAway),
            }
        }};
    }
    match settings.protocol {
        Protocol::Delta => stream!(Delta, delta_aggregated_resources),
        Protocol::Sotw => stream!(Sotw, stream_aggregated_resources),
    }
}

async fn read<T>(
    opened: impl std::future::Future<Output = Result<Streaming<T>, Status>>,
    wrap: impl Fn(T) -> Response,
    settings: &Settings,
    events: &Events,
    heard: &mut bool,
) -> Result<TransportError, Unheard> {
    let first = async {
        let mut stream = opened.await?;
        let message = stream.message().await?;
        Ok::<_, Status>((stream, message))
    };
    tokio::pin!(first);
    let limit = settings.patience;
    let others = settings.servers.len() > 1;
    let answered = match tokio::time::timeout(limit, &mut first).await {
        Ok(answered) => answered,
        Err(_) if others => return Ok(TransportError::Timeout { what: "no response", limit }),
        Err(_) => {
            say(events, Event::Silent(limit)).await?;
            first.await
        }
    };
    let (mut stream, mut message) = match answered {
        Ok(answered) => answered,
        Err(status) => return Ok(failed(&status)),
    };
    loop {
        match message {
            Some(response) => {
                *heard = true;
                say(events, Event::Response(wrap(response))).await?;
            }
            None => return Ok(TransportError::Ended),
        }
        message = match stream.message().await {
            Ok(message) => message,
            Err(status) => return Ok(failed(&status)),
        };
    }
}

/// The value of the `authorization` header, where there is a token and a server that may see it.
fn token(settings: &Settings, server: &Server) -> Result<Option<MetadataValue<Ascii>>, TransportError> {
    let Some(path) = &settings.token_file else { return Ok(None) };
    if server.tls.is_none() && !matches!(server.target, Target::Unix(_)) {
        return Ok(None);
    }
    let fail = |reason: String| TransportError::Token { path: path.clone(), reason };
    let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", text.trim())
        .parse()
        .map_err(|_| fail("it is no token: not one line of text".to_owned()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn with_headers<S>(stream: S, token: Option<MetadataValue<Ascii>>, settings: &Settings) -> Request<S> {
    let mut request = Request::new(stream);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token);
    }
    if let Some(id) = settings.cluster_id.as_deref().and_then(|id| id.parse().ok()) {
        request.metadata_mut().insert("clusterid", id);
    }
    request
}

/// An error with all that caused it, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    chain_from(error.to_string(), error)
}

fn chain_from(mut text: String, error: &dyn std::error::Error) -> String {
    let mut source = error.source();
    while let Some(e) = source {
        let cause = e.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = e.source();
    }
    text
}

/// What a status of gRPC means: said by the server, or by our own side of a connection that is gone.
fn failed(status: &Status) -> TransportError {
    let text = format!("{:?}: {}", status.code(), chain_from(status.message().to_owned(), status));
    if status.code() == tonic::Code::Unavailable || std::error::Error::source(status).is_some() {
        TransportError::Broken(text)
    } else {
        TransportError::Status(text)
    }
}
