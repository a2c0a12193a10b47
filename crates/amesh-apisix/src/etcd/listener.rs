//! An address that is listened on, and its connections.

use super::access::Access;
use super::face::Address;
use super::hub::Hub;
use super::{gateway, grpc, Log, Severity};
use http::header::CONTENT_TYPE;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// APISIX opens some fourteen connections a process at the same moment; all of them find room.
const BACKLOG: i32 = 4096;
/// Between two attempts to listen or to accept.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may be idle between requests.
const IDLE: Duration = Duration::from_secs(300);
/// A peer that is silent this long is asked whether it is there.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10)).with_retries(3);

/// What may change while it listens.
pub(super) struct Policy {
    pub(super) access: Arc<Access>,
    pub(super) tls: Option<Arc<ServerConfig>>,
}

enum Listener {
    Tcp(TcpListener),
    /// With what takes its file away at the end.
    Unix(UnixListener, #[allow(dead_code)] OwnFile),
}

/// The file of a socket, taken away if it still is this one.
struct OwnFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if std::fs::metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode) {
            // What is left over is found dead by who comes next.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn bind(address: &Address) -> io::Result<Listener> {
    match address {
        Address::Tcp(address) => {
            let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.set_reuse_address(true)?;
            socket.bind(&(*address).into())?;
            Ok(Listener::Tcp(TcpListener::from_std(listening(socket)?.into())?))
        }
        Address::Unix(path) => {
            take_away_dead(path)?;
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&SockAddr::unix(path)?)?;
            let file = std::fs::metadata(path)?;
            let own = OwnFile { path: path.clone(), inode: (file.dev(), file.ino()) };
            // As nginx does with its own: the directory says who may come.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
            Ok(Listener::Unix(UnixListener::from_std(listening(socket)?.into())?, own))
        }
    }
}

fn listening(socket: Socket) -> io::Result<Socket> {
    socket.set_nonblocking(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// A master that was killed leaves its file.
fn take_away_dead(path: &Path) -> io::Result<()> {
    let dead = std::os::unix::net::UnixStream::connect(path);
    if dead.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// Listens until it is dropped; tells what stands in the way, once, and tries again.
pub(super) async fn listen(hub: Arc<Hub>, address: Address, policy: watch::Receiver<Arc<Policy>>, log: Log) {
    let mut told = false;
    let listener = loop {
        match bind(&address) {
            Ok(listener) => break listener,
            Err(e) if !told => {
                let way_out = match e.kind() {
                    io::ErrorKind::AddrInUse => "end who listens there, or give \"etcd\" another address",
                    io::ErrorKind::PermissionDenied => {
                        "let nginx's master write there, or give \"etcd\" another address"
                    }
                    _ => "give \"etcd\" an address of this host",
                };
                let text = format!("etcd: cannot listen on {address}: {e}; {way_out}; it is tried again every second");
                log(Severity::Error, &text);
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    };
    if told {
        log(Severity::Notice, &format!("etcd: listening on {address} now"));
    }
    let mut connections = JoinSet::new();
    let mut full = false;
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
            Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
        };
        match accepted {
            Ok(stream) => {
                full = false;
                connections.spawn(connection(hub.clone(), stream, policy.clone()));
            }
            Err(e) => {
                if !full {
                    let way_out = "raise the limit of open files of nginx's master";
                    log(Severity::Error, &format!("etcd: cannot accept on {address}: {e}; {way_out}"));
                }
                full = true;
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

async fn connection(hub: Arc<Hub>, stream: Stream, policy: watch::Receiver<Arc<Policy>>) {
    let tls = policy.borrow().tls.clone();
    match stream {
        Stream::Tcp(stream) => {
            // An event is not to wait for the next one. Where this fails the connection is gone, which is seen next.
            let _ = stream.set_nodelay(true);
            let _ = SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE);
            if !matches!(tokio::time::timeout(IDLE, stream.readable()).await, Ok(Ok(()))) {
                return;
            }
            encrypted(hub, stream, policy, tls).await;
        }
        Stream::Unix(stream) => {
            if !matches!(tokio::time::timeout(IDLE, stream.readable()).await, Ok(Ok(()))) {
                return;
            }
            encrypted(hub, stream, policy, tls).await;
        }
    }
}

async fn encrypted<S>(hub: Arc<Hub>, stream: S, policy: watch::Receiver<Arc<Policy>>, tls: Option<Arc<ServerConfig>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(tls) = tls else { return served(hub, stream, policy).await };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, handshake).await {
        served(hub, stream, policy).await;
    }
}

async fn served<S>(hub: Arc<Hub>, stream: S, policy: watch::Receiver<Arc<Policy>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: http::Request<Incoming>| {
        let hub = hub.clone();
        let access = policy.borrow().access.clone();
        async move {
            let kind = request.headers().get(CONTENT_TYPE);
            let response = if kind.is_some_and(|k| k.as_bytes().starts_with(b"application/grpc")) {
                grpc::serve(&hub, &access, request).await
            } else {
                gateway::serve(&hub, &access, request).await
            };
            Ok::<_, Infallible>(response)
        }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    server.http2().timer(TokioTimer::new()).max_concurrent_streams(1024);
    // A connection that ends is nothing to tell.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}
