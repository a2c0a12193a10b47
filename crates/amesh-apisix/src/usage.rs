//! In which ways routes use a cluster. In APISIX an upstream says what Envoy's routes say: how often is tried again, what
//! is hashed, which host is sent. A cluster is one upstream for each way in which it is used.

use crate::id;
use std::sync::Arc;

/// A way in which a cluster is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Usage {
    /// Tries after the first.
    pub retries: u32,
    /// Time for all of them in ms; 0: any.
    pub retry_timeout: u64,
    /// What is hashed, for clusters that pick by hash: `hash_on` and `key`.
    pub hash: Option<(HashOn, String)>,
    /// The host sent is that of the endpoint.
    pub auto_host: bool,
}

/// `hash_on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum HashOn {
    /// A header.
    Header,
    /// A cookie.
    Cookie,
    /// A variable.
    Vars,
    /// A text with variables in it.
    VarsCombinations,
}

impl HashOn {
    /// As the schema has it.
    pub fn name(self) -> &'static str {
        match self {
            HashOn::Header => "header",
            HashOn::Cookie => "cookie",
            HashOn::Vars => "vars",
            HashOn::VarsCombinations => "vars_combinations",
        }
    }
}

impl Usage {
    /// The id of the upstream of a cluster that is used so.
    pub fn upstream_id(&self, cluster: &str) -> Arc<str> {
        let (on, key) = self.hash.as_ref().map_or(("", ""), |(on, key)| (on.name(), key.as_str()));
        let numbers = [self.retries.to_string(), self.retry_timeout.to_string()];
        let host = if self.auto_host { "auto" } else { "" };
        id::id("u", &[cluster, &numbers[0], &numbers[1], on, key, host])
    }
}
