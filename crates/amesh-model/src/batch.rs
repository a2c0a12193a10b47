//! What is published at once: resources of the model that were made, and names of those that are gone.

use crate::cluster::Cluster;
use crate::endpoint::EndpointSet;
use crate::listener::{Listener, ListenerIndex};
use crate::route::RouteTable;
use crate::Kind;

/// What a slot will hold.
#[derive(Clone, Debug, PartialEq)]
// They live for one batch, and rkyv archives a box as another type than what is in it.
#[allow(clippy::large_enum_variant)]
pub enum Value {
    /// A listener.
    Listener(Listener),
    /// A route table.
    RouteTable(RouteTable),
    /// A cluster.
    Cluster(Cluster),
    /// The endpoints of a cluster.
    EndpointSet(EndpointSet),
    /// Which listener takes which address.
    ListenerIndex(ListenerIndex),
}

impl Value {
    /// The kind of its slot.
    pub fn kind(&self) -> Kind {
        match self {
            Value::Listener(_) => Kind::Listener,
            Value::RouteTable(_) => Kind::RouteTable,
            Value::Cluster(_) => Kind::Cluster,
            Value::EndpointSet(_) => Kind::EndpointSet,
            Value::ListenerIndex(_) => Kind::ListenerIndex,
        }
    }
}

/// One thing to publish.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its kind.
    pub kind: Kind,
    /// Its key: the resource's name; of endpoints the cluster's; of the index of listeners the empty name.
    pub name: String,
    /// The version of the resource that it was made of.
    pub version: String,
    /// What to publish.
    pub value: Value,
}

/// What to publish now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// In this order.
    pub put: Vec<Item>,
    /// After that, in this order. What was never published may be among it.
    pub remove: Vec<(Kind, String)>,
}
