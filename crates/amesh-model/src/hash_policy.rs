//! What is hashed of a request (`RouteAction.HashPolicy`).

use crate::matcher::Regex;
use rkyv::{Archive, Deserialize, Serialize};

/// One part of a hash policy.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HashPolicy {
    /// What is hashed.
    pub method: HashMethod,
    /// If there is a hash after this one, the rest is not looked at.
    pub terminal: bool,
}

/// `HashPolicy.policy_specifier`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum HashMethod {
    /// The values of a header.
    Header {
        /// Its name in lower case.
        name: String,
        /// What happens to each value before it is hashed.
        rewrite: Option<HashRewrite>,
    },
    /// The value of a cookie.
    Cookie(HashCookie),
    /// The address of the client, without its port.
    SourceIp,
    /// The first value of a query parameter.
    QueryParameter(String),
}

/// `HashPolicy.Header.regex_rewrite`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HashRewrite {
    /// The pattern.
    pub pattern: Regex,
    /// RE2's substitution.
    pub substitution: String,
}

/// `HashPolicy.Cookie`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HashCookie {
    /// Its name.
    pub name: String,
    /// A client without it is given one for so many seconds; 0: as long as its session. `None`: it is given none.
    pub ttl: Option<u64>,
    /// Its path; empty: none.
    pub path: String,
    /// Further attributes: name and value, which may be empty.
    pub attributes: Vec<(String, String)>,
}
