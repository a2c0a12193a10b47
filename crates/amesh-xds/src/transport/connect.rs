//! One connection to a control plane: name, socket, TLS, HTTP/2.

use super::goaway::Observed;
use super::{Server, Settings, Target, TransportError};
use crate::dns::{set_mark, Resolver};
use crate::translate::DnsFamily;
use crate::transport::tls;
use http::Uri;
use hyper_util::rt::TokioIo;
use std::future::{ready, Future, Ready};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

/// For one address; a name's next address is tried after it.
const TCP_TIMEOUT: Duration = Duration::from_secs(5);
/// For all of it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// A peer that says nothing is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long it has to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a peer may send ahead: a mesh in one response should not wait for window updates.
const WINDOW: u32 = 8 << 20;
/// Trailers carry error texts.
const HEADERS: u32 = 64 << 10;

enum Io {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

macro_rules! each {
    ($io:expr, $s:ident => $call:expr) => {
        match $io {
            Io::Tcp($s) => $call,
            Io::Tls($s) => $call,
            Io::Unix($s) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), s => Pin::new(s).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), s => Pin::new(s).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), s => Pin::new(s).poll_shutdown(cx))
    }
}

/// Hands out a connection that is made already, once: connecting again is for who made it.
struct Ready1(Option<Observed<Io>>);

impl Service<Uri> for Ready1 {
    type Response = TokioIo<Observed<Io>>;
    type Error = io::Error;
    type Future = Ready<io::Result<TokioIo<Observed<Io>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().map(TokioIo::new).ok_or_else(|| io::Error::other("the connection has ended")))
    }
}

/// Connects, within a time limit; the second is told when the server says GOAWAY.
pub(super) async fn connect(
    settings: &Settings,
    server: &Server,
    resolver: &Resolver,
) -> Result<(Channel, Arc<Notify>), TransportError> {
    within(CONNECT_TIMEOUT, "no connection", async {
        let io = match &server.target {
            Target::Unix(path) => Io::Unix(UnixStream::connect(path).await.map_err(TransportError::Connect)?),
            Target::Host { host, port } => {
                let tcp = tcp(host, *port, settings.mark, resolver).await?;
                match &server.tls {
                    None => Io::Tcp(tcp),
                    Some(t) => Io::Tls(Box::new(tls::handshake(t, host, tcp).await?)),
                }
            }
        };
        let authority = server.target.authority();
        let uri = |scheme| Uri::builder().scheme(scheme).authority(authority.as_str()).path_and_query("/").build();
        let bad = |e: http::Error| TransportError::Http(e.to_string());
        // TLS is done below tonic, so its endpoint is a plain one; the origin says what it really is.
        let endpoint = Endpoint::from(uri("http").map_err(bad)?)
            .origin(uri(if server.tls.is_some() { "https" } else { "http" }).map_err(bad)?)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .http2_max_header_list_size(HEADERS);
        let (io, goaway) = Observed::new(io);
        let channel = endpoint.connect_with_connector(Ready1(Some(io))).await;
        channel.map(|channel| (channel, goaway)).map_err(|e| TransportError::Http(super::chain(&e)))
    })
    .await
}

async fn within<T>(
    limit: Duration,
    what: &'static str,
    f: impl Future<Output = Result<T, TransportError>>,
) -> Result<T, TransportError> {
    tokio::time::timeout(limit, f).await.unwrap_or(Err(TransportError::Timeout { what, limit }))
}

async fn tcp(host: &str, port: u16, mark: Option<u32>, resolver: &Resolver) -> Result<TcpStream, TransportError> {
    let addresses = match host.parse() {
        Ok(ip) => vec![ip],
        Err(_) => resolver.lookup(host, DnsFamily::All).await?.addresses,
    };
    let mut last = TransportError::Timeout { what: "no connection", limit: TCP_TIMEOUT };
    for ip in addresses {
        let to = SocketAddr::new(ip, port);
        let attempt = async {
            let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            set_mark(&socket, mark)?;
            let stream = socket.connect(to).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        match within(TCP_TIMEOUT, "no connection", async { attempt.await.map_err(TransportError::Connect) }).await {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}
