//! What the data plane decides, over the archived form of the mesh model, read in place.
//!
//! Nothing here knows of nginx, holds state between requests (but for [`regex::RegexCache`]) or writes to shared
//! memory; the counters that load balancing needs are reached through [`lb::Cells`]. Every decision is Envoy's, and
//! what was found out about it is said where it is done.

#![forbid(unsafe_code)]

pub mod bucket;
pub mod cors;
pub mod fault;
mod format;
pub mod forwarded;
pub mod hash;
pub mod header;
pub mod inspect;
pub mod internal_redirect;
pub mod lb;
pub mod listener;
pub mod outlier;
pub mod path;
pub mod regex;
pub mod retry;
pub mod route;
pub mod scope;
pub mod timeout;
