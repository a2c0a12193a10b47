//! The one source that is in force.

use crate::ads::{delta, sotw, Apply, Client as _, Rejected};
use crate::source::{Files, Watch};
use crate::transport::{Event, Link, Protocol, Requests, Response, Settings};

/// What the source said.
pub(super) enum FeedEvent {
    /// Of a control plane.
    Link(Event),
    /// Files may have changed.
    Files,
    /// The source's task has died.
    Dead,
}

/// A control plane, or files.
pub(super) enum Feed {
    Grpc(Box<Grpc>),
    Files(Box<FileFeed>),
}

/// Files, and who says when to look at them.
pub(super) struct FileFeed {
    pub(super) files: Files,
    pub(super) watch: Watch,
    /// What another source left was dropped already.
    pub(super) alone: bool,
}

/// A stream and our side of the protocol.
pub(super) struct Grpc {
    pub(super) settings: Settings,
    pub(super) link: Link,
    pub(super) ads: Ads,
}

pub(super) enum Ads {
    Delta { client: delta::Client, requests: Option<tokio::sync::mpsc::UnboundedSender<DeltaRequest>> },
    Sotw { client: sotw::Client, requests: Option<tokio::sync::mpsc::UnboundedSender<SotwRequest>> },
}

type DeltaRequest = envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
type SotwRequest = envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;

/// What a response did, for the status.
pub(super) struct Received {
    pub(super) type_url: String,
    pub(super) version: String,
    pub(super) control_plane: String,
    pub(super) rejected: Vec<Rejected>,
    pub(super) ignored: Option<String>,
}

/// Requests go to a stream that may have ended meanwhile; then the next one says all anew.
fn send<R>(to: &Option<tokio::sync::mpsc::UnboundedSender<R>>, requests: Vec<R>) {
    if let Some(to) = to {
        for r in requests {
            if to.send(r).is_err() {
                return;
            }
        }
    }
}

impl Ads {
    pub(super) fn new(protocol: Protocol, node: envoy_types::pb::envoy::config::core::v3::Node) -> Ads {
        match protocol {
            Protocol::Delta => Ads::Delta { client: delta::Client::new(node), requests: None },
            Protocol::Sotw => Ads::Sotw { client: sotw::Client::new(node), requests: None },
        }
    }

    /// A stream is open: the first requests go out.
    pub(super) fn connected(&mut self, to: Requests, apply: &mut dyn Apply) {
        match (self, to) {
            (Ads::Delta { client, requests }, Requests::Delta(to)) => {
                *requests = Some(to);
                send(requests, client.on_connected(apply));
            }
            (Ads::Sotw { client, requests }, Requests::Sotw(to)) => {
                *requests = Some(to);
                send(requests, client.on_connected(apply));
            }
            // A link speaks the protocol that it was started with, and so does this.
            (Ads::Delta { .. }, Requests::Sotw(_)) | (Ads::Sotw { .. }, Requests::Delta(_)) => {}
        }
    }

    /// The stream has ended.
    pub(super) fn ended(&mut self) {
        match self {
            Ads::Delta { requests, .. } => *requests = None,
            Ads::Sotw { requests, .. } => *requests = None,
        }
    }

    /// Takes a response in and answers it.
    pub(super) fn received(&mut self, response: Response, apply: &mut dyn Apply) -> Option<Received> {
        match (self, response) {
            (Ads::Delta { client, requests }, Response::Delta(r)) => {
                let (type_url, version) = (r.type_url.clone(), r.system_version_info.clone());
                let control_plane = r.control_plane.as_ref().map(|c| c.identifier.clone()).unwrap_or_default();
                let reaction = client.on_response(r, apply);
                send(requests, reaction.requests);
                let (rejected, ignored) = (reaction.rejected, reaction.ignored);
                Some(Received { type_url, version, control_plane, rejected, ignored })
            }
            (Ads::Sotw { client, requests }, Response::Sotw(r)) => {
                let (type_url, version) = (r.type_url.clone(), r.version_info.clone());
                let control_plane = r.control_plane.as_ref().map(|c| c.identifier.clone()).unwrap_or_default();
                let reaction = client.on_response(r, apply);
                send(requests, reaction.requests);
                let (rejected, ignored) = (reaction.rejected, reaction.ignored);
                Some(Received { type_url, version, control_plane, rejected, ignored })
            }
            (Ads::Delta { .. }, Response::Sotw(_)) | (Ads::Sotw { .. }, Response::Delta(_)) => None,
        }
    }

    /// What is wanted changed without a response.
    pub(super) fn names_changed(&mut self, apply: &mut dyn Apply) {
        match self {
            Ads::Delta { client, requests: requests @ Some(_) } => send(requests, client.on_names_changed(apply)),
            Ads::Sotw { client, requests: requests @ Some(_) } => send(requests, client.on_names_changed(apply)),
            // The next stream says all names.
            Ads::Delta { .. } | Ads::Sotw { .. } => {}
        }
    }
}

impl Feed {
    /// What happens next. Cancel safe.
    pub(super) async fn next(&mut self) -> FeedEvent {
        match self {
            Feed::Grpc(g) => g.link.next().await.map_or(FeedEvent::Dead, FeedEvent::Link),
            Feed::Files(f) => {
                f.watch.changed().await;
                FeedEvent::Files
            }
        }
    }
}
