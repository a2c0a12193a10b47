//! Header edits of a request or a response (`HeaderParser::evaluateHeaders`).

use crate::format::{expand, Source};
use amesh_model::header::{ArchivedAppendAction, ArchivedFormat, ArchivedHeaderEdits, ArchivedHeaderValueOption};
use rkyv::string::ArchivedString;
use std::borrow::Cow;

/// The headers that are edited. Names are lower case.
pub trait HeaderMap {
    /// The first value of a header, pseudo-headers included where they are part of the message.
    fn get(&self, name: &str) -> Option<Cow<'_, [u8]>>;
    /// Makes a header have this value alone.
    fn set(&mut self, name: &str, value: &[u8]);
    /// Adds a further line of a header.
    fn append(&mut self, name: &str, value: &[u8]);
    /// Removes every line of a header.
    fn remove(&mut self, name: &str);
}

/// A substitution command that is neither text nor a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `%DOWNSTREAM_REMOTE_ADDRESS%`.
    DownstreamRemoteAddress,
    /// `%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%`.
    DownstreamRemoteAddressWithoutPort,
    /// `%DOWNSTREAM_REMOTE_PORT%`.
    DownstreamRemotePort,
    /// `%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%`: of the connection, whatever headers say of the client.
    DownstreamDirectRemoteAddress,
    /// `%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%`.
    DownstreamDirectRemoteAddressWithoutPort,
    /// `%DOWNSTREAM_DIRECT_REMOTE_PORT%`.
    DownstreamDirectRemotePort,
    /// `%DOWNSTREAM_LOCAL_ADDRESS%`.
    DownstreamLocalAddress,
    /// `%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%`.
    DownstreamLocalAddressWithoutPort,
    /// `%DOWNSTREAM_LOCAL_PORT%`.
    DownstreamLocalPort,
    /// `%PROTOCOL%`.
    Protocol,
    /// `%UPSTREAM_HOST%`.
    UpstreamHost,
    /// `%UPSTREAM_CLUSTER%`.
    UpstreamCluster,
    /// `%ROUTE_NAME%`.
    RouteName,
    /// `%VIRTUAL_CLUSTER_NAME%`, see [`crate::route::virtual_cluster`].
    VirtualClusterName,
    /// `%RESPONSE_CODE%`.
    ResponseCode,
    /// `%REQUESTED_SERVER_NAME%`.
    RequestedServerName,
    /// `%START_TIME%`.
    StartTime,
}

/// What substitution commands stand for. What is not known comes out empty.
pub trait FormatContext {
    /// The first value of a request header. Asked for while a response is edited.
    fn request_header(&self, name: &str) -> Option<Cow<'_, [u8]>>;
    /// Appends the value of a command.
    fn write(&self, command: Command, out: &mut Vec<u8>);
}

/// The edits that apply to a message, by the level at which they are written.
#[derive(Clone, Copy, Default)]
pub struct Levels<'a> {
    /// Headers that a request from outside does not bring along: `internal_only_headers` of the table, empty for a
    /// request from inside. They are removed before anything else is done.
    pub internal_only: &'a [ArchivedString],
    /// Of the chosen arm of a weighted cluster. Always first, whatever the order of the others.
    pub weighted_cluster: Option<&'a ArchivedHeaderEdits>,
    /// Of the route.
    pub route: Option<&'a ArchivedHeaderEdits>,
    /// Of the virtual host.
    pub virtual_host: Option<&'a ArchivedHeaderEdits>,
    /// Of the route table.
    pub table: Option<&'a ArchivedHeaderEdits>,
    /// The table's order: the route is last and so wins, not first (`most_specific_header_mutations_wins`).
    pub most_specific_wins: bool,
}

impl<'a> Levels<'a> {
    /// Edits in the order in which they are made; later ones win.
    fn in_order(&self) -> impl Iterator<Item = &'a ArchivedHeaderEdits> {
        let mut levels = [self.route, self.virtual_host, self.table];
        if self.most_specific_wins {
            levels.reverse();
        }
        std::iter::once(self.weighted_cluster).chain(levels).flatten()
    }

    /// Edits the headers of a request. To be done before its path and host are rewritten.
    pub fn edit_request(&self, headers: &mut impl HeaderMap, context: &impl FormatContext) {
        self.internal_only.iter().for_each(|name| headers.remove(name));
        for edits in self.in_order() {
            let remove = edits.request_remove.iter().map(|name| name.as_str());
            edit(headers, context, remove, &edits.request_add, Message::Request);
        }
    }

    /// Edits the headers of a response, also of one that is made here.
    pub fn edit_response(&self, headers: &mut impl HeaderMap, context: &impl FormatContext) {
        for edits in self.in_order() {
            let remove = edits.response_remove.iter().map(|name| name.as_str());
            edit(headers, context, remove, &edits.response_add, Message::Response);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Request,
    Response,
}

/// One level: removals, then all values are formed, then headers are overwritten, then added.
fn edit<'a>(
    headers: &mut impl HeaderMap,
    context: &impl FormatContext,
    remove: impl Iterator<Item = &'a str>,
    add: &[ArchivedHeaderValueOption],
    message: Message,
) {
    remove.for_each(|name| headers.remove(name));
    let mut overwrite = Vec::new();
    let mut append = Vec::new();
    for option in add {
        let name = option.key.as_str();
        let value = format(&option.value, headers, context, message);
        if value.is_empty() && !option.keep_empty_value {
            continue;
        }
        match option.append_action {
            ArchivedAppendAction::AppendIfExistsOrAdd => append.push((name, value)),
            ArchivedAppendAction::AddIfAbsent if headers.get(name).is_none() => append.push((name, value)),
            ArchivedAppendAction::OverwriteIfExistsOrAdd => overwrite.push((name, value)),
            ArchivedAppendAction::OverwriteIfExists if headers.get(name).is_some() => overwrite.push((name, value)),
            ArchivedAppendAction::AddIfAbsent | ArchivedAppendAction::OverwriteIfExists => {}
        }
    }
    overwrite.iter().for_each(|(name, value)| headers.set(name, value));
    append.iter().for_each(|(name, value)| headers.append(name, value));
}

fn format<'a>(
    parts: &'a [ArchivedFormat],
    headers: &impl HeaderMap,
    context: &impl FormatContext,
    message: Message,
) -> Cow<'a, [u8]> {
    if let [ArchivedFormat::Text(text)] = parts {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut out = Vec::new();
    expand(parts, &Edited { headers, context, message }, "", &mut out);
    Cow::Owned(out)
}

/// A message that is edited, and what else is known.
struct Edited<'e, H, C> {
    headers: &'e H,
    context: &'e C,
    message: Message,
}

impl<H: HeaderMap, C: FormatContext> Source for Edited<'_, H, C> {
    fn request(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match self.message {
            Message::Request => self.headers.get(name),
            Message::Response => self.context.request_header(name),
        }
    }

    fn response(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match self.message {
            Message::Request => None,
            Message::Response => self.headers.get(name),
        }
    }

    fn command(&self, command: Command, out: &mut Vec<u8>) {
        self.context.write(command, out);
    }
}
