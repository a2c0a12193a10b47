//! gRPC, for `etcdctl` and etcd's clients.

use super::access::Access;
use super::answer;
use super::errors::EtcdError;
use super::hub::Hub;
use super::proto::{
    AuthenticateRequest, AuthenticateResponse, RangeRequest, RangeResponse, StatusRequest, StatusResponse,
    WatchCreateRequest, WatchRequest, WatchResponse, WatchUnion,
};
use super::watch::{Step, Watch};
use http::HeaderMap;
use hyper::body::Incoming;
use std::collections::{BTreeMap, VecDeque};
use std::future::{ready, Ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio_stream::wrappers::WatchStream;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// Watches on one stream, at most.
const MAX_WATCHES: usize = 1024;

/// Answers one call.
pub(super) async fn serve(hub: &Arc<Hub>, access: &Arc<Access>, call: http::Request<Incoming>) -> http::Response<Body> {
    let service = Service { hub: hub.clone(), access: access.clone() };
    match call.uri().path() {
        "/etcdserverpb.KV/Range" => unary::<RangeRequest, RangeResponse>(service, call).await,
        "/etcdserverpb.Auth/Authenticate" => unary::<AuthenticateRequest, AuthenticateResponse>(service, call).await,
        "/etcdserverpb.Maintenance/Status" => unary::<StatusRequest, StatusResponse>(service, call).await,
        "/etcdserverpb.Watch/Watch" => {
            let codec = ProstCodec::<WatchResponse, WatchRequest>::default();
            Grpc::new(codec).streaming(service, call).await
        }
        path if path.starts_with("/etcdserverpb.") => {
            let refused = access.check(call.headers()).err().unwrap_or(EtcdError::PermissionDenied);
            Status::from(refused).into_http()
        }
        path => Status::unimplemented(format!("unknown service {}", path.trim_start_matches('/'))).into_http(),
    }
}

async fn unary<In, Out>(service: Service, call: http::Request<Incoming>) -> http::Response<Body>
where
    In: prost::Message + Default + 'static,
    Out: prost::Message + Default + 'static,
    Service: UnaryService<In, Response = Out>,
{
    Grpc::new(ProstCodec::<Out, In>::default()).unary(service, call).await
}

struct Service {
    hub: Arc<Hub>,
    access: Arc<Access>,
}

type Answer<T> = Ready<Result<Response<T>, Status>>;

fn answer<T>(result: Result<T, EtcdError>) -> Answer<T> {
    ready(result.map(Response::new).map_err(Status::from))
}

impl UnaryService<RangeRequest> for Service {
    type Response = RangeResponse;
    type Future = Answer<RangeResponse>;

    fn call(&mut self, request: Request<RangeRequest>) -> Self::Future {
        let headers = request.metadata().clone().into_headers();
        let found = self.access.check(&headers);
        answer(found.and_then(|()| answer::range(&*self.hub.read()?, request.get_ref())))
    }
}

impl UnaryService<AuthenticateRequest> for Service {
    type Response = AuthenticateResponse;
    type Future = Answer<AuthenticateResponse>;

    fn call(&mut self, request: Request<AuthenticateRequest>) -> Self::Future {
        let AuthenticateRequest { name, password } = request.get_ref();
        let header = Some(answer::header(self.hub.store().revision()));
        answer(self.access.authenticate(name, password).map(|token| AuthenticateResponse { header, token }))
    }
}

impl UnaryService<StatusRequest> for Service {
    type Response = StatusResponse;
    type Future = Answer<StatusResponse>;

    fn call(&mut self, _: Request<StatusRequest>) -> Self::Future {
        answer(self.hub.read().map(|store| answer::status(&store)))
    }
}

impl StreamingService<WatchRequest> for Service {
    type Response = WatchResponse;
    type ResponseStream = Watches;
    type Future = Answer<Watches>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let headers = request.metadata().clone().into_headers();
        let (hub, access) = (self.hub.clone(), self.access.clone());
        let wakes = hub.wakes();
        let (input, answers, watches) = (request.into_inner(), VecDeque::new(), BTreeMap::new());
        answer(Ok(Watches { hub, access, headers, input, answers, watches, last: 0, wakes }))
    }
}

/// All watches of one stream: what is asked is read when all that was answered is on its way.
struct Watches {
    hub: Arc<Hub>,
    access: Arc<Access>,
    headers: HeaderMap,
    input: Streaming<WatchRequest>,
    answers: VecDeque<WatchResponse>,
    watches: BTreeMap<i64, Watch>,
    /// The watch that had its turn.
    last: i64,
    wakes: WatchStream<()>,
}

impl Watches {
    fn on_request(&mut self, request: WatchRequest) -> Result<(), EtcdError> {
        match request.request_union {
            Some(WatchUnion::Create(wanted)) => {
                let revision = self.hub.read()?.revision();
                let first = self.create(&wanted).unwrap_or_else(|e| answer::denied(revision, &e));
                self.answers.push_back(first);
            }
            Some(WatchUnion::Cancel(wanted)) => {
                let header = Some(answer::header(self.hub.store().revision()));
                let watch_id = wanted.watch_id;
                let canceled = WatchResponse { header, watch_id, canceled: true, ..Default::default() };
                self.answers.extend(self.watches.remove(&watch_id).map(|_| canceled));
            }
            Some(WatchUnion::Progress(_)) => {
                let header = Some(answer::header(self.hub.read()?.revision()));
                // For all watches of the stream.
                self.answers.push_back(WatchResponse { header, watch_id: -1, ..Default::default() });
            }
            None => {}
        }
        Ok(())
    }

    fn create(&mut self, wanted: &WatchCreateRequest) -> Result<WatchResponse, EtcdError> {
        self.access.check(&self.headers)?;
        let id = match wanted.watch_id {
            0 => (0..).find(|id| !self.watches.contains_key(id)).unwrap_or_default(),
            taken if self.watches.contains_key(&taken) => return Err(EtcdError::DuplicateWatch),
            free => free,
        };
        if self.watches.len() >= MAX_WATCHES {
            return Err(EtcdError::TooManyRequests);
        }
        let (watch, revision) = self.hub.watch(wanted)?;
        self.watches.insert(id, watch);
        Ok(answer::created(id, revision))
    }

    /// The next message of any watch, in turn.
    fn next(&mut self) -> Option<WatchResponse> {
        let ids: Vec<i64> = self.watches.keys().copied().collect();
        let turn = ids.partition_point(|id| *id <= self.last);
        for id in ids.iter().cycle().skip(turn).take(ids.len()) {
            let Some(watch) = self.watches.get_mut(id) else { continue };
            let step = self.hub.step(watch);
            if matches!(step, Step::Compacted(_)) {
                self.watches.remove(id);
            }
            if let Some(message) = answer::message(*id, step) {
                self.last = *id;
                return Some(message);
            }
        }
        None
    }
}

impl Stream for Watches {
    type Item = Result<WatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(message) = this.answers.pop_front() {
                return Poll::Ready(Some(Ok(message)));
            }
            match Pin::new(&mut this.input).poll_next(cx) {
                Poll::Ready(Some(Ok(request))) => match this.on_request(request) {
                    Ok(()) => continue,
                    Err(e) => return Poll::Ready(Some(Err(e.into()))),
                },
                // The client has gone.
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(None),
                Poll::Pending => {}
            }
            if let Some(message) = this.next() {
                return Poll::Ready(Some(Ok(message)));
            }
            match Pin::new(&mut this.wakes).poll_next(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
