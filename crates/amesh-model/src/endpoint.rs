//! Endpoints of a cluster (`config.endpoint.v3`), joined with what their cluster says of them.

use crate::address::Address;
use crate::health::EndpointHealthCheck;
use crate::plan::Plan;
use crate::subset::LbMetadata;
use rkyv::{Archive, Deserialize, Serialize};

/// The endpoints of one cluster (`config.endpoint.v3.ClusterLoadAssignment`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct EndpointSet {
    /// The cluster.
    pub cluster: String,
    /// Places, by priority (lowest number first), then as they came.
    pub localities: Vec<Locality>,
    /// Overprovisioning factor in per cent; 140 by default.
    pub overprovisioning_factor: u32,
    /// What [`crate::plan::build`] makes of them; nobody is picked without.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub plan: Plan,
}

impl EndpointSet {
    /// No endpoints.
    pub fn empty(cluster: &str) -> EndpointSet {
        EndpointSet { cluster: cluster.to_owned(), overprovisioning_factor: 140, ..EndpointSet::default() }
    }
}

impl ArchivedEndpointSet {
    /// The endpoint of a number of the plan.
    pub fn endpoint(&self, number: u32) -> Option<&ArchivedEndpoint> {
        let place = self.plan.places.get(number as usize)?;
        let locality = self.localities.get(place.locality.to_native() as usize)?;
        locality.endpoints.get(place.endpoint.to_native() as usize)
    }
}

/// `config.endpoint.v3.LocalityLbEndpoints`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Sub-zone.
    pub sub_zone: String,
    /// 0 is asked first.
    pub priority: u32,
    /// Share of the place; 0: none, where the cluster weighs places.
    pub weight: u32,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// `config.endpoint.v3.LbEndpoint`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Endpoint {
    /// Where it is.
    pub address: Address,
    /// Its host name (`auto_host_rewrite`); may be empty.
    pub hostname: String,
    /// What is hashed for it (`hash_key` in the metadata `envoy.lb`); empty: its address, or its host name. Only plans are
    /// made of it: it is not archived.
    #[rkyv(with = rkyv::with::Skip)]
    #[cfg_attr(feature = "serde", serde(skip))]
    pub hash_key: String,
    /// Its metadata `envoy.lb`, for subsets. Not archived either.
    #[rkyv(with = rkyv::with::Skip)]
    #[cfg_attr(feature = "serde", serde(skip))]
    pub lb_metadata: LbMetadata,
    /// Its share, at least 1.
    pub weight: u32,
    /// Its health as the control plane says.
    pub health: HealthStatus,
    /// Where it is checked; `None`: as it is asked.
    #[rkyv(with = rkyv::with::Niche)]
    pub health_check: Option<Box<EndpointHealthCheck>>,
    /// Not empty: it must not be spoken to, for this reason (it wants TLS, which this version does not speak).
    pub refuse: Option<String>,
    /// When it came, healthy, in Unix time in ms, where its cluster starts slowly; else 0.
    pub added: u64,
    /// Index of the endpoint's cell of counters in the zone. Set by the writer when it publishes.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub cell: u32,
}

/// `config.core.v3.HealthStatus`, as far as it matters for picking.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum HealthStatus {
    /// `UNKNOWN`, `HEALTHY`.
    Healthy,
    /// `DEGRADED`.
    Degraded,
    /// `UNHEALTHY`, `TIMEOUT`, `DRAINING`.
    Unhealthy,
}
