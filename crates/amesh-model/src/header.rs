//! Edits of headers (`config.core.v3.HeaderValueOption`).

use rkyv::{Archive, Deserialize, Serialize};

/// What to do when the header is there already (`HeaderValueOption.append_action`).
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum AppendAction {
    /// `APPEND_IF_EXISTS_OR_ADD`.
    AppendIfExistsOrAdd,
    /// `ADD_IF_ABSENT`.
    AddIfAbsent,
    /// `OVERWRITE_IF_EXISTS_OR_ADD`.
    OverwriteIfExistsOrAdd,
    /// `OVERWRITE_IF_EXISTS`.
    OverwriteIfExists,
}

/// A part of a header's value: text, or one of Envoy's substitution commands.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Format {
    /// Literal text (`%%` is turned into `%`).
    Text(String),
    /// `%REQ(name?alternative):max%`; names are lower case, pseudo-headers begin with a colon.
    Req {
        /// The header.
        name: String,
        /// Taken when `name` is absent; empty: none.
        alternative: String,
        /// Longest result in bytes; 0: whole.
        max: u32,
    },
    /// `%RESP(name?alternative):max%`.
    Resp {
        /// The header.
        name: String,
        /// Taken when `name` is absent; empty: none.
        alternative: String,
        /// Longest result in bytes; 0: whole.
        max: u32,
    },
    /// `%PATH(WQ:ORIG):max%`.
    Path {
        /// With the query (`WQ`), or without (`NQ`).
        query: bool,
        /// Which path.
        source: PathSource,
        /// Longest result in bytes; 0: whole.
        max: u32,
    },
    /// `%QUERY_PARAM(name):max%`, percent-decoded.
    QueryParam {
        /// The parameter; the first of the name counts.
        name: String,
        /// Longest result in bytes; 0: whole.
        max: u32,
    },
    /// `%DOWNSTREAM_REMOTE_ADDRESS%`.
    DownstreamRemoteAddress,
    /// `%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%`.
    DownstreamRemoteAddressWithoutPort,
    /// `%DOWNSTREAM_REMOTE_PORT%`.
    DownstreamRemotePort,
    /// `%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%`.
    DownstreamDirectRemoteAddress,
    /// `%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%`.
    DownstreamDirectRemoteAddressWithoutPort,
    /// `%DOWNSTREAM_DIRECT_REMOTE_PORT%`.
    DownstreamDirectRemotePort,
    /// `%DOWNSTREAM_LOCAL_ADDRESS%`: the original destination of a captured connection.
    DownstreamLocalAddress,
    /// `%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%`.
    DownstreamLocalAddressWithoutPort,
    /// `%DOWNSTREAM_LOCAL_PORT%`.
    DownstreamLocalPort,
    /// `%PROTOCOL%`.
    Protocol,
    /// `%UPSTREAM_HOST%`: address of the endpoint.
    UpstreamHost,
    /// `%UPSTREAM_CLUSTER%`.
    UpstreamCluster,
    /// `%ROUTE_NAME%`.
    RouteName,
    /// `%RESPONSE_CODE%`.
    ResponseCode,
    /// `%REQUESTED_SERVER_NAME%`: SNI.
    RequestedServerName,
    /// `%VIRTUAL_CLUSTER_NAME%`.
    VirtualClusterName,
    /// `%START_TIME%`. (`%HOSTNAME%` and the like are text that the writer knows already.)
    StartTime,
}

/// Which path `%PATH%` is.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum PathSource {
    /// `ORIG`: `x-envoy-original-path`.
    Original,
    /// `PATH`: `:path`.
    Path,
    /// `ORIG_OR_PATH`: the first, or if it is not there the second.
    OriginalOrPath,
}

/// One header to add, set or append.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HeaderValueOption {
    /// Name, lower case.
    pub key: String,
    /// Value, in parts.
    pub value: Vec<Format>,
    /// What happens when it is there already.
    pub append_action: AppendAction,
    /// Added even when the value comes out empty (`keep_empty_value`).
    pub keep_empty_value: bool,
}

/// The edits of one level (route table, virtual host, route, weighted cluster).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HeaderEdits {
    /// `request_headers_to_add`, in order.
    pub request_add: Vec<HeaderValueOption>,
    /// `request_headers_to_remove`, lower case.
    pub request_remove: Vec<String>,
    /// `response_headers_to_add`, in order.
    pub response_add: Vec<HeaderValueOption>,
    /// `response_headers_to_remove`, lower case.
    pub response_remove: Vec<String>,
}

impl HeaderEdits {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}
