//! HTTP with JSON, as etcd's gateway speaks it.

use super::access::Access;
use super::answer;
use super::errors::EtcdError;
use super::hub::Hub;
use super::proto::{AuthenticateRequest, AuthenticateResponse, RangeRequest, WatchResponse, WatchUnion};
use super::watch::{Step, Watch};
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::de::DeserializeOwned;
use serde::Serialize;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::Stream;
use tonic::body::Body;

/// What etcd takes at most, in bytes.
const MAX_REQUEST: usize = 3 << 19;
/// How long a request may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// What changes something, or says what is not here to be read.
const REFUSED: [&str; 36] = [
    "/v3/auth/disable",
    "/v3/auth/enable",
    "/v3/auth/role/add",
    "/v3/auth/role/delete",
    "/v3/auth/role/get",
    "/v3/auth/role/grant",
    "/v3/auth/role/list",
    "/v3/auth/role/revoke",
    "/v3/auth/user/add",
    "/v3/auth/user/changepw",
    "/v3/auth/user/delete",
    "/v3/auth/user/get",
    "/v3/auth/user/grant",
    "/v3/auth/user/list",
    "/v3/auth/user/revoke",
    "/v3/cluster/member/add",
    "/v3/cluster/member/list",
    "/v3/cluster/member/promote",
    "/v3/cluster/member/remove",
    "/v3/cluster/member/update",
    "/v3/kv/compaction",
    "/v3/kv/deleterange",
    "/v3/kv/lease/leases",
    "/v3/kv/lease/revoke",
    "/v3/kv/lease/timetolive",
    "/v3/kv/put",
    "/v3/kv/txn",
    "/v3/lease/grant",
    "/v3/lease/keepalive",
    "/v3/lease/leases",
    "/v3/lease/revoke",
    "/v3/lease/timetolive",
    "/v3/maintenance/alarm",
    "/v3/maintenance/defragment",
    "/v3/maintenance/hash",
    "/v3/maintenance/transfer-leadership",
];

/// Answers one request.
pub(super) async fn serve(hub: &Arc<Hub>, access: &Access, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match (path.as_str(), request.method()) {
        ("/version", &Method::GET) => {
            let version = serde_json::json!({"etcdserver": answer::ETCD_VERSION, "etcdcluster": answer::ETCD_VERSION});
            reply(StatusCode::OK, "application/json", version.to_string())
        }
        ("/health", &Method::GET) => {
            let open = hub.is_open();
            let status = if open { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            reply(status, "application/json", format!("{{\"health\":\"{open}\"}}"))
        }
        ("/version" | "/health", _) => not_allowed("GET"),
        (path, method) if path.starts_with("/v3/") => {
            let known =
                matches!(path, "/v3/kv/range" | "/v3/watch" | "/v3/auth/authenticate" | "/v3/maintenance/status");
            match (known || REFUSED.binary_search(&path).is_ok(), method) {
                (false, _) => reply(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "Not Found\n"),
                (true, &Method::POST) => call(hub, access, request).await.unwrap_or_else(|e| refusal(&e)),
                (true, _) => not_allowed("POST"),
            }
        }
        _ => reply(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n"),
    }
}

async fn call(hub: &Arc<Hub>, access: &Access, request: Request<Incoming>) -> Result<Response<Body>, EtcdError> {
    let (head, body) = request.into_parts();
    let body = tokio::time::timeout(PATIENCE, Limited::new(body, MAX_REQUEST).collect());
    let body = match body.await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => return Err(EtcdError::TooLarge),
        Ok(Err(e)) => return Err(EtcdError::Malformed(e.to_string())),
        Err(_) => return Err(EtcdError::Malformed(format!("the request did not end within {} s", PATIENCE.as_secs()))),
    };
    match head.uri.path() {
        "/v3/auth/authenticate" => {
            let who: AuthenticateRequest = parse(&body)?;
            let token = access.authenticate(&who.name, &who.password)?;
            let header = Some(answer::header(hub.store().revision()));
            Ok(json(&AuthenticateResponse { header, token }))
        }
        "/v3/kv/range" => {
            let wanted: RangeRequest = parse(&body)?;
            access.check(&head.headers)?;
            Ok(answered(hub.range(&wanted, |store| Ok(to_bytes(&answer::range(store, &wanted)?, b"", b"")))?))
        }
        "/v3/maintenance/status" => Ok(json(&answer::status(&*hub.read()?))),
        "/v3/watch" => {
            let wanted: WatchUnion = parse(&body)?;
            let WatchUnion::Create(wanted) = wanted else {
                return Err(EtcdError::Malformed("a watch begins with a create_request".to_owned()));
            };
            // A watch that is not granted is an answer of its own.
            if let Err(e) = access.check(&head.headers) {
                let denied = line(&answer::denied(hub.read()?.revision(), &e));
                return Ok(reply(StatusCode::OK, "application/json", denied));
            }
            let (watch, revision) = hub.watch(&wanted)?;
            let first = Some(line(&answer::created(wanted.watch_id, revision)));
            let lines = Lines { hub: hub.clone(), id: wanted.watch_id, first, watch: Some(watch), wakes: hub.wakes() };
            let mut response = Response::new(Body::new(StreamBody::new(lines)));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            Ok(response)
        }
        _ => {
            access.check(&head.headers)?;
            Err(EtcdError::PermissionDenied)
        }
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, EtcdError> {
    // What comes after the first value is the rest of a stream.
    let mut values = serde_json::Deserializer::from_slice(body).into_iter();
    match values.next() {
        Some(Ok(value)) => Ok(value),
        Some(Err(e)) => Err(EtcdError::Malformed(e.to_string())),
        None => Err(EtcdError::Malformed("unexpected EOF".to_owned())),
    }
}

/// Plain data with text keys can always be written.
fn to_bytes<T: Serialize>(value: &T, before: &[u8], after: &[u8]) -> Bytes {
    let mut out = BytesMut::new().writer();
    out.get_mut().put_slice(before);
    let written = serde_json::to_writer(&mut out, value);
    debug_assert!(written.is_ok());
    let mut out = out.into_inner();
    out.put_slice(after);
    out.freeze()
}

/// One message of a stream: one line, and no line break within.
pub(super) fn line(message: &WatchResponse) -> Bytes {
    to_bytes(message, b"{\"result\":", b"}\n")
}

fn json<T: Serialize>(value: &T) -> Response<Body> {
    answered(to_bytes(value, b"", b""))
}

fn answered(body: Bytes) -> Response<Body> {
    let mut response = reply(StatusCode::OK, "application/json", body);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("grpc-metadata-content-type", grpc);
    response
}

fn refusal(e: &EtcdError) -> Response<Body> {
    let text = e.to_string();
    let body = serde_json::json!({"error": text, "message": text, "code": e.code() as i32});
    reply(e.http(), "application/json", body.to_string())
}

fn not_allowed(allowed: &'static str) -> Response<Body> {
    let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", "Method Not Allowed\n");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn reply(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The lines of a watch, made when there is room for them.
struct Lines {
    hub: Arc<Hub>,
    id: i64,
    first: Option<Bytes>,
    /// `None`: it has ended.
    watch: Option<Watch>,
    wakes: WatchStream<()>,
}

impl Stream for Lines {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let this = &mut *self;
        loop {
            let Some(watch) = &mut this.watch else { return Poll::Ready(None) };
            let step = this.hub.step(watch);
            let bytes = match &step {
                // What many are sent is written once.
                Step::Whole(batch) if this.id == 0 => {
                    Some(batch.rendered(|| answer::message(0, step.clone()).map(|m| line(&m)).unwrap_or_default()))
                }
                _ => {
                    if matches!(step, Step::Compacted(_)) {
                        this.watch = None;
                    }
                    answer::message(this.id, step).map(|m| line(&m))
                }
            };
            if let Some(bytes) = bytes {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            match Pin::new(&mut this.wakes).poll_next(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_list_of_what_is_refused_can_be_searched() {
        assert!(super::REFUSED.is_sorted());
    }
}
