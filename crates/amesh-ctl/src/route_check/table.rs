//! The route table that is checked.

use super::check::Place;
use super::{read, Error};
use amesh_model::route::{ArchivedRouteTable, RouteTable};
use amesh_xds::descriptor;
use amesh_xds::translate::{self, NoteKind, Notes};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::google::protobuf::value::Kind;
use rkyv::rancor;
use rkyv::util::AlignedVec;
use std::path::Path;

/// A route table in the form in which workers read it.
pub struct Table {
    archived: AlignedVec,
    /// As it was written: what says nothing to a router is not in the other form.
    written: RouteConfiguration,
    notes: Vec<String>,
}

impl Table {
    /// Reads, translates and archives a `RouteConfiguration`, with or without its `@type`.
    ///
    /// # Errors
    /// [`Error`] names the file, the field and the reason.
    pub fn read(path: &Path) -> Result<Table, Error> {
        let file = path.display().to_string();
        let mut configuration: RouteConfiguration =
            descriptor::message(&file, &read(path)?, translate::ROUTE_CONFIGURATION)?;
        // As Envoy's tool does: a fraction of nothing could not be tested.
        for route in configuration.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            let fraction = route.r#match.as_mut().and_then(|m| m.runtime_fraction.as_mut());
            if let Some(default) = fraction.and_then(|f| f.default_value.as_mut()).filter(|f| f.numerator == 0) {
                default.numerator = 1;
            }
        }
        let mut notes = Notes::new();
        let table = translate::route_table(&configuration, &mut notes)
            .map_err(|invalid| Error::Rejected { path: path.to_owned(), invalid })?;
        let deprecated = descriptor::deprecated(&configuration, translate::ROUTE_CONFIGURATION)?;
        let deprecated = deprecated.into_iter().map(|field| format!("deprecated: {field}"));
        let notes = notes
            .iter()
            .map(|(note, count)| {
                let kind = match note.kind {
                    NoteKind::Ignored => "ignored",
                    NoteKind::Refused => "refused",
                };
                let times = if count > 1 { format!(" ({count} times)") } else { String::new() };
                format!("{kind}: {}{times}: {}", note.field, note.why)
            })
            .chain(deprecated)
            .collect();
        let archived = rkyv::to_bytes::<rancor::Error>(&table).map_err(|e| Error::Archive(e.to_string()))?;
        Ok(Table { archived, written: configuration, notes })
    }

    /// The table as workers see it.
    ///
    /// # Errors
    /// [`Error::Archive`].
    pub fn routes(&self) -> Result<&ArchivedRouteTable, Error> {
        rkyv::access::<<RouteTable as rkyv::Archive>::Archived, rancor::Error>(&self.archived)
            .map_err(|e| Error::Archive(e.to_string()))
    }

    /// A text in the metadata of a route.
    pub fn route_metadata(&self, place: Place, namespace: &str, key: &str) -> Option<String> {
        let route = self.written.virtual_hosts.get(place.host)?.routes.get(place.route)?;
        let value = route.metadata.as_ref()?.filter_metadata.get(namespace)?.fields.get(key)?;
        match &value.kind {
            Some(Kind::StringValue(text)) => Some(text.clone()),
            _ => None,
        }
    }

    /// What of it is not acted on, and which of its fields are deprecated, a line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}
