//! One active health check of one endpoint: connect, ask, judge.

use super::machine::Checked;
use crate::dns::set_mark;
use amesh_model::address::Address;
use amesh_model::health::{HealthCheck, HealthCheckKind, HttpHealthCheck};
use amesh_model::matcher::{StringMatcher, StringPattern};
use amesh_model::proxy_protocol::ProxyProtocol;
use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue, CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, UnixStream};
use tokio::task::JoinHandle;

/// What Envoy calls itself in a check; servers know it by this name.
const AGENT: &str = "Envoy/HC";
/// An endpoint that answers thus is degraded.
const DEGRADED: &str = "x-envoy-degraded";
/// The name of the cluster that answers.
const SERVICE: &str = "x-envoy-upstream-healthchecked-cluster";
/// A body that nothing is searched in is read up to here, so that its connection can be used again.
const MAX_BODY: usize = 1 << 20;
/// What a TCP endpoint may say before what is waited for.
const MAX_REPLY: usize = 64 << 10;

/// Whom to check, and how.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Probe {
    pub(super) check: Arc<HealthCheck>,
    pub(super) address: Address,
    /// The endpoint's own name for checks; may be empty.
    pub(super) hostname: String,
    /// Name of its cluster.
    pub(super) cluster: String,
    /// Source addresses, one a family.
    pub(super) bind: Vec<IpAddr>,
    pub(super) mark: Option<u32>,
    /// What the endpoint is told first.
    pub(super) proxy_protocol: Option<Box<ProxyProtocol>>,
}

/// A connection that waits for the next check.
pub(super) struct Kept {
    sender: Sender,
    /// Drives it.
    task: JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Anything that bytes come and go through.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A failure of the network: thresholds count.
fn network(why: impl std::fmt::Display) -> Checked {
    Checked::Failure { at_once: false, why: why.to_string() }
}

/// A failure that the endpoint itself told of.
fn told(why: String) -> Checked {
    Checked::Failure { at_once: true, why }
}

const WELL: Checked = Checked::Success { degraded: false };

impl Probe {
    /// Checks once, within the time limit. A connection that may be used again comes back.
    pub(super) async fn run(&self, kept: Option<Kept>) -> (Checked, Option<Kept>) {
        let limit = Duration::from_millis(self.check.timeout);
        let reuse = self.check.reuse_connection;
        let done = async {
            match &self.check.kind {
                HealthCheckKind::Tcp { send, receive } => (self.tcp(send, receive).await, None),
                HealthCheckKind::Http(h) => self.http(h, kept).await,
                HealthCheckKind::Grpc { service_name, authority, metadata } => {
                    self.grpc(service_name, authority, metadata, kept).await
                }
            }
        };
        match tokio::time::timeout(limit, done).await {
            Ok((checked, kept)) => (checked, kept.filter(|_| reuse)),
            Err(_) => (network(format_args!("no answer within {} ms", limit.as_millis())), None),
        }
    }

    /// `Host` or `:authority`, where the check itself says this (`HealthCheckerFactory::getHostname`).
    fn authority<'a>(&'a self, configured: &'a str) -> &'a str {
        [self.hostname.as_str(), configured].into_iter().find(|n| !n.is_empty()).unwrap_or(&self.cluster)
    }

    /// The same for HTTP/2, which has no word for names with bars, as Istio's clusters have.
    fn authority2(&self, configured: &str) -> String {
        let name = self.authority(configured);
        name.parse::<Authority>().map_or_else(|_| self.address.to_string(), |_| name.to_owned())
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let Some(to) = self.address.socket_addr() else {
            return match &self.address {
                Address::Pipe(path) => Ok(Box::new(UnixStream::connect(path).await?)),
                Address::Socket { .. } => Err(io::Error::other("no address")),
            };
        };
        let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        set_mark(&socket, self.mark)?;
        if let Some(ip) = self.bind.iter().find(|ip| ip.is_ipv4() == to.is_ipv4()) {
            socket.bind(SocketAddr::new(*ip, 0))?;
        }
        let mut stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        if let Some(proxied) = &self.proxy_protocol {
            stream.write_all(&proxied.local(stream.local_addr()?, to)).await?;
        }
        Ok(Box::new(stream))
    }

    async fn tcp(&self, send: &[u8], receive: &[Vec<u8>]) -> Checked {
        let talk = async {
            let mut stream = self.connect().await?;
            if !send.is_empty() {
                stream.write_all(send).await?;
            }
            let mut reply = Vec::new();
            while !contains(&reply, receive) {
                if reply.len() >= MAX_REPLY {
                    return Ok(told("what it said is not what was waited for".to_owned()));
                }
                if stream.read_buf(&mut reply).await? == 0 {
                    return Ok(network("it closed the connection"));
                }
            }
            Ok(WELL)
        };
        talk.await.unwrap_or_else(|e: io::Error| network(e))
    }

    /// A connection to ask on.
    async fn ready(&self, kept: Option<Kept>, http2: bool) -> Result<Kept, Checked> {
        if let Some(mut kept) = kept {
            let usable = match &mut kept.sender {
                Sender::Http1(s) => s.ready().await.is_ok(),
                Sender::Http2(s) => s.ready().await.is_ok(),
            };
            if usable {
                return Ok(kept);
            }
        }
        let io = TokioIo::new(self.connect().await.map_err(network)?);
        // How a connection ends is told by the requests on it.
        if http2 {
            let (s, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(network)?;
            let task = tokio::spawn(async { drop(connection.await) });
            return Ok(Kept { sender: Sender::Http2(s), task });
        }
        let (s, connection) = http1::handshake(io).await.map_err(network)?;
        let task = tokio::spawn(async { drop(connection.await) });
        Ok(Kept { sender: Sender::Http1(s), task })
    }

    async fn ask(&self, kept: &mut Kept, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Checked> {
        match &mut kept.sender {
            Sender::Http1(s) => s.send_request(request).await,
            Sender::Http2(s) => s.send_request(request).await,
        }
        .map_err(|e| network(super::chain(&e)))
    }

    async fn http(&self, h: &HttpHealthCheck, kept: Option<Kept>) -> (Checked, Option<Kept>) {
        let host = if h.http2 { self.authority2(&h.host) } else { self.authority(&h.host).to_owned() };
        let Ok(request) = request(h, &host) else {
            return (network("the request cannot be made: host or path is not one of HTTP"), None);
        };
        let mut kept = match self.ready(kept, h.http2).await {
            Ok(kept) => kept,
            Err(e) => return (e, None),
        };
        let response = match self.ask(&mut kept, request).await {
            Ok(response) => response,
            Err(e) => return (e, None),
        };
        let (head, body) = response.into_parts();
        let verdict = judge(h, head.status, &head.headers);
        let limit = if h.receive.is_empty() { MAX_BODY } else { h.response_buffer_size as usize };
        match Limited::new(body, limit).collect().await {
            Ok(all) => {
                let success = matches!(verdict, Checked::Success { .. });
                if success && !contains(&all.to_bytes(), &h.receive) {
                    return (told("its body is not what was waited for".to_owned()), Some(kept));
                }
                (verdict, Some(kept))
            }
            // Longer than is looked at, or cut off.
            Err(_) if h.receive.is_empty() => (verdict, None),
            Err(e) => (network(e), None),
        }
    }

    async fn grpc(
        &self,
        service: &str,
        authority: &str,
        metadata: &[(String, String)],
        kept: Option<Kept>,
    ) -> (Checked, Option<Kept>) {
        let Ok(request) = grpc_request(service, &self.authority2(authority), metadata) else {
            return (network("the request cannot be made: its authority is not one of HTTP"), None);
        };
        let mut kept = match self.ready(kept, true).await {
            Ok(kept) => kept,
            Err(e) => return (e, None),
        };
        let response = match self.ask(&mut kept, request).await {
            Ok(response) => response,
            Err(e) => return (e, None),
        };
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return (told(format!("HTTP status {}", head.status.as_u16())), Some(kept));
        }
        match Limited::new(body, MAX_BODY).collect().await {
            Ok(all) => {
                let trailers = all.trailers().cloned();
                (judge_grpc(&head.headers, trailers.as_ref(), &all.to_bytes()), Some(kept))
            }
            Err(e) => (network(e), None),
        }
    }
}

fn request(h: &HttpHealthCheck, host: &str) -> Result<Request<Full<Bytes>>, http::Error> {
    let uri = if h.http2 {
        Uri::builder().scheme("http").authority(host).path_and_query(h.path.as_str()).build()?
    } else {
        Uri::builder().path_and_query(h.path.as_str()).build()?
    };
    let method = Method::from_bytes(h.method.as_bytes())?;
    let mut request = Request::builder().method(method).uri(uri);
    if !h.http2 {
        request = request.header(HOST, host);
    }
    request = request.header(USER_AGENT, AGENT);
    let mut request = request.body(Full::new(Bytes::copy_from_slice(&h.send)))?;
    for (name, value) in &h.request_headers_to_add {
        request.headers_mut().append(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
    }
    for name in &h.request_headers_to_remove {
        request.headers_mut().remove(name);
    }
    Ok(request)
}

fn judge(h: &HttpHealthCheck, status: StatusCode, headers: &HeaderMap) -> Checked {
    let status = status.as_u16();
    let within = |ranges: &[(u16, u16)]| ranges.iter().any(|(start, end)| (*start..*end).contains(&status));
    if !within(&h.expected_statuses) {
        let why = format!("status {status}");
        return if within(&h.retriable_statuses) { network(why) } else { told(why) };
    }
    if let Some(matcher) = &h.service_name_matcher {
        let name = headers.get(SERVICE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if !matches(matcher, name) {
            return told(format!("it is of service \"{name}\""));
        }
    }
    Checked::Success { degraded: headers.contains_key(DEGRADED) }
}

fn matches(matcher: &StringMatcher, text: &str) -> bool {
    let lower;
    let text = if matcher.ignore_case {
        lower = text.to_ascii_lowercase();
        &lower
    } else {
        text
    };
    match &matcher.pattern {
        StringPattern::Exact(p) => text == p,
        StringPattern::Prefix(p) => text.starts_with(p.as_str()),
        StringPattern::Suffix(p) => text.ends_with(p.as_str()),
        StringPattern::Contains(p) => text.contains(p.as_str()),
        // It was compiled when it was accepted.
        StringPattern::SafeRegex(r) => amesh_model::matcher::compile_full(&r.pattern).is_ok_and(|r| r.is_match(text)),
    }
}

/// Whether all pieces are in `bytes`, in their order, with anything in between (`PayloadMatcher::match`).
fn contains(bytes: &[u8], pieces: &[Vec<u8>]) -> bool {
    let mut rest = bytes;
    pieces.iter().all(|piece| {
        if piece.is_empty() {
            return true;
        }
        let Some(at) = rest.windows(piece.len()).position(|w| w == piece.as_slice()) else { return false };
        rest = rest.get(at + piece.len()..).unwrap_or_default();
        true
    })
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    /// `ServingStatus`.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: i32 = 1;
/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

fn grpc_request(
    service: &str,
    authority: &str,
    metadata: &[(String, String)],
) -> Result<Request<Full<Bytes>>, http::Error> {
    let message = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or_default().to_be_bytes();
    let body = [&[0], &length[..], &message].concat();
    let path = "/grpc.health.v1.Health/Check";
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path).build()?;
    let mut request = Request::post(uri)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, AGENT)
        .body(Full::new(Bytes::from(body)))?;
    for (name, value) in metadata {
        request.headers_mut().append(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
    }
    Ok(request)
}

fn judge_grpc(headers: &HeaderMap, trailers: Option<&HeaderMap>, body: &[u8]) -> Checked {
    let status = [trailers, Some(headers)].into_iter().flatten().find_map(|h| h.get("grpc-status"));
    if status.is_none_or(|s| s.as_bytes() != b"0") {
        let text = status.map_or("no grpc-status".into(), |s| String::from_utf8_lossy(s.as_bytes()));
        return told(format!("grpc-status {text}"));
    }
    let message = body.get(PREFIX..).and_then(|m| HealthCheckResponse::decode(m).ok());
    match message {
        Some(m) if m.status == SERVING && body.first() == Some(&0) => WELL,
        Some(m) => told(format!("serving status {}", m.status)),
        None => told("its answer is no HealthCheckResponse".to_owned()),
    }
}
