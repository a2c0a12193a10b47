//! A control plane in this process that a test drives by hand: for faults that a real one does not make at will.

use envoy_types::pb::envoy::service::discovery::v3::{
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivatePkcs8KeyDer;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

const LIMIT: Duration = Duration::from_secs(10);

/// Fails a test that would hang.
pub(crate) async fn soon<T>(what: &str, f: impl std::future::Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, f).await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}

/// A stream of one protocol, the server's side.
pub(crate) struct Stream<Req, Resp> {
    pub(crate) headers: MetadataMap,
    requests: Streaming<Req>,
    responses: mpsc::Sender<Result<Resp, Status>>,
}

impl<Req, Resp> Stream<Req, Resp> {
    pub(crate) async fn request(&mut self) -> Req {
        soon("a request", self.requests.message()).await.unwrap().expect("the client has ended the stream")
    }

    pub(crate) async fn say(&self, response: Resp) {
        self.responses.send(Ok(response)).await.unwrap();
    }

    pub(crate) async fn fail(self, status: Status) {
        self.responses.send(Err(status)).await.unwrap();
    }
}

pub(crate) type Delta = Stream<DeltaDiscoveryRequest, DeltaDiscoveryResponse>;
pub(crate) type Sotw = Stream<DiscoveryRequest, DiscoveryResponse>;

struct Service {
    delta: mpsc::UnboundedSender<Delta>,
    sotw: mpsc::UnboundedSender<Sotw>,
}

type Answer<T> = Result<Response<ReceiverStream<Result<T, Status>>>, Status>;

fn open<Req, Resp>(to: &mpsc::UnboundedSender<Stream<Req, Resp>>, request: Request<Streaming<Req>>) -> Answer<Resp> {
    let (responses, stream) = mpsc::channel(16);
    let (headers, _, requests) = request.into_parts();
    to.send(Stream { headers, requests, responses }).map_err(|_| Status::aborted("the test has ended"))?;
    Ok(Response::new(ReceiverStream::new(stream)))
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(&self, r: Request<Streaming<DiscoveryRequest>>) -> Answer<DiscoveryResponse> {
        open(&self.sotw, r)
    }

    async fn delta_aggregated_resources(
        &self,
        r: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Answer<DeltaDiscoveryResponse> {
        open(&self.delta, r)
    }
}

/// The control plane. Ends with its drop, rudely.
pub(crate) struct ControlPlane {
    pub(crate) address: String,
    delta: mpsc::UnboundedReceiver<Delta>,
    sotw: mpsc::UnboundedReceiver<Sotw>,
    shutdown: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

macro_rules! serve {
    ($incoming:expr, $address:expr) => {{
        let (delta_to, delta) = mpsc::unbounded_channel();
        let (sotw_to, sotw) = mpsc::unbounded_channel();
        let (shutdown, ends) = oneshot::channel::<()>();
        let service = AggregatedDiscoveryServiceServer::new(Service { delta: delta_to, sotw: sotw_to });
        let server = Server::builder().add_service(service).serve_with_incoming_shutdown($incoming, async {
            let _ = ends.await;
        });
        let task = tokio::spawn(async { server.await.unwrap() });
        ControlPlane { address: $address, delta, sotw, shutdown: Some(shutdown), task }
    }};
}

impl ControlPlane {
    pub(crate) async fn start() -> ControlPlane {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        ControlPlane::on(listener)
    }

    pub(crate) fn on(listener: TcpListener) -> ControlPlane {
        let address = listener.local_addr().unwrap().to_string();
        serve!(TcpListenerStream::new(listener), address)
    }

    pub(crate) fn on_unix(path: &std::path::Path) -> ControlPlane {
        let listener = UnixListener::bind(path).unwrap();
        serve!(UnixListenerStream::new(listener), format!("unix:{}", path.display()))
    }

    pub(crate) async fn delta(&mut self) -> Delta {
        soon("a delta stream", self.delta.recv()).await.unwrap()
    }

    pub(crate) async fn sotw(&mut self) -> Sotw {
        soon("a stream", self.sotw.recv()).await.unwrap()
    }

    /// GOAWAY: no new streams, those that are there may end in peace.
    pub(crate) fn go_away(&mut self) {
        let _ = self.shutdown.take().unwrap().send(());
    }
}

/// Forwards connections to `to`; after `limit` bytes towards the client a connection is cut.
pub(crate) async fn cutter(to: String, limit: u64) -> SocketAddr {
    use tokio::io::{copy, AsyncReadExt};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = tokio::net::TcpStream::connect(&to).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (from_server, mut to_server) = server.into_split();
            tokio::spawn(async move {
                let mut from_server = from_server.take(limit);
                tokio::select! {
                    _ = copy(&mut from_client, &mut to_server) => {}
                    _ = copy(&mut from_server, &mut to_client) => {}
                }
            });
        }
    });
    address
}

/// A root, and a server's certificate that it signed.
pub(crate) struct Pki {
    /// PEM.
    pub(crate) root: String,
    acceptor: TlsAcceptor,
}

impl Pki {
    pub(crate) fn new(name: &str) -> Pki {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_key = KeyPair::generate().unwrap();
        let root = params.self_signed(&root_key).unwrap();
        let issuer = Issuer::new(params, root_key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Pki { root: root.pem(), acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    /// Speaks TLS in front of `to`.
    pub(crate) async fn terminate(&self, to: String) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = self.acceptor.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, to) = (acceptor.clone(), to.clone());
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    let mut server = tokio::net::TcpStream::connect(&to).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        address
    }
}
